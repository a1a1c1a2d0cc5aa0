/* tensor_file.c - opening and closing a model file of either kind, its list of tensors, and its hash.
 *
 * Design. A `struct tensor_file` is mappings plus tables that point into them; the formats (gguf.c,
 * safetensors.c) fill the tables through tensor_file_add, which copies only names.
 *
 * Owner: the thread that loads the model. After opening nothing changes.
 *
 * Invariants
 * 1. A tensor's bytes lie inside the mapping that tensor_map names; the formats check it before they add.
 * 2. tensors, tensor_names and tensor_map have the same length and order; tensor_set is over tensor_names.
 * 3. The tables grow with what was read and checked, never with what a header claims.
 */
#include "engine/model/tensor_file_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

static bool tensor_file_grow(struct tensor_file *f) {
    size_t cap = size_max(64, 2 * f->cap_tensors);
    struct tensor *tensors = realloc(f->tensors, cap * sizeof *tensors);
    if (tensors) f->tensors = tensors;
    struct name *names = realloc(f->tensor_names, cap * sizeof *names);
    if (names) f->tensor_names = names;
    uint32_t *map = realloc(f->tensor_map, cap * sizeof *map);
    if (map) f->tensor_map = map;
    if (!tensors || !names || !map) return false;
    f->cap_tensors = cap;
    return true;
}

bool tensor_file_add(struct tensor_file *f, struct name name, const struct tensor *t, size_t map, struct err *e) {
    if (f->n_tensors == TENSORS_MAX) {
        return load_err(e, name, "There are more than %d tensors; the one too many is '%s'", TENSORS_MAX,
                        name_shown(name).text);
    }
    char *copy = NULL;
    if ((f->n_tensors < f->cap_tensors || tensor_file_grow(f)) && (copy = strndup(name.s, name.n)) != NULL) {
        size_t i = f->n_tensors++;
        f->tensors[i] = *t;
        f->tensors[i].name = copy;
        f->tensor_names[i] = name_of(copy, name.n);
        f->tensor_map[i] = (uint32_t)map;
        return true;
    }
    return err_set(e, ERR_LOAD, "No memory for the list of tensors");
}

bool tensor_file_seal(struct tensor_file *f, struct err *e) {
    long twice;
    if (!name_set_init(&f->tensor_set, f->tensor_names, f->n_tensors, &twice)) {
        return err_set(e, ERR_LOAD, "No memory for the list of tensors");
    }
    if (twice == NAME_ABSENT) return true;
    struct name name = f->tensor_names[twice];
    return load_err(e, name, "Tensor '%s' is there twice (the second time in %s)", name_shown(name).text,
                    f->maps[f->tensor_map[twice]].name);
}

static struct tensor_file *tensor_file_new(const char *path, struct err *e) {
    struct tensor_file *f = calloc(1, sizeof *f);
    if (f) {
        f->path = strdup(path);
        f->maps = calloc(1, sizeof *f->maps);
        if (f->path && f->maps) return f;
    }
    tensor_file_close(f);
    err_set(e, ERR_LOAD, "No memory to open %s", path);
    return NULL;
}

static struct tensor_file *tensor_file_finish(struct tensor_file *f, bool ok, struct err *e) {
    if (ok && tensor_file_seal(f, e)) return f;
    tensor_file_close(f);
    return NULL;
}

struct tensor_file *tensor_file_open(const char *path, struct err *e) {
    struct stat st;
    if (stat(path, &st) != 0) {
        err_set(e, ERR_LOAD, "%s cannot be opened: %s", path, strerror(errno));
        return NULL;
    }
    struct tensor_file *f = tensor_file_new(path, e);
    if (!f) return NULL;
    if (S_ISDIR(st.st_mode)) return tensor_file_finish(f, safetensors_open_folder(f, path, e), e);
    f->gguf = true;
    f->n_maps = 1;
    return tensor_file_finish(f, file_map_open(&f->maps[0], path, path, e) && gguf_read(f, e), e);
}

