/* tensor_file_int.h - what the readers of model files share: mappings, the list of tensors, sets of names.
 *
 * Private to tensor_file*.c, gguf*.c, safetensors*.c and config*.c.
 */
#ifndef CHOIR_MODEL_TENSOR_FILE_INT_H
#define CHOIR_MODEL_TENSOR_FILE_INT_H

#include "engine/model/tensor_file.h"

#include <jansson.h>
#include <sys/stat.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "model files are little-endian and read in place");

/* ---- Names and errors ---- */

struct name {
    const char *s; /* not terminated; lives in a mapping or is owned by the tensor list */
    uint32_t n;
};
static inline struct name name_of(const char *s, size_t n) {
    return (struct name){s, (uint32_t)n};
}

/* A name from a file made fit for a message: control and non-ASCII bytes as '?', long ones cut. */
struct shown {
    char text[100];
};
struct shown name_shown(struct name name);

/* ERR_LOAD about one key or tensor; false. */
bool load_err(struct err *e, struct name about, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* A set of names with the position of each: open addressing, XXH3 with a seed of this process (a file cannot
 * choose colliding names). */
struct name_set {
    const struct name *names; /* [count], the caller's; must not move */
    uint32_t *slots;          /* [mask + 1], position + 1 or 0 */
    size_t count;
    uint64_t mask;
    uint64_t seed;
};
enum { NAME_ABSENT = -1 };
/* False only when there is no memory. *duplicate: position of the first name that was there before, or
 * NAME_ABSENT. */
bool name_set_init(struct name_set *s, const struct name *names, size_t count, long *duplicate);
void name_set_free(struct name_set *s);
long name_set_find(const struct name_set *s, struct name name);

/* ---- Mappings ---- */

struct file_map {
    const uint8_t *data;
    size_t n;
    bool mapped;      /* false: the caller's memory */
    char *path;       /* as given, for tensor_file_unchanged; NULL for memory */
    const char *name; /* for messages: the last part of the path */
    struct stat st;
};
/* Opens a regular file, takes its size, maps it read-only and watches it for SIGBUS. */
bool file_map_open(struct file_map *m, const char *path, const char *name, struct err *e);
void file_map_close(struct file_map *m);
bool file_map_unchanged(const struct file_map *m);
void file_map_drop(const struct file_map *m, const void *data, size_t n_bytes);

/* ---- The file ---- */

struct gguf_value {
    enum gguf_type type;
    const uint8_t *data; /* the value; strings: their bytes; arrays: as in struct gguf_array */
    uint64_t count;      /* strings: bytes; arrays: elements; else 1 */
    enum gguf_type item; /* arrays */
    uint64_t *marks;     /* arrays of strings */
};
enum { GGUF_MARK_STRIDE = 8 };

struct tensor_file {
    bool gguf;
    char *path;
    struct file_map *maps; /* [n_maps] */
    size_t n_maps;

    struct tensor *tensors;    /* [n_tensors] */
    struct name *tensor_names; /* [n_tensors], of owned and terminated copies */
    uint32_t *tensor_map;      /* [n_tensors], which mapping */
    size_t n_tensors, cap_tensors;
    struct name_set tensor_set;

    struct gguf_value *values; /* [n_values] */
    struct name *keys;         /* [n_values] */
    size_t n_values;
    struct name_set key_set;
    size_t n_header; /* bytes before the tensor data */

    char *config_text; /* config.json of a folder, as read */
    size_t n_config;
    json_t *config;
};

/* Takes the tensor with a copy of its name. False with *e: too many, or no memory. */
bool tensor_file_add(struct tensor_file *f, struct name name, const struct tensor *t, size_t map, struct err *e);
/* After the last add: unique names, and tensor_file_find works. */
bool tensor_file_seal(struct tensor_file *f, struct err *e);

bool gguf_read(struct tensor_file *f, struct err *e);                    /* of maps[0] */
bool safetensors_read(struct tensor_file *f, size_t map, struct err *e); /* of maps[map] */
bool safetensors_open_folder(struct tensor_file *f, const char *path, struct err *e);
bool safetensors_set_config(struct tensor_file *f, const char *text, size_t n, struct err *e); /* copies */

size_t gguf_type_bytes(enum gguf_type t); /* 0 for strings and arrays */
const struct gguf_value *gguf_find(const struct tensor_file *f, const char *key);

#endif
