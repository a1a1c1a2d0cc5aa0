/* test_gguf.c - GGUF files: right ones are read as the gguf package wrote them, wrong ones are refused by name.
 *
 * The bad rows named in capitals are those of llama.cpp's tests/test-gguf.cpp (its list of cases, not its code); the
 * others are from reports about other loaders (reliability.md, rows 41 to 43).
 */
#include "tests/files/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURES "tests/fixtures/models/"

/* A file with tensors "first" F32 [8] at 0 and "second" F32 [2][4] at 32, except for what a row changes. */
struct row {
    const char *name, *expect;
    const char *magic; /* instead of GGUF */
    uint32_t version;  /* 0: 3 */
    bool version_zero;
    uint64_t n_tensors, n_keys_head; /* 0: the truth */
    void (*keys)(struct bytes *b);   /* writes the keys */
    uint64_t n_keys;
    const char *tensor; /* name of the second */
    bool n_dims_set;
    uint32_t n_dims;
    uint64_t ne[5]; /* with n_dims_set */
    uint32_t type;
    bool offset_set;
    uint64_t offset;
    size_t cut; /* bytes off the end */
    bool no_tensors;
};

static void build(struct bytes *b, const struct row *r) {
    static const uint64_t ne_first[] = {8}, ne_second[] = {4, 2};
    bytes_put(b, r->magic ? r->magic : "GGUF", 4);
    put_u32(b, r->version || r->version_zero ? r->version : 3);
    put_u64(b, r->n_tensors ? r->n_tensors : r->no_tensors ? 0 : 2);
    put_u64(b, r->n_keys_head ? r->n_keys_head : r->n_keys);
    if (r->keys) r->keys(b);
    if (!r->no_tensors) {
        put_tensor(b, "first", 1, ne_first, 0, 0);
        put_tensor(b, r->tensor ? r->tensor : "second", r->n_dims_set ? r->n_dims : 2,
                   r->n_dims_set ? r->ne : ne_second, r->type, r->offset_set ? r->offset : 32);
        put_pad(b, 32);
        bytes_put(b, NULL, 64);
    }
    b->n -= r->cut;
}

/* ---- Keys of the bad rows ---- */

static void key_too_long(struct bytes *b) {
    put_u64(b, UINT64_MAX);
    put_str(b, "padding that makes room");
}
static void key_empty(struct bytes *b) {
    key_u32(b, "", 1);
}
static void key_of_70000(struct bytes *b) {
    put_u64(b, 70000);
    bytes_put(b, NULL, 70000);
    put_u32(b, GGUF_U8);
    put_u32(b, 0);
}
static void key_bad_type(struct bytes *b) {
    put_str(b, "my_key");
    put_u32(b, GGUF_TYPES);
    put_u64(b, 0);
}
static void key_twice(struct bytes *b) {
    key_u32(b, "my_key", 1);
    key_str(b, "other", "x");
    key_u32(b, "my_key", 1);
}
static void align_13(struct bytes *b) {
    key_u32(b, "general.alignment", 13);
}
static void align_0(struct bytes *b) {
    key_u32(b, "general.alignment", 0);
}
static void align_huge(struct bytes *b) {
    key_u32(b, "general.alignment", 1u << 31);
}
static void align_i32(struct bytes *b) {
    put_str(b, "general.alignment");
    put_u32(b, GGUF_I32);
    put_u32(b, 32);
}
static void array_of_arrays(struct bytes *b) {
    key_array(b, "my_key", GGUF_ARR, 1);
    key_array(b, "", GGUF_U8, 0);
}
static void array_bad_type(struct bytes *b) {
    key_array(b, "my_key", 99, UINT64_C(1) << 60);
}
static void array_count(struct bytes *b) {
    key_array(b, "my_key", GGUF_U8, UINT64_C(1) << 60);
}
static void array_wrap(struct bytes *b) {
    key_array(b, "my_key", GGUF_U64, UINT64_C(1) << 61);
}
static void array_one_more(struct bytes *b) {
    key_array(b, "my_key", GGUF_U8, 1000);
}
static void strings_count(struct bytes *b) {
    key_array(b, "my_key", GGUF_STR, UINT64_C(1) << 60);
}
static void strings_long(struct bytes *b) {
    key_array(b, "my_key", GGUF_STR, 2);
    put_str(b, "x");
    put_u64(b, UINT64_MAX - 7);
}
static void string_long(struct bytes *b) {
    put_str(b, "my_key");
    put_u32(b, GGUF_STR);
    put_u64(b, UINT64_MAX);
}
static void bool_7(struct bytes *b) {
    key_bool(b, "my_key", 7);
}
static void key_hostile(struct bytes *b) {
    put_str(b, "\033[31m\n\xff");
    put_u32(b, GGUF_TYPES);
    put_u64(b, 0);
}

