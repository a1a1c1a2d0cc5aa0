/* tensor_file.h - a model file, checked: GGUF or a folder of safetensors, as named tensors and metadata.
 *
 * Owns the mappings. Everything in a file is hostile until checked here: after tensor_file_open every tensor's
 * [data, data + n_bytes) lies inside its mapping, shapes and types agree with n_bytes, names are unique.
 * Errors name the key or tensor and the file offset, never a local path other than the one the person gave.
 */
#ifndef CHOIR_MODEL_TENSOR_FILE_H
#define CHOIR_MODEL_TENSOR_FILE_H

#include "engine/kernels/kernels.h"

enum { TENSOR_DIMS_MAX = 4 };

struct tensor {
    const char *name; /* owned by the file */
    enum dtype type;
    uint32_t n_dims;
    uint64_t shape[TENSOR_DIMS_MAX]; /* outermost first, as in PyTorch: a matrix is [n_rows][n_cols] */
    const void *data;                /* in file layout, read-only mapping */
    size_t n_bytes;
};

struct tensor_file;

/* path: a .gguf file, or a folder with *.safetensors (+ model.safetensors.index.json) and config.json. */
struct tensor_file *tensor_file_open(const char *path, struct err *e);
void tensor_file_close(struct tensor_file *f);

bool tensor_file_is_gguf(const struct tensor_file *f);
size_t tensor_file_count(const struct tensor_file *f);
const struct tensor *tensor_file_at(const struct tensor_file *f, size_t i);
const struct tensor *tensor_file_find(const struct tensor_file *f, const char *name); /* or NULL */

/* GGUF metadata. Type-checked; false when absent or of another type (integers of any width convert if they fit). */
bool gguf_get_u32(const struct tensor_file *f, const char *key, uint32_t *out);
bool gguf_get_f32(const struct tensor_file *f, const char *key, float *out);
bool gguf_get_bool(const struct tensor_file *f, const char *key, bool *out);
bool gguf_get_str(const struct tensor_file *f, const char *key, const char **out, size_t *n); /* not terminated */

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STR, GGUF_ARR, GGUF_U64, GGUF_I64, GGUF_F64
};
struct gguf_array {
    enum gguf_type type; /* of the elements; never GGUF_ARR */
    uint64_t count;
    const void *data; /* fixed-size elements, unaligned little-endian; NULL for strings */
};
bool gguf_get_array(const struct tensor_file *f, const char *key, struct gguf_array *out);
bool gguf_array_str(const struct gguf_array *a, uint64_t i, const char **out, size_t *n);

/* The pages behind a tensor may be dropped from memory (it was repacked). */
void tensor_file_drop(const struct tensor_file *f, const struct tensor *t);
/* True while every mapped file is still the file that was opened (size, inode and mtime unchanged). */
bool tensor_file_unchanged(const struct tensor_file *f);
/* XXH3-128 over names, types, shapes and bytes of all tensors and the metadata: the model part of the numerics id.
 * To stay fast at start it samples: all metadata and shapes, and of each tensor its first, middle and last 4 KiB. */
void tensor_file_hash(const struct tensor_file *f, uint8_t out[16]);

/* A tokenizer from the GGUF's tokenizer.ggml.* keys, or from the folder's tokenizer.json. */
struct tokenizer;
struct tokenizer *tensor_file_tokenizer(const struct tensor_file *f, struct err *e);

#endif
