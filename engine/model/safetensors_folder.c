/* safetensors_folder.c - a Hugging Face folder: config.json and one or many safetensors files.
 *
 * model.safetensors alone wins, as in transformers; otherwise model.safetensors.index.json names the shards. Its
 * weight_map must agree with the shards in both directions: a tensor that is mapped is in that shard, and a
 * shard has no tensor that is not mapped to it.
 *
 * Owner: the thread that opens the folder.
 *
 * Invariants
 * 1. Names of shards come from the index and are hostile: one path component, no leading dot, ".safetensors".
 * 2. maps[i] is shard i; n_maps counts only those whose file_map_open was called.
 */
#include "engine/model/tensor_file_int.h"

#include "common/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"
#define SHARD_SUFFIX ".safetensors"
enum { SHARD_NAME_MAX = 255 };

struct folder {
    const char *path;
    char *at; /* path + '/' + a name; the buffer holds any shard's name */
    size_t n_path;
    json_t *index;                         /* NULL without one */
    const char *shards[TENSOR_SHARDS_MAX]; /* sorted, owned by index */
    size_t n_shards;
};

static const char *folder_join(struct folder *d, const char *name) {
    snprintf(d->at + d->n_path, SHARD_NAME_MAX + 2, "/%s", name);
    return d->at;
}

