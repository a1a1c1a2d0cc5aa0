/* safetensors.c - reads one safetensors file from its mapping into the checked list of tensors.
 *
 * Layout (https://github.com/huggingface/safetensors#format): u64 N, N bytes of JSON
 *   {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {"k": "v"}}
 * and the data, to which the offsets count. The checks are those of the reference implementation (tensor.rs,
 * `validate`), and two more: a tensor has elements, and its entry has no members but these three.
 *
 * Owner: the thread that opens the file.
 *
 * Invariants
 * 1. The heap that the JSON tree can take is bounded before it is built (json_prescan).
 * 2. Sorted by begin, the tensors cover the data exactly: no hole, no overlap, nothing left at the end.
 * 3. Of every tensor the product of dtype and shape, without overflow, is end - begin.
 */
#include "engine/model/tensor_file_int.h"

#include "common/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Tree bytes besides one per byte of text: room for some fifty thousand tensors. */
static const struct json_limits json_bounds = {.depth_max = 8, .amplification = 1, .slack_bytes = 48 << 20};

/* Every dtype of the format; DT_COUNT: may be in the file, but no kernel reads it. */
static const struct {
    const char *name;
    enum dtype dtype;
    uint8_t bits;
} dtypes[] = {
    {"F32", DT_F32, 32},          {"F16", DT_F16, 16},          {"BF16", DT_BF16, 16},    {"F64", DT_COUNT, 64},
    {"I64", DT_COUNT, 64},        {"U64", DT_COUNT, 64},        {"I32", DT_COUNT, 32},    {"U32", DT_COUNT, 32},
    {"I16", DT_COUNT, 16},        {"U16", DT_COUNT, 16},        {"I8", DT_COUNT, 8},      {"U8", DT_COUNT, 8},
    {"BOOL", DT_COUNT, 8},        {"F8_E4M3", DT_COUNT, 8},     {"F8_E5M2", DT_COUNT, 8}, {"F8_E8M0", DT_COUNT, 8},
    {"C64", DT_COUNT, 64},        {"F4", DT_COUNT, 4},          {"F6_E2M3", DT_COUNT, 6}, {"F6_E3M2", DT_COUNT, 6},
    {"F8_E4M3FNUZ", DT_COUNT, 8}, {"F8_E5M2FNUZ", DT_COUNT, 8},
};

struct entry {
    struct name name;
    struct tensor tensor;
    uint64_t begin, end;
};

static bool entry_err(struct name name, const struct file_map *m, struct err *e, const char *text) {
    return load_err(e, name, "%s: tensor '%s' %s", m->name, name_shown(name).text, text);
}