#define DIMS(...) .n_dims_set = true, .n_dims = sizeof((uint64_t[]){__VA_ARGS__}) / 8, .ne = {__VA_ARGS__}
#define OFFSET(v) .offset_set = true, .offset = (v)

static const struct row bad_rows[] = {
    {"HEADER_BAD_MAGIC", "not a GGUF file", .magic = "FUGG"},
    {"HEADER_BAD_VERSION_0", "version 0", .version_zero = true},
    {"HEADER_BAD_VERSION_1", "version 1", .version = 1},
    {"HEADER_BAD_VERSION_FUTURE", "version 4", .version = 4},
    {"big-endian", "version 50331648", .version = 0x03000000},
    {"HEADER_BAD_N_TENSORS", "n_tensors", .n_tensors = UINT64_MAX},
    {"n_tensors 2^60", "n_tensors", .n_tensors = UINT64_C(1) << 60},
    {"HEADER_BAD_N_KV", "n_kv", .n_keys_head = UINT64_MAX},
    {"n_kv 2^60", "n_kv", .n_keys_head = UINT64_C(1) << 60},
    {"more keys than there are", "Key number 1", .n_keys_head = 5},
    {"KV_BAD_KEY_SIZE", "Key number 0", .keys = key_too_long, .n_keys = 1},
    {"KV_EMPTY_KEY", "Key number 0", .keys = key_empty, .n_keys = 1},
    {"key of 70,000 bytes", "Key number 0", .keys = key_of_70000, .n_keys = 1},
    {"KV_BAD_TYPE", "'my_key'", .keys = key_bad_type, .n_keys = 1},
    {"KV_DUPLICATE_KEY", "'my_key' is there twice", .keys = key_twice, .n_keys = 3},
    {"KV_BAD_ALIGN", "general.alignment", .keys = align_13, .n_keys = 1, .no_tensors = true},
    {"alignment 0", "general.alignment", .keys = align_0, .n_keys = 1},
    {"alignment 2^31", "general.alignment", .keys = align_huge, .n_keys = 1},
    {"KV_WRONG_TYPE_ALIGN", "general.alignment", .keys = align_i32, .n_keys = 1},
    {"array of arrays", "'my_key' is an array of arrays", .keys = array_of_arrays, .n_keys = 1},
    {"array of an unknown type, 2^60", "'my_key'", .keys = array_bad_type, .n_keys = 1},
    {"array of 2^60 bytes", "'my_key'", .keys = array_count, .n_keys = 1},
    {"array of 2^61 u64", "'my_key'", .keys = array_wrap, .n_keys = 1},
    {"array just past the end", "'my_key'", .keys = array_one_more, .n_keys = 1},
    {"2^60 strings", "'my_key' has 1152921504606846976 strings", .keys = strings_count, .n_keys = 1},
    {"string length wraps in an array", "String 1 of key 'my_key'", .keys = strings_long, .n_keys = 1},
    {"string length 2^64 - 1", "'my_key'", .keys = string_long, .n_keys = 1},
    {"bool 7", "'my_key' is a bool", .keys = bool_7, .n_keys = 1},
    {"escape codes in a key", "'?[31m?\?'", .keys = key_hostile, .n_keys = 1},
    {"TENSORS_BAD_NAME_SIZE", "Tensor number 1",
     .tensor = "my_tensor_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors"},
    {"empty tensor name", "Tensor number 1", .tensor = ""},
    {"TENSORS_BAD_N_DIMS", "'second'", DIMS(1, 1, 1, 1, 8)},
    {"no dimensions", "'second'", .n_dims_set = true},
    {"TENSORS_BAD_SHAPE", "'second'", DIMS(UINT64_MAX, UINT64_MAX)},
    {"TENSORS_ZERO_DIM", "'second' has a dimension of zero", DIMS(8, 0)},
    {"TENSORS_NE_TOO_BIG", "'second'", DIMS(UINT64_C(4) * INT32_MAX, UINT64_C(4) * INT32_MAX)},
    {"product of dims is 2^64", "'second'", DIMS(UINT64_C(0x800000000000000), 32)},
    {"TENSORS_NBYTES_TOO_BIG", "'second'", DIMS(1541893760, 1541893760), .type = 30},
    {"TENSORS_NBYTES_PAD_WRAP", "'second'", DIMS(4, 1073741823, 1073741825)},
    {"TENSORS_BAD_TYPE", "'second' has an unknown type", .type = 43},
    {"a type that was removed", "'second' has an unknown type", .type = 4},
    {"a type that nobody computes with here", "'second' has the type Q2_K", .type = 10, DIMS(256)},
    {"rows that are not whole blocks", "'second'", .type = 8, DIMS(8)},
    {"TENSORS_BAD_OFFSET", "'second'", OFFSET(UINT64_MAX)},
    {"offset wraps onto the file", "'second'", OFFSET(UINT64_MAX - 31)},
    {"offset past the file", "'second'", OFFSET(1 << 20)},
    {"TENSORS_DUPLICATE_NAME", "'first' is there twice", .tensor = "first"},
    {"TENSORS_BAD_ALIGN", "general.alignment", .keys = align_13, .n_keys = 1},
    {"TENSORS_INCONSISTENT_ALIGN", "'second' has data that is not aligned", OFFSET(33)},
    {"overlap", "overlap", OFFSET(0)},
    {"DATA_NOT_ENOUGH_DATA", "'second' has data past the end", .cut = 1},
    {"DATA_BAD_ALIGN", "general.alignment", .keys = align_0, .n_keys = 1, .cut = 1},
    {"DATA_INCONSISTENT_ALIGN", "'second'", OFFSET(17)},
    {"DATA_MEM_SIZE_OVERFLOW", "'second'", DIMS(UINT64_C(0x1FFFFFFFFFFFFFF0))},
    {"only the magic", "ends inside", .no_tensors = true, .cut = 20},
    {"cut inside the infos", "n_tensors", .cut = 64 + 32 + 8},
};

