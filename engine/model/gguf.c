/* gguf.c - reads a GGUF file (versions 2 and 3, little-endian) from its mapping into checked tables.
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
 * 3. After gguf_read: keys and tensor names are unique and not empty, a tensor's dimensions are > 0, its row is
 *    whole blocks, its bytes lie in the data part, start aligned, and belong to it alone.
 */
#include "engine/model/tensor_file_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    GGUF_NAME_BYTES_MAX = 63,    /* GGML_MAX_NAME - 1 */
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_ALIGNMENT_MAX = 1 << 20,
    GGUF_KV_BYTES_MIN = 8 + 1 + 4 + 1,             /* key length, a key of 1, type, a value of 1 */
    GGUF_TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name length, a name of 1, n_dims, one dim, type, offset */
};

/* ---- Types ---- */

static const struct {
    const char *name;
    uint8_t bytes; /* 0: not of fixed size */
} value_types[GGUF_TYPES] = {
    [GGUF_U8] = {"u8", 1},   [GGUF_I8] = {"i8", 1},   [GGUF_U16] = {"u16", 2},      [GGUF_I16] = {"i16", 2},
    [GGUF_U32] = {"u32", 4}, [GGUF_I32] = {"i32", 4}, [GGUF_F32] = {"f32", 4},      [GGUF_BOOL] = {"bool", 1},
    [GGUF_U64] = {"u64", 8}, [GGUF_I64] = {"i64", 8}, [GGUF_F64] = {"f64", 8},      [GGUF_STR] = {"string", 0},
    [GGUF_ARR] = {"array", 0},
};

size_t gguf_type_bytes(enum gguf_type t) { return value_types[t].bytes; }

const char *gguf_type_name(enum gguf_type t) {
    ASSERT(t < GGUF_TYPES);
    return value_types[t].name;
}

/* Element types by their number in the file; dtype DT_COUNT: known, but no kernel reads it. */
static const struct {
    const char *name;
    enum dtype dtype;
} tensor_types[] = {
    [0] = {"F32", DT_F32},       [1] = {"F16", DT_F16},       [2] = {"Q4_0", DT_Q4_0},     [3] = {"Q4_1", DT_COUNT},
    [6] = {"Q5_0", DT_Q5_0},     [7] = {"Q5_1", DT_COUNT},    [8] = {"Q8_0", DT_Q8_0},     [9] = {"Q8_1", DT_COUNT},
    [10] = {"Q2_K", DT_COUNT},   [11] = {"Q3_K", DT_COUNT},   [12] = {"Q4_K", DT_Q4_K},    [13] = {"Q5_K", DT_Q5_K},
    [14] = {"Q6_K", DT_Q6_K},    [15] = {"Q8_K", DT_COUNT},   [16] = {"IQ2_XXS", DT_COUNT}, [17] = {"IQ2_XS", DT_COUNT},
    [18] = {"IQ3_XXS", DT_COUNT}, [19] = {"IQ1_S", DT_COUNT}, [20] = {"IQ4_NL", DT_COUNT}, [21] = {"IQ3_S", DT_COUNT},
    [22] = {"IQ2_S", DT_COUNT},  [23] = {"IQ4_XS", DT_COUNT}, [24] = {"I8", DT_COUNT},     [25] = {"I16", DT_COUNT},
    [26] = {"I32", DT_COUNT},    [27] = {"I64", DT_COUNT},    [28] = {"F64", DT_COUNT},    [29] = {"IQ1_M", DT_COUNT},
    [30] = {"BF16", DT_BF16},    [34] = {"TQ1_0", DT_COUNT},  [35] = {"TQ2_0", DT_COUNT},  [39] = {"MXFP4", DT_COUNT},
    [40] = {"NVFP4", DT_COUNT},
};

/* ---- Cursor ---- */

struct cursor {
    const uint8_t *data;
    size_t n, at;
    const char *file;     /* for messages */
    uint64_t n_strings;   /* elements of string arrays so far */
    uint32_t alignment;
    uint64_t data_start;  /* of the tensor data */
    struct err *e;
};

static bool cursor_has(const struct cursor *c, uint64_t n) { return n <= c->n - c->at; }

/* memcpy of a little-endian number; `what` names it in the message. */
static bool cursor_take(struct cursor *c, void *out, size_t n, const char *what) {
    if (!cursor_has(c, n)) return err_set(c->e, ERR_LOAD, "%s ends inside %s (offset %zu)", c->file, what, c->at);
    memcpy(out, c->data + c->at, n);
    c->at += n;
    return true;
}

/* A string with its length in front, left in the mapping. */
static bool cursor_string(struct cursor *c, const uint8_t **s, uint64_t *n) {
    uint64_t length;
    if (c->n - c->at < sizeof length) return false;
    memcpy(&length, c->data + c->at, sizeof length);
    if (length > c->n - c->at - sizeof length) return false;
    *s = c->data + c->at + sizeof length;
    *n = length;
    c->at += sizeof length + length;
    return true;
}

/* ---- Key values ---- */

