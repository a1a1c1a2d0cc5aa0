/* gguf_values.c - typed access to the metadata of a GGUF file that gguf.c has checked.
 *
 * Any thread. Numbers are read with memcpy: nothing in the key values is aligned.
 */
#include "engine/model/tensor_file_int.h"

#include <math.h>
#include <string.h>

const struct gguf_value *gguf_find(const struct tensor_file *f, const char *key) {
    long i = name_set_find(&f->key_set, name_of(key, strlen(key)));
    return i == NAME_ABSENT ? NULL : &f->values[i];
}

bool gguf_has(const struct tensor_file *f, const char *key) {
    return gguf_find(f, key) != NULL;
}
size_t gguf_key_count(const struct tensor_file *f) {
    return f->n_values;
}

const char *gguf_key_at(const struct tensor_file *f, size_t i, size_t *n) {
    ASSERT(i < f->n_values);
    *n = f->keys[i].n;
    return f->keys[i].s;
}

/* An integer of any width that fits an i64; u64 above that is no count of anything here. */
static bool read_integer(enum gguf_type type, const uint8_t *p, int64_t *out) {
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v;
    memcpy(&v, p, gguf_type_bytes(type));
    switch (type) {
    case GGUF_BOOL:
    case GGUF_U8:
        *out = v.u8;
        return true;
    case GGUF_I8:
        *out = v.i8;
        return true;
    case GGUF_U16:
        *out = v.u16;
        return true;
    case GGUF_I16:
        *out = v.i16;
        return true;
    case GGUF_U32:
        *out = v.u32;
        return true;
    case GGUF_I32:
        *out = v.i32;
        return true;
    case GGUF_U64:
        *out = (int64_t)v.u64;
        return v.u64 <= INT64_MAX;
    case GGUF_I64:
        *out = v.i64;
        return true;
    default:
        return false;
    }
}

bool gguf_get_u32(const struct tensor_file *f, const char *key, uint32_t *out) {
    const struct gguf_value *v = gguf_find(f, key);
    int64_t n;
    if (!v || v->type == GGUF_BOOL || !read_integer(v->type, v->data, &n) || n < 0 || n > UINT32_MAX) return false;
    *out = (uint32_t)n;
    return true;
}

bool gguf_get_f32(const struct tensor_file *f, const char *key, float *out) {
    const struct gguf_value *v = gguf_find(f, key);
    if (!v) return false;
    if (v->type == GGUF_F32) memcpy(out, v->data, sizeof *out);
    if (v->type == GGUF_F64) {
        double d;
        memcpy(&d, v->data, sizeof d);
        if (fabs(d) > 3.4e38) d = INFINITY; /* out of range for a float: let the caller's range check see it */
        *out = (float)d;
    }
    return v->type == GGUF_F32 || v->type == GGUF_F64;
}

bool gguf_get_bool(const struct tensor_file *f, const char *key, bool *out) {
    const struct gguf_value *v = gguf_find(f, key);
    if (!v || v->type != GGUF_BOOL) return false;
    *out = v->data[0] != 0;
    return true;
}

bool gguf_get_str(const struct tensor_file *f, const char *key, const char **out, size_t *n) {
    const struct gguf_value *v = gguf_find(f, key);
    if (!v || v->type != GGUF_STR) return false;
    *out = (const char *)v->data;
    *n = v->count;
    return true;
}

bool gguf_get_array(const struct tensor_file *f, const char *key, struct gguf_array *out) {
    const struct gguf_value *v = gguf_find(f, key);
    if (!v || v->type != GGUF_ARR) return false;
    *out = (struct gguf_array){.type = v->item, .count = v->count, .data = v->data, .marks = v->marks};
    return true;
}

bool gguf_array_str(const struct gguf_array *a, uint64_t i, const char **out, size_t *n) {
    if (a->type != GGUF_STR || i >= a->count) return false;
    const uint8_t *p = (const uint8_t *)a->data + a->marks[i / GGUF_MARK_STRIDE];
    uint64_t length;
    memcpy(&length, p, sizeof length);
    for (uint64_t left = i % GGUF_MARK_STRIDE; left > 0; left--) {
        p += sizeof length + length;
        memcpy(&length, p, sizeof length);
    }
    *out = (const char *)p + sizeof length;
    *n = length;
    return true;
}

bool gguf_array_f32(const struct gguf_array *a, uint64_t i, float *out) {
    if (a->type != GGUF_F32 || i >= a->count) return false;
    memcpy(out, (const uint8_t *)a->data + i * sizeof *out, sizeof *out);
    return true;
}

bool gguf_array_i64(const struct gguf_array *a, uint64_t i, int64_t *out) {
    size_t bytes = gguf_type_bytes(a->type);
    if (bytes == 0 || i >= a->count) return false;
    return read_integer(a->type, (const uint8_t *)a->data + i * bytes, out);
}