static void bad_files_are_refused_by_name(void **state) {
    (void)state;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    const char *folder = temp_folder();
    for (size_t i = 0; i < ARRAY_COUNT(bad_rows); i++) {
        struct bytes b = {0};
        struct err e = {0};
        build(&b, &bad_rows[i]);
        struct tensor_file *f = tensor_file_open(temp_file(folder, "bad.gguf", b.data, b.n), &e);
        check_refused(bad_rows[i].name, f, &e, bad_rows[i].expect);
        memset(&e, 0, sizeof e);
        f = tensor_file_open_memory(b.data, b.n, NULL, 0, &e);
        check_refused(bad_rows[i].name, f, &e, bad_rows[i].expect);
        bytes_free(&b);
    }
    getrusage(RUSAGE_SELF, &after);
    assert_in_range(after.ru_maxrss - before.ru_maxrss, 0, 64 << 10); /* KiB */
    temp_remove();
}

static void every_cut_of_a_good_file_is_refused(void **state) {
    (void)state;
    struct bytes b = {0};
    build(&b, &(struct row){.keys = key_twice, .n_keys = 2});
    for (size_t n = 0; n < b.n; n++) {
        struct err e = {0};
        uint8_t *exact = malloc(n + 1); /* a sanitizer sees a read past it */
        memcpy(exact, b.data, n);
        check_refused("cut", tensor_file_open_memory(exact, n, NULL, 0, &e), &e, "");
        free(exact);
    }
    bytes_free(&b);
}

/* Counts that a huge sparse file could hold are still over a limit: memory is not taken for them. */
static void a_huge_sparse_file_is_refused(void **state) {
    (void)state;
    struct {
        uint64_t n_tensors, n_keys;
        const char *expect;
    } rows[] = {{UINT64_C(1) << 30, 0, "n_tensors"},
                {0, UINT64_C(1) << 30, "n_kv"},
                {0, 60000, "Key number 0"},
                {60000, 0, "Tensor number 0"}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct bytes b = {0};
        struct err e = {0};
        put_header(&b, rows[i].n_tensors, rows[i].n_keys);
        const char *path = temp_file(temp_folder(), "sparse.gguf", b.data, b.n);
        assert_int_equal(truncate(path, INT64_C(1) << 36), 0);
        check_refused("sparse", tensor_file_open(path, &e), &e, rows[i].expect);
        bytes_free(&b);
    }
    temp_remove();
}

