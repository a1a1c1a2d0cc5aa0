/* gguf_tensors.c - reads the tensor infos of a GGUF file and places the tensors in the mapping.
 *
 * Owner: the thread that opens the file.
 *
 * Invariants
 * 1. As gguf.c: every read asks first, no sum or product is taken before it is known to fit.
 * 2. After gguf_read_tensors a tensor's dimensions are > 0, its row is whole blocks, its bytes lie in the data part,
 *    start at the file's alignment, and belong to it alone.
 */
#include "engine/model/gguf_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { GGUF_NAME_BYTES_MAX = 63 }; /* GGML_MAX_NAME - 1 */

/* Element types by their number in the file; dtype DT_COUNT: known, but no kernel reads it. */
static const struct {
    const char *name;
    enum dtype dtype;
} tensor_types[] = {
    [0] = {"F32", DT_F32},       [1] = {"F16", DT_F16},        [2] = {"Q4_0", DT_Q4_0},
    [3] = {"Q4_1", DT_COUNT},    [6] = {"Q5_0", DT_Q5_0},      [7] = {"Q5_1", DT_COUNT},
    [8] = {"Q8_0", DT_Q8_0},     [9] = {"Q8_1", DT_COUNT},     [10] = {"Q2_K", DT_COUNT},
    [11] = {"Q3_K", DT_COUNT},   [12] = {"Q4_K", DT_Q4_K},     [13] = {"Q5_K", DT_Q5_K},
    [14] = {"Q6_K", DT_Q6_K},    [15] = {"Q8_K", DT_COUNT},    [16] = {"IQ2_XXS", DT_COUNT},
    [17] = {"IQ2_XS", DT_COUNT}, [18] = {"IQ3_XXS", DT_COUNT}, [19] = {"IQ1_S", DT_COUNT},
    [20] = {"IQ4_NL", DT_COUNT}, [21] = {"IQ3_S", DT_COUNT},   [22] = {"IQ2_S", DT_COUNT},
    [23] = {"IQ4_XS", DT_COUNT}, [24] = {"I8", DT_COUNT},      [25] = {"I16", DT_COUNT},
    [26] = {"I32", DT_COUNT},    [27] = {"I64", DT_COUNT},     [28] = {"F64", DT_COUNT},
    [29] = {"IQ1_M", DT_COUNT},  [30] = {"BF16", DT_BF16},     [34] = {"TQ1_0", DT_COUNT},
    [35] = {"TQ2_0", DT_COUNT},  [39] = {"MXFP4", DT_COUNT},   [40] = {"NVFP4", DT_COUNT},
};

static bool tensor_err(struct cursor *c, struct name name, size_t at, const char *text) {
    return load_err(c->e, name, "Tensor '%s' %s (offset %zu)", name_shown(name).text, text, at);
}

/* Fills type, shape (outermost first; the file has it innermost first) and n_bytes. */
static bool read_shape(struct cursor *c, struct name name, struct tensor *t) {
    size_t start = c->at;
    uint32_t n_dims = 0, type = 0;
    uint64_t ne[TENSOR_DIMS_MAX] = {0};
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
        return load_err(c->e, name,
                        "Tensor '%s' has %s type %s (%" PRIu32 "); F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, "
                        "Q5_K and Q6_K can be loaded (offset %zu)",
                        name_shown(name).text, known ? "the" : "an unknown", known ? tensor_types[type].name : "number",
                        type, start);
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
    uint64_t n, offset = 0;
    if (!cursor_string(c, &s, &n)) {
        return err_set(c->e, ERR_LOAD, "Tensor number %" PRIu64 " goes past the end of the file (offset %zu)", i,
                       start);
    }
    struct name name = name_of((const char *)s, size_min(n, UINT32_MAX));
    if (n == 0 || n > GGUF_NAME_BYTES_MAX || memchr(s, '\0', n)) {
        return load_err(c->e, name,
                        "Tensor number %" PRIu64 " ('%s') has a name of %" PRIu64 " bytes; 1 to %d without NUL "
                        "are allowed (offset %zu)",
                        i, name_shown(name).text, n, GGUF_NAME_BYTES_MAX, start);
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
    uint64_t data_start = round_up(c->at, c->alignment);
    f->n_header = c->at;
    for (size_t i = 0; i < f->n_tensors; i++) {
        struct tensor *t = &f->tensors[i];
        uint64_t start = data_start + (uintptr_t)t->data; /* both <= the file's size and aligned: no overflow */
        if (start > c->n || t->n_bytes > c->n - start) {
            return tensor_err(c, f->tensor_names[i], start, "has data past the end of the file");
        }
        t->data = c->data + start;
    }
    return check_overlap(c, f);
}

bool gguf_read_tensors(struct cursor *c, struct tensor_file *f, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (!read_tensor(c, f, i)) return false;
    }
    return place_tensors(c, f);
}