struct tensor_file *tensor_file_open_memory(const void *bytes, size_t n, const char *config_json, size_t n_config,
                                            struct err *e) {
    struct tensor_file *f = tensor_file_new("the model", e);
    if (!f) return NULL;
    f->gguf = config_json == NULL;
    f->n_maps = 1;
    f->maps[0] = (struct file_map){.data = bytes, .n = n, .name = "the model"};
    bool ok =
        f->gguf ? gguf_read(f, e) : safetensors_set_config(f, config_json, n_config, e) && safetensors_read(f, 0, e);
    return tensor_file_finish(f, ok, e);
}

void tensor_file_close(struct tensor_file *f) {
    if (!f) return;
    for (size_t i = 0; i < f->n_tensors; i++) free((void *)(uintptr_t)f->tensors[i].name);
    for (size_t i = 0; i < f->n_values; i++) free(f->values[i].marks);
    for (size_t i = 0; i < f->n_maps; i++) file_map_close(&f->maps[i]);
    name_set_free(&f->tensor_set);
    name_set_free(&f->key_set);
    json_decref(f->config);
    free(f->config_text);
    free(f->tensors);
    free(f->tensor_names);
    free(f->tensor_map);
    free(f->values);
    free(f->keys);
    free(f->maps);
    free(f->path);
    free(f);
}

bool tensor_file_is_gguf(const struct tensor_file *f) {
    return f->gguf;
}
size_t tensor_file_count(const struct tensor_file *f) {
    return f->n_tensors;
}

const struct tensor *tensor_file_at(const struct tensor_file *f, size_t i) {
    ASSERT(i < f->n_tensors);
    return &f->tensors[i];
}

const struct tensor *tensor_file_find(const struct tensor_file *f, const char *name) {
    long i = name_set_find(&f->tensor_set, name_of(name, strlen(name)));
    return i == NAME_ABSENT ? NULL : &f->tensors[i];
}

void tensor_file_drop(const struct tensor_file *f, const struct tensor *t) {
    size_t i = (size_t)(t - f->tensors);
    ASSERT(i < f->n_tensors);
    file_map_drop(&f->maps[f->tensor_map[i]], t->data, t->n_bytes);
}

bool tensor_file_unchanged(const struct tensor_file *f) {
    for (size_t i = 0; i < f->n_maps; i++) {
        if (!file_map_unchanged(&f->maps[i])) return false;
    }
    return true;
}

/* ---- Hash ---- */

static int tensor_by_name(const void *a, const void *b) {
    const struct tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static void hash_u64(XXH3_state_t *h, uint64_t v) {
    XXH3_128bits_update(h, &v, sizeof v);
}

static void hash_text(XXH3_state_t *h, const char *s, size_t n) {
    hash_u64(h, n); /* lengths in front: "ab","c" and "a","bc" differ */
    XXH3_128bits_update(h, s, n);
}

static void hash_tensor(XXH3_state_t *h, const struct tensor *t) {
    hash_text(h, t->name, strlen(t->name));
    hash_text(h, t->type_name, strlen(t->type_name));
    hash_u64(h, t->n_dims);
    for (uint32_t d = 0; d < t->n_dims; d++) hash_u64(h, t->shape[d]);
    XXH3_128bits_update(h, t->data, t->n_bytes);
}

void tensor_file_hash(const struct tensor_file *f, uint8_t out[16]) {
    XXH3_state_t *h = XXH3_createState();
    const struct tensor **order = malloc((f->n_tensors + 1) * sizeof(const struct tensor *));
    ASSERT(h && order); /* half a megabyte at most, while a model is being loaded */
    XXH3_128bits_reset(h);
    if (f->gguf) {
        hash_text(h, (const char *)f->maps[0].data, f->n_header);
    } else {
        hash_text(h, f->config_text, f->n_config);
    }
    for (size_t i = 0; i < f->n_tensors; i++) order[i] = &f->tensors[i];
    qsort(order, f->n_tensors, sizeof *order, tensor_by_name);
    for (size_t i = 0; i < f->n_tensors; i++) hash_tensor(h, order[i]);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(h));
    memcpy(out, canonical.digest, 16);
    XXH3_freeState(h);
    free(order);
}