/* *text is malloc'ed; NULL with errno ENOENT in *missing when there is no such file. */
static char *folder_read(struct folder *d, const char *name, size_t n_max, size_t *n, bool *missing, struct err *e) {
    *missing = false;
    FILE *file = fopen(folder_join(d, name), "rbe");
    if (!file) {
        *missing = errno == ENOENT;
        err_set(e, ERR_LOAD, "%s/%s cannot be opened: %s", d->path, name, strerror(errno));
        return NULL;
    }
    char *text = NULL;
    struct stat st;
    if (fstat(fileno(file), &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > n_max) {
        err_set(e, ERR_LOAD, "%s/%s is not a regular file of at most %zu bytes", d->path, name, n_max);
    } else if ((text = malloc((size_t)st.st_size + 1)) == NULL) {
        err_set(e, ERR_LOAD, "No memory for %s", name);
    } else {
        *n = fread(text, 1, (size_t)st.st_size, file);
    }
    fclose(file);
    return text;
}

static bool shard_name_ok(const char *name) {
    size_t n = strlen(name), n_suffix = strlen(SHARD_SUFFIX);
    return n > n_suffix && n <= SHARD_NAME_MAX && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') &&
           strcmp(name + n - n_suffix, SHARD_SUFFIX) == 0;
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The different names in weight_map, sorted. */
static bool collect_shards(struct folder *d, json_t *weight_map, struct err *e) {
    const char *tensor;
    json_t *value;
    const char *last = NULL; /* most neighbours share a shard */
    json_object_foreach(weight_map, tensor, value) {
        const char *shard = json_string_value(value);
        struct name name = name_of(tensor, strlen(tensor));
        if (!shard || !shard_name_ok(shard)) {
            return load_err(e, name, INDEX_NAME ": the file of tensor '%s' is not the plain name of a safetensors file",
                            name_shown(name).text);
        }
        if (last && strcmp(last, shard) == 0) continue;
        last = shard;
        if (bsearch(&shard, d->shards, d->n_shards, sizeof *d->shards, compare_text)) continue;
        if (d->n_shards == TENSOR_SHARDS_MAX) {
            return err_set(e, ERR_LOAD, INDEX_NAME ": weight_map names more than %d files", TENSOR_SHARDS_MAX);
        }
        d->shards[d->n_shards++] = shard;
        qsort(d->shards, d->n_shards, sizeof *d->shards, compare_text);
    }
    return true;
}

static bool read_index(struct folder *d, struct err *e) {
    size_t n;
    bool missing;
    char *text = folder_read(d, INDEX_NAME, SAFETENSORS_INDEX_MAX, &n, &missing, e);
    if (!text) {
        if (missing) err_set(e, ERR_LOAD, "%s has neither " SINGLE_NAME " nor " INDEX_NAME, d->path);
        return false;
    }
    const struct json_limits limits = {.depth_max = 8, .amplification = 1, .slack_bytes = 48 << 20};
    struct err inner;
    d->index = json_parse(text, n, &limits, &inner);
    free(text);
    if (!d->index) return err_set(e, ERR_LOAD, INDEX_NAME " is not valid: %.400s", inner.message);
    json_t *weight_map = json_object_get(d->index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0) {
        return err_set_param(e, ERR_LOAD, "weight_map", INDEX_NAME ": weight_map is not an object with tensors");
    }
    return collect_shards(d, weight_map, e);
}

/* Both directions of the weight_map against what the shards have. */
static bool check_weight_map(const struct folder *d, const struct tensor_file *f, struct err *e) {
    json_t *weight_map = json_object_get(d->index, "weight_map");
    for (size_t i = 0; i < f->n_tensors; i++) {
        const char *shard = json_string_value(json_object_get(weight_map, f->tensors[i].name));
        const char *here = f->maps[f->tensor_map[i]].name;
        if (shard && strcmp(shard, here) == 0) continue;
        return load_err(e, f->tensor_names[i], "%s has tensor '%s', which " INDEX_NAME " does not map to it", here,
                        name_shown(f->tensor_names[i]).text);
    }
    /* Every tensor here is mapped to its shard; a name that is mapped but absent is left over. */
    if (json_object_size(weight_map) == f->n_tensors) return true;
    struct name_set set;
    long twice;
    if (!name_set_init(&set, f->tensor_names, f->n_tensors, &twice))
        return err_set(e, ERR_LOAD, "No memory for the index");
    const char *tensor;
    json_t *value;
    bool ok = true;
    json_object_foreach(weight_map, tensor, value) {
        struct name name = name_of(tensor, strlen(tensor));
        if (name_set_find(&set, name) != NAME_ABSENT) continue;
        ok =
            load_err(e, name, INDEX_NAME ": tensor '%s' is not in %s", name_shown(name).text, json_string_value(value));
        break;
    }
    name_set_free(&set);
    return ok; /* names that are there twice: tensor_file_seal */
}

static bool open_shards(struct folder *d, struct tensor_file *f, struct err *e) {
    struct file_map *maps = calloc(d->n_shards, sizeof *maps);
    if (!maps) return err_set(e, ERR_LOAD, "No memory for the list of shards");
    free(f->maps);
    f->maps = maps;
    for (size_t i = 0; i < d->n_shards; i++) {
        f->n_maps = i + 1;
        const char *path = folder_join(d, d->shards[i]);
        if (!file_map_open(&f->maps[i], path, path + strlen(path) - strlen(d->shards[i]), e)) return false;
        if (!safetensors_read(f, i, e)) return false;
    }
    return !d->index || check_weight_map(d, f, e);
}

static bool open_folder(struct folder *d, struct tensor_file *f, struct err *e) {
    size_t n;
    bool missing;
    char *config = folder_read(d, "config.json", CONFIG_BYTES_MAX, &n, &missing, e);
    if (!config) return false;
    bool ok = safetensors_set_config(f, config, n, e);
    free(config);
    if (!ok) return false;
    struct stat st;
    if (stat(folder_join(d, SINGLE_NAME), &st) == 0) {
        d->shards[d->n_shards++] = SINGLE_NAME;
    } else if (!read_index(d, e)) {
        return false;
    }
    return open_shards(d, f, e);
}

bool safetensors_open_folder(struct tensor_file *f, const char *path, struct err *e) {
    struct folder *d = calloc(1, sizeof *d);
    if (d) {
        d->path = path;
        d->n_path = strlen(path);
        d->at = malloc(d->n_path + SHARD_NAME_MAX + 2);
    }
    if (!d || !d->at) {
        free(d);
        return err_set(e, ERR_LOAD, "No memory to open %s", path);
    }
    memcpy(d->at, path, d->n_path + 1);
    bool ok = open_folder(d, f, e);
    json_decref(d->index);
    free(d->at);
    free(d);
    return ok;
}