static void things_that_are_not_files_are_refused(void **state) {
    (void)state;
    struct err e = {0};
    check_refused("absent", tensor_file_open("/nonexistent/model.gguf", &e), &e, "/nonexistent/model.gguf");
    check_refused("device", tensor_file_open("/dev/null", &e), &e, "not a regular file");
    const char *empty = temp_file(temp_folder(), "empty.gguf", "", 0);
    check_refused("empty", tensor_file_open(empty, &e), &e, "is empty");
    temp_remove();
}

/* ---- Good files ---- */

static void put_typed_keys(struct bytes *b) {
    put_str(b, "u8");
    put_u32(b, GGUF_U8);
    bytes_put(b, "\xff", 1);
    put_str(b, "i64");
    put_u32(b, GGUF_I64);
    put_u64(b, (uint64_t)-5);
    put_str(b, "u64");
    put_u32(b, GGUF_U64);
    put_u64(b, UINT64_C(1) << 32);
    put_str(b, "f64");
    put_u32(b, GGUF_F64);
    bytes_put(b, &(double){0.5}, 8);
    key_bool(b, "true", 1);
    key_str(b, "text", "h\xc3\xa9");
    key_array(b, "i16s", GGUF_I16, 2);
    bytes_put(b, "\x01\x00\xff\xff", 4);
    key_array(b, "f32s", GGUF_F32, 1);
    bytes_put(b, &(float){0.25f}, 4);
    key_array(b, "none", GGUF_STR, 0);
}

static void values_are_typed(void **state) {
    (void)state;
    struct bytes b = {0};
    struct err e;
    put_header(&b, 0, 9);
    put_typed_keys(&b);
    struct tensor_file *f = tensor_file_open_memory(b.data, b.n, NULL, 0, &e);
    assert_non_null(f);
    uint32_t u = 0;
    float x = 0;
    bool flag = false;
    const char *s;
    size_t n;
    int64_t v;
    struct gguf_array a;
    assert_true(gguf_get_u32(f, "u8", &u) && u == 255);
    assert_false(gguf_get_u32(f, "i64", &u)); /* negative */
    assert_false(gguf_get_u32(f, "u64", &u)); /* does not fit */
    assert_false(gguf_get_u32(f, "true", &u));
    assert_false(gguf_get_u32(f, "f64", &u));
    assert_false(gguf_get_u32(f, "absent", &u));
    assert_true(gguf_get_f32(f, "f64", &x) && x == 0.5f);
    assert_false(gguf_get_f32(f, "u8", &x));
    assert_false(gguf_get_f32(f, "absent", &x));
    assert_true(gguf_get_bool(f, "true", &flag) && flag);
    assert_true(gguf_get_str(f, "text", &s, &n) && n == 3 && memcmp(s, "h\xc3\xa9", 3) == 0);
    assert_true(gguf_get_array(f, "i16s", &a) && a.count == 2);
    assert_true(gguf_array_i64(&a, 1, &v) && v == -1);
    assert_false(gguf_array_i64(&a, 2, &v));
    assert_false(gguf_array_str(&a, 0, &s, &n));
    assert_false(gguf_array_f32(&a, 0, &x));
    assert_true(gguf_get_array(f, "f32s", &a) && gguf_array_f32(&a, 0, &x) && x == 0.25f);
    assert_false(gguf_array_f32(&a, 1, &x));
    assert_true(gguf_get_array(f, "none", &a) && a.count == 0 && !gguf_array_str(&a, 0, &s, &n));
    assert_int_equal(gguf_key_count(f), 9);
    tensor_file_close(f);
    bytes_free(&b);
}

static void any_string_of_an_array_is_found(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    struct bytes b = {0};
    struct err e;
    struct gguf_array a;
    char text[32];
    put_header(&b, 0, 1);
    key_array(&b, "strings", GGUF_STR, COUNT);
    for (int i = 0; i < COUNT; i++) {
        snprintf(text, sizeof text, "%.*s%d", i % 7, "xxxxxxx", i);
        put_str(&b, i % 11 == 0 ? "" : text);
    }
    struct tensor_file *f = tensor_file_open_memory(b.data, b.n, NULL, 0, &e);
    assert_non_null(f);
    assert_true(gguf_get_array(f, "strings", &a) && a.count == COUNT);
    for (int k = 0; k < COUNT; k++) {
        int i = k * 617 % COUNT; /* out of order */
        const char *s;
        size_t n;
        snprintf(text, sizeof text, "%.*s%d", i % 7, "xxxxxxx", i);
        if (i % 11 == 0) text[0] = '\0';
        assert_true(gguf_array_str(&a, i, &s, &n));
        assert_int_equal(n, strlen(text));
        assert_memory_equal(s, text, n);
    }
    tensor_file_close(f);
    bytes_free(&b);
}