static bool read_strings(struct cursor *c, struct name key, struct gguf_value *v) {
    size_t start = c->at;
    if (v->count > GGUF_STRINGS_MAX - c->n_strings || v->count > (c->n - c->at) / sizeof(uint64_t)) {
        return load_err(c->e, key, "Key '%s' has %" PRIu64 " strings, more than the file or the limit of %d holds (offset %zu)",
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
    uint32_t item;
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
    uint32_t type;
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
        return load_err(c->e, key, "Key '%s' is a bool of value %u (offset %zu)", name_shown(key).text, v->data[0], start);
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
            return err_set(c->e, ERR_LOAD, "Key number %" PRIu64 " goes past the end of the file (offset %zu)", i, start);
        }
        if (n == 0 || n > GGUF_KEY_BYTES_MAX) {
            return err_set(c->e, ERR_LOAD, "Key number %" PRIu64 " has a name of %" PRIu64 " bytes; 1 to %d are allowed (offset %zu)",
                           i, n, GGUF_KEY_BYTES_MAX, start);
        }
        f->keys[i] = name_of((const char *)s, n);
        f->n_values = i + 1; /* before the value: what it allocates is freed with the file */
        if (!read_value(c, f->keys[i], &f->values[i])) return false;
    }
    long twice;
    if (!name_set_init(&f->key_set, f->keys, f->n_values, &twice)) return err_set(c->e, ERR_LOAD, "No memory for the keys");
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
    if (c->alignment != 0 && (c->alignment & (c->alignment - 1)) == 0 && c->alignment <= GGUF_ALIGNMENT_MAX) return true;
    return load_err(c->e, key, "Key 'general.alignment' is %" PRIu32 ", not a power of two up to %d", c->alignment,
                    GGUF_ALIGNMENT_MAX);
}

/* ---- Tensors ---- */

static bool tensor_err(struct cursor *c, struct name name, size_t at, const char *text) {
    return load_err(c->e, name, "Tensor '%s' %s (offset %zu)", name_shown(name).text, text, at);
}

/* Fills type, shape (outermost first; the file has it innermost first) and n_bytes. */
static bool read_shape(struct cursor *c, struct name name, struct tensor *t) {
    size_t start = c->at;
    uint32_t n_dims, type;
    uint64_t ne[TENSOR_DIMS_MAX];
    if (!cursor_has(c, sizeof n_dims)) return tensor_err(c, name, start, "goes past the end of the file");
    cursor_take(c, &n_dims, sizeof n_dims, "a shape");
    if (n_dims < 1 || n_dims > TENSOR_DIMS_MAX) return tensor_err(c, name, start, "does not have 1 to 4 dimensions");
    if (!cursor_has(c, n_dims * sizeof ne[0] + sizeof type)) {
        return tensor_err(c, name, start, "goes past the end of the file");
    }
    cursor_take(c, ne, n_dims * sizeof ne[0], "a shape");
    cursor_take(c, &type, sizeof type, "a type");
    if (type >= ARRAY_COUNT(tensor_types) || !tensor_types[type].name || tensor_types[type].dtype == DT_COUNT) {
        bool known = type < ARRAY_COUNT(tensor_types) && tensor_types[type].name;
        return load_err(c->e, name, "Tensor '%s' has %s type %s (%" PRIu32 "); F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, "
                        "Q5_K and Q6_K can be loaded (offset %zu)", name_shown(name).text, known ? "the" : "an unknown",
                        known ? tensor_types[type].name : "number", type, start);
    }
    t->type = tensor_types[type].dtype;
    t->type_name = tensor_types[type].name;
    t->n_dims = n_dims;
    uint64_t block = dtype_block_len(t->type), count = 1;
    for (uint32_t d = 0; d < n_dims; d++) {
        if (ne[d] == 0) return tensor_err(c, name, start, "has a dimension of zero");
        if (__builtin_mul_overflow(count, ne[d], &count)) return tensor_err(c, name, start, "has too many elements");
        t->shape[n_dims - 1 - d] = ne[d];
    }
    if (ne[0] % block != 0) return tensor_err(c, name, start, "has rows that are not whole blocks of its type");
    if (__builtin_mul_overflow(count / block, (uint64_t)dtype_block_bytes(t->type), &t->n_bytes)) {
        return tensor_err(c, name, start, "has too many bytes");
    }
    return true;
}

