/* gguf.c - reads the header and the key values of a GGUF file (versions 2 and 3, little-endian) from its mapping into
 * checked tables; gguf_tensors.c goes on with the tensor infos.
 *
 * Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 *   magic, version, n_tensors, n_kv | key values | tensor infos | padding | tensor data
 * One pass with a cursor. A value stays where it is; the table remembers where. Of an array of strings every
 * 8th start is remembered, so that any element is found in at most 7 steps at 1 byte per string.
 *
 * Owner: the thread that opens the file.
 *
 * Invariants
 * 1. The cursor never passes the end: every read asks cursor_has first, and no sum or product that involves a
 *    number of the file is taken before it is known to fit.
 * 2. Nothing is allocated in proportion to a count before the count was compared with the bytes that are left
 *    and with a named limit.
 * 3. After gguf_read keys are unique and not empty, and of every value all bytes are inside the file.
 */
#include "engine/model/gguf_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_ALIGNMENT_MAX = 1 << 20,
    GGUF_KV_BYTES_MIN = 8 + 1 + 4 + 1,             /* key length, a key of 1, type, a value of 1 */
    GGUF_TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name length, a name of 1, n_dims, a dimension, type, offset */
};

/* ---- Types ---- */

static const struct {
    const char *name;
    uint8_t bytes; /* 0: not of fixed size */
} value_types[GGUF_TYPES] = {
    [GGUF_U8] = {"u8", 1},     [GGUF_I8] = {"i8", 1},   [GGUF_U16] = {"u16", 2}, [GGUF_I16] = {"i16", 2},
    [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4}, [GGUF_F32] = {"f32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8}, [GGUF_F64] = {"f64", 8}, [GGUF_STR] = {"string", 0},
    [GGUF_ARR] = {"array", 0},
};

size_t gguf_type_bytes(enum gguf_type t) {
    return value_types[t].bytes;
}

const char *gguf_type_name(enum gguf_type t) {
    ASSERT(t < GGUF_TYPES);
    return value_types[t].name;
}

/* ---- Key values ---- */

static bool read_strings(struct cursor *c, struct name key, struct gguf_value *v) {
    size_t start = c->at;
    if (v->count > GGUF_STRINGS_MAX - c->n_strings || v->count > (c->n - c->at) / sizeof(uint64_t)) {
        return load_err(c->e, key,
                        "Key '%s' has %" PRIu64 " strings, more than the file or the limit of %d holds (offset %zu)",
                        name_shown(key).text, v->count, GGUF_STRINGS_MAX, start);
    }
    c->n_strings += v->count;
    v->data = c->data + start;
    v->marks = malloc(div_up(v->count + 1, GGUF_MARK_STRIDE) * sizeof *v->marks);
    if (!v->marks) return load_err(c->e, key, "No memory for the strings of key '%s'", name_shown(key).text);
    for (uint64_t i = 0; i < v->count; i++) {
        if (i % GGUF_MARK_STRIDE == 0) v->marks[i / GGUF_MARK_STRIDE] = c->at - start;
        const uint8_t *s;
        uint64_t n;
        if (!cursor_string(c, &s, &n)) {
            return load_err(c->e, key, "String %" PRIu64 " of key '%s' goes past the end of the file (offset %zu)", i,
                            name_shown(key).text, c->at);
        }
    }
    return true;
}

static bool read_array(struct cursor *c, struct name key, struct gguf_value *v) {
    uint32_t item = 0;
    size_t start = c->at;
    if (!cursor_take(c, &item, sizeof item, "an array") || !cursor_take(c, &v->count, sizeof v->count, "an array")) {
        return load_err(c->e, key, "The file ends inside key '%s' (offset %zu)", name_shown(key).text, start);
    }
    if (item >= GGUF_TYPES || item == GGUF_ARR) {
        return load_err(c->e, key, "Key '%s' is an array of %s (type %" PRIu32 ") (offset %zu)", name_shown(key).text,
                        item == GGUF_ARR ? "arrays" : "an unknown type", item, start);
    }
    v->item = (enum gguf_type)item;
    if (item == GGUF_STR) return read_strings(c, key, v);
    if (v->count > (c->n - c->at) / gguf_type_bytes(v->item)) {
        return load_err(c->e, key, "Key '%s' has %" PRIu64 " elements, more than the file holds (offset %zu)",
                        name_shown(key).text, v->count, start);
    }
    v->data = c->data + c->at;
    c->at += v->count * gguf_type_bytes(v->item);
    return true;
}

static bool read_value(struct cursor *c, struct name key, struct gguf_value *v) {
    uint32_t type = 0;
    size_t start = c->at;
    if (!cursor_take(c, &type, sizeof type, "a key's type")) {
        return load_err(c->e, key, "The file ends inside key '%s' (offset %zu)", name_shown(key).text, start);
    }
    if (type >= GGUF_TYPES) {
        return load_err(c->e, key, "Key '%s' has the unknown type %" PRIu32 " (offset %zu)", name_shown(key).text, type,
                        start);
    }
    *v = (struct gguf_value){.type = (enum gguf_type)type, .count = 1};
    if (type == GGUF_ARR) return read_array(c, key, v);
    bool ok;
    if (type == GGUF_STR) {
        ok = cursor_string(c, &v->data, &v->count);
    } else {
        size_t bytes = gguf_type_bytes(v->type);
        v->data = c->data + c->at;
        ok = cursor_has(c, bytes);
        if (ok) c->at += bytes;
    }
    if (!ok) {
        return load_err(c->e, key, "The value of key '%s' goes past the end of the file (offset %zu)",
                        name_shown(key).text, c->at);
    }
    if (type == GGUF_BOOL && v->data[0] > 1) {
        return load_err(c->e, key, "Key '%s' is a bool of value %u (offset %zu)", name_shown(key).text, v->data[0],
                        start);
    }
    return true;
}

static bool read_keys(struct cursor *c, struct tensor_file *f, uint64_t count) {
    f->values = calloc(count + 1, sizeof *f->values);
    f->keys = calloc(count + 1, sizeof *f->keys);
    if (!f->values || !f->keys) return err_set(c->e, ERR_LOAD, "No memory for %" PRIu64 " keys", count);
    for (uint64_t i = 0; i < count; i++) {
        size_t start = c->at;
        const uint8_t *s;
        uint64_t n;
        if (!cursor_string(c, &s, &n)) {
            return err_set(c->e, ERR_LOAD, "Key number %" PRIu64 " goes past the end of the file (offset %zu)", i,
                           start);
        }
        if (n == 0 || n > GGUF_KEY_BYTES_MAX) {
            return err_set(c->e, ERR_LOAD,
                           "Key number %" PRIu64 " has a name of %" PRIu64 " bytes; 1 to %d are allowed (offset %zu)",
                           i, n, GGUF_KEY_BYTES_MAX, start);
        }
        f->keys[i] = name_of((const char *)s, n);
        f->n_values = i + 1; /* before the value: what it allocates is freed with the file */
        if (!read_value(c, f->keys[i], &f->values[i])) return false;
    }
    long twice;
    if (!name_set_init(&f->key_set, f->keys, f->n_values, &twice))
        return err_set(c->e, ERR_LOAD, "No memory for the keys");
    if (twice == NAME_ABSENT) return true;
    return load_err(c->e, f->keys[twice], "Key '%s' is there twice (the second time at offset %zu)",
                    name_shown(f->keys[twice]).text, (size_t)((const uint8_t *)f->keys[twice].s - c->data));
}

static bool read_alignment(struct cursor *c, const struct tensor_file *f) {
    struct name key = name_of("general.alignment", 17);
    c->alignment = GGUF_ALIGNMENT_DEFAULT;
    const struct gguf_value *v = gguf_find(f, key.s);
    if (!v) return true;
    if (v->type != GGUF_U32) {
        return load_err(c->e, key, "Key 'general.alignment' is of type %s, not u32", gguf_type_name(v->type));
    }
    memcpy(&c->alignment, v->data, sizeof c->alignment);
    if (c->alignment != 0 && (c->alignment & (c->alignment - 1)) == 0 && c->alignment <= GGUF_ALIGNMENT_MAX)
        return true;
    return load_err(c->e, key, "Key 'general.alignment' is %" PRIu32 ", not a power of two up to %d", c->alignment,
                    GGUF_ALIGNMENT_MAX);
}

/* ---- The whole ---- */

static bool read_header(struct cursor *c, uint64_t *n_tensors, uint64_t *n_keys) {
    char magic[4];
    uint32_t version = 0;
    if (!cursor_take(c, magic, sizeof magic, "the magic")) return false;
    if (memcmp(magic, "GGUF", 4) != 0)
        return err_set(c->e, ERR_LOAD, "%s is not a GGUF file: the magic is missing (offset 0)", c->file);
    if (!cursor_take(c, &version, sizeof version, "the version")) return false;
    if (version != 2 && version != 3) {
        return err_set(c->e, ERR_LOAD,
                       "%s has GGUF version %" PRIu32 "; versions 2 and 3, little-endian, can be loaded (offset 4)",
                       c->file, version);
    }
    if (!cursor_take(c, n_tensors, sizeof *n_tensors, "the number of tensors (n_tensors)")) return false;
    if (!cursor_take(c, n_keys, sizeof *n_keys, "the number of keys (n_kv)")) return false;
    uint64_t left = c->n - c->at;
    if (*n_tensors > left / GGUF_TENSOR_BYTES_MIN || *n_tensors > TENSORS_MAX) {
        return err_set(c->e, ERR_LOAD,
                       "%s claims %" PRIu64
                       " tensors (n_tensors), more than the file or the limit of %d holds (offset 8)",
                       c->file, *n_tensors, TENSORS_MAX);
    }
    if (*n_keys > left / GGUF_KV_BYTES_MIN || *n_keys > GGUF_KEYS_MAX) {
        return err_set(c->e, ERR_LOAD,
                       "%s claims %" PRIu64 " keys (n_kv), more than the file or the limit of %d holds (offset 16)",
                       c->file, *n_keys, GGUF_KEYS_MAX);
    }
    return true;
}

bool gguf_read(struct tensor_file *f, struct err *e) {
    struct cursor c = {.data = f->maps[0].data, .n = f->maps[0].n, .file = f->maps[0].name, .e = e};
    uint64_t n_tensors = 0, n_keys = 0;
    if (!read_header(&c, &n_tensors, &n_keys)) return false;
    if (!read_keys(&c, f, n_keys) || !read_alignment(&c, f)) return false;
    return gguf_read_tensors(&c, f, n_tensors);
}