static void version_2_and_other_alignments_are_read(void **state) {
    (void)state;
    static const uint32_t alignments[] = {1, 8, 64, 4096};
    for (size_t i = 0; i < ARRAY_COUNT(alignments); i++) {
        struct bytes b = {0};
        struct err e;
        uint64_t ne[] = {3};
        put_header(&b, 2, 1);
        b.data[4] = 2;
        key_u32(&b, "general.alignment", alignments[i]);
        put_tensor(&b, "x", 1, ne, 0, 0);
        put_tensor(&b, "y", 1, ne, 0, round_up(12, alignments[i]));
        put_pad(&b, alignments[i]);
        size_t start = b.n;
        bytes_put(&b, NULL, round_up(12, alignments[i]) + 12);
        struct tensor_file *f = tensor_file_open_memory(b.data, b.n, NULL, 0, &e);
        if (!f) fail_msg("%s", e.message);
        assert_ptr_equal(tensor_file_find(f, "y")->data, b.data + start + round_up(12, alignments[i]));
        tensor_file_close(f);
        bytes_free(&b);
    }
}

/* The gguf package wrote model.gguf, the safetensors package model.safetensors: same weights, two writers. */
static void both_formats_give_the_same_tensor(void **state) {
    (void)state;
    struct err e;
    struct tensor_file *g = tensor_file_open(FIXTURES "llama3_gguf/model.gguf", &e);
    struct tensor_file *s = tensor_file_open(FIXTURES "llama3_f32", &e);
    if (!g || !s) fail_msg("%s", e.message);
    assert_true(tensor_file_is_gguf(g) && !tensor_file_is_gguf(s));
    static const char *const pairs[][2] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                           {"blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"},
                                           {"output_norm.weight", "model.norm.weight"}};
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        const struct tensor *a = tensor_file_find(g, pairs[i][0]), *b = tensor_file_find(s, pairs[i][1]);
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal(a->n_dims, b->n_dims);
        assert_memory_equal(a->shape, b->shape, a->n_dims * sizeof a->shape[0]);
        assert_int_equal(a->n_bytes, b->n_bytes);
        assert_memory_equal(a->data, b->data, a->n_bytes);
    }
    tensor_file_close(g);
    tensor_file_close(s);
}

/* tensors.txt is what the gguf package says of the default model: name, type, shape (outermost first), offset, bytes.
 */
static void the_default_model_is_read_as_the_gguf_package_does(void **state) {
    (void)state;
    if (!default_model()) skip();
    struct err e;
    struct tensor_file *f = tensor_file_open(default_model(), &e);
    if (!f) fail_msg("%s", e.message);
    FILE *list = fopen("tests/fixtures/default_model/tensors.txt", "r");
    assert_non_null(list);
    size_t size, count = 0;
    uint8_t *raw = file_read(default_model(), &size);
    char name[128], type[16];
    unsigned long long rows, cols, offset, n_bytes;
    while (fscanf(list, "%127s %15s %llu %llu %llu %llu", name, type, &rows, &cols, &offset, &n_bytes) == 6) {
        const struct tensor *t = tensor_file_find(f, name);
        if (!t) fail_msg("%s is not there", name);
        assert_string_equal(t->type_name, type);
        assert_int_equal(strcasecmp(t->type_name, dtype_name(t->type)), 0);
        assert_int_equal(t->n_dims, cols ? 2 : 1);
        assert_int_equal(t->shape[0], rows);
        if (cols) assert_int_equal(t->shape[1], cols);
        assert_int_equal(t->n_bytes, n_bytes);
        assert_memory_equal(t->data, raw + offset, n_bytes);
        count++;
    }
    assert_int_equal(tensor_file_count(f), count);
    assert_true(count > 200);
    fclose(list);
    free(raw);
    tensor_file_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_are_refused_by_name),
        cmocka_unit_test(every_cut_of_a_good_file_is_refused),
        cmocka_unit_test(a_huge_sparse_file_is_refused),
        cmocka_unit_test(things_that_are_not_files_are_refused),
        cmocka_unit_test(values_are_typed),
        cmocka_unit_test(any_string_of_an_array_is_found),
        cmocka_unit_test(version_2_and_other_alignments_are_read),
        cmocka_unit_test(both_formats_give_the_same_tensor),
        cmocka_unit_test(the_default_model_is_read_as_the_gguf_package_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
