/* tensor_file.h - a model file, checked: GGUF or a folder of safetensors, as named tensors and metadata.
 *
 * Owns the mappings. Everything in a file is hostile until checked here: after tensor_file_open every tensor's
 * [data, data + n_bytes) lies inside its mapping, shapes and types agree with n_bytes, names are unique, no two
 * tensors overlap. Errors (ERR_LOAD) name the key or tensor and the file offset, never a local path other than
 * the one the person gave.
 *
 * A mapping and a file that shrinks. Reading a page behind the new end of a mapped file raises SIGBUS. The first
 * open installs a handler for it (tensor_file_guard): a fault inside one of our mappings prints one line that
 * names the model file and ends the process with status 1; any other SIGBUS goes to the handler that was there
 * before. Close the file once the weights are repacked, and the danger is over.
 *
 * One thread opens and closes; a file that is open is immutable and may be read by any thread.
 */
#ifndef CHOIR_MODEL_TENSOR_FILE_H
#define CHOIR_MODEL_TENSOR_FILE_H

#include "engine/kernels/kernels.h"

/* Limits. What is over them is refused before memory is taken for it. */
enum {
    TENSOR_DIMS_MAX = 4,
    TENSORS_MAX = 1 << 16,       /* in all shards together */
    TENSOR_NAME_BYTES_MAX = 255, /* GGUF itself: 63 */
    TENSOR_SHARDS_MAX = 512,
    GGUF_KEYS_MAX = 1 << 16,
    GGUF_KEY_BYTES_MAX = 65535,         /* of the GGUF specification */
    GGUF_STRINGS_MAX = 1 << 23,         /* elements of all string arrays of a file together */
    SAFETENSORS_HEADER_MAX = 100000000, /* as in the reference implementation */
    CONFIG_BYTES_MAX = 1 << 20,
    SAFETENSORS_INDEX_MAX = 1 << 25,
};

struct tensor {
    const char *name;                /* owned by the file */
    enum dtype type;                 /* DT_COUNT: a type that no kernel reads; model_tensor refuses it by name */
    const char *type_name;           /* as the file calls it: "Q4_K", "I64"; static */
    uint32_t n_dims;                 /* 0 (a scalar) .. TENSOR_DIMS_MAX */
    uint64_t shape[TENSOR_DIMS_MAX]; /* outermost first, as in PyTorch: a matrix is [n_rows][n_cols] */
    const void *data;                /* in file layout, read-only mapping; alignment is whatever the file has */
    size_t n_bytes;
};

struct tensor_file;

/* path: a .gguf file, or a folder with config.json and either model.safetensors or
 * model.safetensors.index.json with its shards. */
struct tensor_file *tensor_file_open(const char *path, struct err *e);
/* The same checks on bytes in memory, which must outlive the file (for fuzzing and tests). config_json NULL: the
 * bytes are a GGUF file; otherwise they are one safetensors file beside that config.json. */
struct tensor_file *tensor_file_open_memory(const void *bytes, size_t n, const char *config_json, size_t n_config,
                                            struct err *e);
void tensor_file_close(struct tensor_file *f); /* NULL: nothing */

bool tensor_file_is_gguf(const struct tensor_file *f);
size_t tensor_file_count(const struct tensor_file *f);
const struct tensor *tensor_file_at(const struct tensor_file *f, size_t i);
const struct tensor *tensor_file_find(const struct tensor_file *f, const char *name); /* or NULL */

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STR,
    GGUF_ARR,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};
const char *gguf_type_name(enum gguf_type t); /* "u32" */

/* GGUF metadata. Type-checked; false when absent or of another type (integers of any width convert if they fit,
 * f64 converts to f32). On a folder all of them are false. */
bool gguf_has(const struct tensor_file *f, const char *key);
bool gguf_get_u32(const struct tensor_file *f, const char *key, uint32_t *out);
bool gguf_get_f32(const struct tensor_file *f, const char *key, float *out);
bool gguf_get_bool(const struct tensor_file *f, const char *key, bool *out);
bool gguf_get_str(const struct tensor_file *f, const char *key, const char **out, size_t *n); /* not terminated */
size_t gguf_key_count(const struct tensor_file *f);
const char *gguf_key_at(const struct tensor_file *f, size_t i, size_t *n); /* not terminated */

struct gguf_array {
    enum gguf_type type; /* of the elements; never GGUF_ARR */
    uint64_t count;
    const void *data;      /* fixed-size elements, unaligned little-endian; strings: the first one's length */
    const uint64_t *marks; /* strings: where every 8th one starts, from data; NULL otherwise */
};
bool gguf_get_array(const struct tensor_file *f, const char *key, struct gguf_array *out);
/* Element i; false when the elements are not of that type or i >= count. */
bool gguf_array_str(const struct gguf_array *a, uint64_t i, const char **out, size_t *n);
bool gguf_array_f32(const struct gguf_array *a, uint64_t i, float *out);
bool gguf_array_i64(const struct gguf_array *a, uint64_t i, int64_t *out); /* integers of any width, and bool */

/* The pages behind a tensor may be dropped from memory (it was repacked). */
void tensor_file_drop(const struct tensor_file *f, const struct tensor *t);
/* True while every mapped file is still the file that was opened (size, inode and mtime unchanged). */
bool tensor_file_unchanged(const struct tensor_file *f);
/* XXH3-128 over the metadata (GGUF header or config.json) and over name, type, shape and bytes of every tensor: the
 * model part of the numerics id. Reads the whole file, which loading does anyway (some 10 GB/s from the page cache).
 * Tensors are taken in the order of their names: how a folder is cut into shards does not matter. */
void tensor_file_hash(const struct tensor_file *f, uint8_t out[16]);
/* Installs the SIGBUS handler described above, once per process. tensor_file_open calls it. */
void tensor_file_guard(void);

/* A tokenizer from the GGUF's tokenizer.ggml.* keys, or from the folder's tokenizer.json. */
struct tokenizer;
struct tokenizer *tensor_file_tokenizer(const struct tensor_file *f, struct err *e);

#endif