/* data holds the offset from the start of the tensor data, which is not known before all infos are read. */
static bool read_tensor(struct cursor *c, struct tensor_file *f, uint64_t i) {
    size_t start = c->at;
    const uint8_t *s;
    uint64_t n, offset;
    if (!cursor_string(c, &s, &n)) {
        return err_set(c->e, ERR_LOAD, "Tensor number %" PRIu64 " goes past the end of the file (offset %zu)", i, start);
    }
    struct name name = name_of((const char *)s, size_min(n, UINT32_MAX));
    if (n == 0 || n > GGUF_NAME_BYTES_MAX || memchr(s, '\0', n)) {
        return load_err(c->e, name, "Tensor number %" PRIu64 " ('%s') has a name of %" PRIu64 " bytes; 1 to %d without NUL "
                        "are allowed (offset %zu)", i, name_shown(name).text, n, GGUF_NAME_BYTES_MAX, start);
    }
    struct tensor t = {0};
    if (!read_shape(c, name, &t)) return false;
    if (!cursor_has(c, sizeof offset)) return tensor_err(c, name, start, "goes past the end of the file");
    cursor_take(c, &offset, sizeof offset, "an offset");
    if (offset % c->alignment != 0) return tensor_err(c, name, start, "has data that is not aligned");
    if (offset > c->n || t.n_bytes > c->n) return tensor_err(c, name, start, "has data past the end of the file");
    t.data = (const void *)(uintptr_t)offset;
    return tensor_file_add(f, name, &t, 0, c->e);
}

static int tensor_by_data(const void *a, const void *b) {
    const struct tensor *x = *(const struct tensor *const *)a, *y = *(const struct tensor *const *)b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static bool check_overlap(struct cursor *c, const struct tensor_file *f) {
    const struct tensor **order = malloc((f->n_tensors + 1) * sizeof(const struct tensor *));
    if (!order) return err_set(c->e, ERR_LOAD, "No memory for the list of tensors");
    for (size_t i = 0; i < f->n_tensors; i++) order[i] = &f->tensors[i];
    qsort(order, f->n_tensors, sizeof *order, tensor_by_data);
    bool ok = true;
    for (size_t i = 1; ok && i < f->n_tensors; i++) {
        const struct tensor *a = order[i - 1], *b = order[i];
        if ((const uint8_t *)a->data + a->n_bytes <= (const uint8_t *)b->data) continue;
        ok = load_err(c->e, name_of(b->name, strlen(b->name)), "Tensors '%s' and '%s' overlap (offset %zu)",
                      name_shown(name_of(a->name, strlen(a->name))).text,
                      name_shown(name_of(b->name, strlen(b->name))).text, (size_t)((const uint8_t *)b->data - c->data));
    }
    free(order);
    return ok;
}

/* Offsets become pointers, now that the end of the infos is known. */
static bool place_tensors(struct cursor *c, struct tensor_file *f) {
    c->data_start = round_up(c->at, c->alignment);
    f->n_header = c->at;
    for (size_t i = 0; i < f->n_tensors; i++) {
        struct tensor *t = &f->tensors[i];
        uint64_t start = c->data_start + (uintptr_t)t->data; /* both <= the file's size and aligned: no overflow */
        if (start > c->n || t->n_bytes > c->n - start) {
            return tensor_err(c, f->tensor_names[i], start, "has data past the end of the file");
        }
        t->data = c->data + start;
    }
    return check_overlap(c, f);
}

static bool read_header(struct cursor *c, uint64_t *n_tensors, uint64_t *n_keys) {
    char magic[4];
    uint32_t version;
    if (!cursor_take(c, magic, sizeof magic, "the magic")) return false;
    if (memcmp(magic, "GGUF", 4) != 0) return err_set(c->e, ERR_LOAD, "%s is not a GGUF file: the magic is missing (offset 0)", c->file);
    if (!cursor_take(c, &version, sizeof version, "the version")) return false;
    if (version != 2 && version != 3) {
        return err_set(c->e, ERR_LOAD, "%s has GGUF version %" PRIu32 "; versions 2 and 3, little-endian, can be loaded (offset 4)",
                       c->file, version);
    }
    if (!cursor_take(c, n_tensors, sizeof *n_tensors, "the number of tensors (n_tensors)")) return false;
    if (!cursor_take(c, n_keys, sizeof *n_keys, "the number of keys (n_kv)")) return false;
    uint64_t left = c->n - c->at;
    if (*n_tensors > left / GGUF_TENSOR_BYTES_MIN || *n_tensors > TENSORS_MAX) {
        return err_set(c->e, ERR_LOAD, "%s claims %" PRIu64 " tensors (n_tensors), more than the file or the limit of %d holds (offset 8)",
                       c->file, *n_tensors, TENSORS_MAX);
    }
    if (*n_keys > left / GGUF_KV_BYTES_MIN || *n_keys > GGUF_KEYS_MAX) {
        return err_set(c->e, ERR_LOAD, "%s claims %" PRIu64 " keys (n_kv), more than the file or the limit of %d holds (offset 16)",
                       c->file, *n_keys, GGUF_KEYS_MAX);
    }
    return true;
}

bool gguf_read(struct tensor_file *f, struct err *e) {
    struct cursor c = {.data = f->maps[0].data, .n = f->maps[0].n, .file = f->maps[0].name, .e = e};
    uint64_t n_tensors, n_keys;
    if (!read_header(&c, &n_tensors, &n_keys)) return false;
    if (!read_keys(&c, f, n_keys) || !read_alignment(&c, f)) return false;
    for (uint64_t i = 0; i < n_tensors; i++) {
        if (!read_tensor(&c, f, i)) return false;
    }
    return place_tensors(&c, f);
}