/* data_offsets or shape: an array of count_min..count_max integers >= 0. */
static bool read_numbers(const json_t *array, size_t count_min, size_t count_max, uint64_t *out, size_t *count) {
    if (!json_is_array(array)) return false;
    *count = json_array_size(array);
    if (*count < count_min || *count > count_max) return false;
    for (size_t i = 0; i < *count; i++) {
        const json_t *v = json_array_get(array, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
        out[i] = (uint64_t)json_integer_value(v);
    }
    return true;
}

static bool read_entry(const json_t *o, struct entry *out, const struct file_map *m, struct err *e) {
    const char *dtype = json_string_value(json_object_get(o, "dtype"));
    uint64_t offsets[2], bits = 1;
    size_t n_dims, n_offsets, d = 0;
    if (!dtype || json_object_size(o) != 3) {
        return entry_err(out->name, m, e, "is not described by dtype, shape and data_offsets");
    }
    while (d < ARRAY_COUNT(dtypes) && strcmp(dtypes[d].name, dtype) != 0) d++;
    if (d == ARRAY_COUNT(dtypes)) return entry_err(out->name, m, e, "has an unknown dtype");
    struct tensor *t = &out->tensor;
    t->type = dtypes[d].dtype;
    t->type_name = dtypes[d].name;
    if (!read_numbers(json_object_get(o, "shape"), 0, TENSOR_DIMS_MAX, t->shape, &n_dims)) {
        return entry_err(out->name, m, e, "has a shape that is not 0 to 4 numbers from 0 up");
    }
    if (!read_numbers(json_object_get(o, "data_offsets"), 2, 2, offsets, &n_offsets) || offsets[0] > offsets[1]) {
        return entry_err(out->name, m, e, "has data_offsets that are not two rising numbers from 0 up");
    }
    t->n_dims = (uint32_t)n_dims;
    bits = dtypes[d].bits;
    for (size_t i = 0; i < n_dims; i++) {
        if (t->shape[i] == 0) return entry_err(out->name, m, e, "has a shape with a zero");
        if (__builtin_mul_overflow(bits, t->shape[i], &bits))
            return entry_err(out->name, m, e, "has a shape that is too big");
    }
    out->begin = offsets[0];
    out->end = offsets[1];
    t->n_bytes = out->end - out->begin;
    if (bits % 8 != 0 || bits / 8 != t->n_bytes) {
        return entry_err(out->name, m, e, "has data_offsets that do not agree with its dtype and shape");
    }
    return true;
}

static bool check_metadata(const json_t *o, const struct file_map *m, struct err *e) {
    const char *key;
    json_t *value;
    bool ok = json_is_object(o);
    json_object_foreach((json_t *)(uintptr_t)o, key, value) ok = ok && json_is_string(value);
    return ok || err_set_param(e, ERR_LOAD, "__metadata__", "%s: __metadata__ is not an object of strings", m->name);
}

static int entry_by_begin(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* The sorted entries tile [0, n_data). */
static bool check_tiling(const struct entry *entries, size_t n, uint64_t n_data, const struct file_map *m,
                         struct err *e) {
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const struct entry *t = &entries[i];
        if (t->begin != at || t->end > n_data) {
            return load_err(e, t->name,
                            "%s: tensor '%s' starts at data offset %" PRIu64 " and ends at %" PRIu64
                            "; it should start at %" PRIu64 " and the data ends at %" PRIu64,
                            m->name, name_shown(t->name).text, t->begin, t->end, at, n_data);
        }
        at = t->end;
    }
    if (at == n_data) return true;
    return err_set(e, ERR_LOAD, "%s: no tensor covers the data from offset %" PRIu64 " to %" PRIu64, m->name, at,
                   n_data);
}

static bool read_entries(struct tensor_file *f, size_t map, json_t *header, struct entry *entries, uint64_t n_header,
                         struct err *e) {
    const struct file_map *m = &f->maps[map];
    size_t n = 0;
    const char *key;
    json_t *value;
    json_object_foreach(header, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            if (!check_metadata(value, m, e)) return false;
            continue;
        }
        struct entry *entry = &entries[n++];
        *entry = (struct entry){.name = name_of(key, strlen(key))};
        if (entry->name.n == 0 || entry->name.n > TENSOR_NAME_BYTES_MAX) {
            return entry_err(entry->name, m, e, "has a name that is empty or too long");
        }
        if (!read_entry(value, entry, m, e)) return false;
    }
    qsort(entries, n, sizeof *entries, entry_by_begin);
    if (!check_tiling(entries, n, m->n - n_header, m, e)) return false;
    for (size_t i = 0; i < n; i++) {
        entries[i].tensor.data = m->data + n_header + entries[i].begin;
        if (!tensor_file_add(f, entries[i].name, &entries[i].tensor, map, e)) return false;
    }
    return true;
}

bool safetensors_read(struct tensor_file *f, size_t map, struct err *e) {
    const struct file_map *m = &f->maps[map];
    uint64_t n;
    if (m->n < sizeof n) return err_set(e, ERR_LOAD, "%s: too short for a safetensors file", m->name);
    memcpy(&n, m->data, sizeof n);
    if (n == 0 || n > SAFETENSORS_HEADER_MAX || n > m->n - sizeof n) {
        return err_set(e, ERR_LOAD,
                       "%s: the header length at offset 0 is %" PRIu64 "; the file has %zu bytes and the limit is %d",
                       m->name, n, m->n, SAFETENSORS_HEADER_MAX);
    }
    const char *text = (const char *)m->data + sizeof n;
    if (text[0] != '{') return err_set(e, ERR_LOAD, "%s: the header at offset 8 does not start with '{'", m->name);
    struct err inner;
    json_t *header = json_parse(text, n, &json_bounds, &inner);
    if (!header) return err_set(e, ERR_LOAD, "%s: the header at offset 8 is not valid: %.400s", m->name, inner.message);
    ASSERT(json_is_object(header));                                                /* it starts with '{' */
    struct entry *entries = calloc(json_object_size(header) + 1, sizeof *entries); /* the tree was larger */
    bool ok = entries != NULL || err_set(e, ERR_LOAD, "%s: no memory for the list of tensors", m->name);
    ok = ok && read_entries(f, map, header, entries, sizeof n + n, e);
    free(entries);
    json_decref(header);
    return ok;
}

bool safetensors_set_config(struct tensor_file *f, const char *text, size_t n, struct err *e) {
    struct err inner;
    if (n > CONFIG_BYTES_MAX) return err_set(e, ERR_LOAD, "config.json has more than %d bytes", CONFIG_BYTES_MAX);
    f->config_text = malloc(n + 1);
    if (!f->config_text) return err_set(e, ERR_LOAD, "No memory for config.json");
    memcpy(f->config_text, text, n);
    f->n_config = n;
    const struct json_limits limits = {.depth_max = 16, .amplification = 1, .slack_bytes = 16 << 20};
    f->config = json_parse(f->config_text, n, &limits, &inner);
    if (!f->config) return err_set(e, ERR_LOAD, "config.json is not valid: %.400s", inner.message);
    if (!json_is_object(f->config)) return err_set(e, ERR_LOAD, "config.json is not an object");
    return true;
}
