/* test_safetensors.c - safetensors files and folders: what the reference implementation refuses is refused by name
 * (https://docs.rs/safetensors, SafeTensorError), and so are the tricks of reliability.md, row 45.
 */
#include "engine/model/config.h"
#include "tests/files/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURES "tests/fixtures/models/"
static const char config[] = "{\"model_type\":\"llama\"}";

#define T(name, dtype, shape, begin, end)                                                                              \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static const struct {
    const char *name, *expect, *header;
    size_t n_data;
} bad_headers[] = {
    {"not an object", "does not start with '{'", "[]", 0},
    {"space in front", "does not start with '{'", " {}", 0},
    {"cut JSON", "not valid", "{\"a\":", 0},
    {"rubbish behind", "not valid", "{} x", 0},
    {"duplicate name", "not valid", "{" T("a", "F32", "[1]", "0", "4") "," T("a", "F32", "[1]", "4", "8") "}", 8},
    {"not UTF-8", "not valid", "{\"\xff\":1}", 0},
    {"hole", "'b'", "{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "8", "12") "}", 12},
    {"hole in front", "'a'", "{" T("a", "F32", "[1]", "4", "8") "}", 8},
    {"data left over", "no tensor covers", "{" T("a", "F32", "[1]", "0", "4") "}", 5},
    {"data missing", "'a'", "{" T("a", "F32", "[2]", "0", "8") "}", 7},
    {"overlap", "'b'", "{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[2]", "4", "12") "}", 12},
    {"the same bytes twice", "starts at data offset 0",
     "{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "0", "4") "}", 4},
    {"reversed offsets", "'a'", "{" T("a", "F32", "[1]", "4", "0") "}", 4},
    {"negative offset", "'a'", "{" T("a", "F32", "[1]", "-4", "0") "}", 4},
    {"fractional offset", "'a'", "{" T("a", "F32", "[1]", "0", "4.0") "}", 4},
    {"offset of 2^64", "not valid", "{" T("a", "F32", "[1]", "0", "18446744073709551616") "}", 4},
    {"shape wraps to 4", "'a'", "{" T("a", "F32", "[4194305,4194305,211106198978564]", "0", "4") "}", 4},
    {"shape wraps in bits", "'a'", "{" T("a", "F32", "[576460752303423489]", "0", "4") "}", 4},
    {"negative dimension", "'a'", "{" T("a", "F32", "[-1]", "0", "4") "}", 4},
    {"zero dimension", "'a'", "{" T("a", "F32", "[0]", "0", "0") "}", 0},
    {"zero dimension among others", "'z'", "{" T("a", "F32", "[1]", "0", "4") "," T("z", "F32", "[0,4]", "0", "0") "}",
     4},
    {"five dimensions", "'a'", "{" T("a", "F32", "[1,1,1,1,1]", "0", "4") "}", 4},
    {"bytes do not fit the dtype", "'a'", "{" T("a", "F16", "[1]", "0", "4") "}", 4},
    {"shape is a string", "'a'", "{" T("a", "F32", "\"\"", "0", "4") "}", 4},
    {"half a byte", "'a'", "{" T("a", "F4", "[1]", "0", "0") "}", 0},
    {"unknown dtype", "'a' has an unknown dtype", "{" T("a", "F33", "[1]", "0", "4") "}", 4},
    {"dtype is a number", "'a'", "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
    {"no shape", "'a'", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4},
    {"a member too many", "'a'", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4},
    {"one offset", "'a'", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4]}}", 4},
    {"entry is not an object", "'a'", "{\"a\":[]}", 0},
    {"empty name", "name that is empty", "{" T("", "F32", "[1]", "0", "4") "}", 4},
    {"metadata is no object", "__metadata__", "{\"__metadata__\":[]}", 0},
    {"metadata holds a number", "__metadata__", "{\"__metadata__\":{\"a\":1}}", 0},
    {"deep nesting", "not valid", "{\"a\":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}", 0},
};

static void bad_headers_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad_headers); i++) {
        struct bytes b = {0};
        struct err e = {0};
        put_safetensors(&b, bad_headers[i].header, bad_headers[i].n_data);
        struct tensor_file *f = tensor_file_open_memory(b.data, b.n, config, sizeof config - 1, &e);
        check_refused(bad_headers[i].name, f, &e, bad_headers[i].expect);
        bytes_free(&b);
    }
}

static void header_lengths_are_checked_before_use(void **state) {
    (void)state;
    static const uint64_t lengths[] = {0, 17, 100000001, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        struct bytes b = {0};
        struct err e = {0};
        put_u64(&b, lengths[i]);
        bytes_put(&b, "{}              ", 16);
        check_refused("length", tensor_file_open_memory(b.data, b.n, config, sizeof config - 1, &e), &e,
                      "header length");
        bytes_free(&b);
    }
    struct err e = {0};
    check_refused("7 bytes", tensor_file_open_memory("\1\0\0\0\0\0\0", 7, config, sizeof config - 1, &e), &e,
                  "too short");
}

/* 50 million small values would cost gigabytes as a tree. */
static void a_header_that_costs_more_than_it_weighs_is_refused(void **state) {
    (void)state;
    enum { N = 20 << 20 };
    struct bytes b = {0};
    struct err e = {0};
    put_u64(&b, N);
    bytes_put(&b, NULL, N);
    memset(b.data + 8, ' ', N);
    memcpy(b.data + 8, "{\"a\":[", 6);
    for (size_t i = 14; i + 3 < N; i += 3) memcpy(b.data + i, "{},", 3);
    memcpy(b.data + 8 + N - 4, "1 ]}", 4);
    check_refused("tree", tensor_file_open_memory(b.data, b.n, config, sizeof config - 1, &e), &e, "not valid");
    bytes_free(&b);
}

static void good_headers_are_read(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "[2,3]", "4", "16") "," T(
        "a", "F32", "[]", "0", "4") "," T("i", "I64", "[1]", "16", "24") "}   ";
    struct bytes b = {0};
    struct err e;
    put_safetensors(&b, header, 24);
    struct tensor_file *f = tensor_file_open_memory(b.data, b.n, config, sizeof config - 1, &e);
    if (!f) fail_msg("%s", e.message);
    const uint8_t *data = b.data + 8 + sizeof header - 1;
    const struct tensor *t = tensor_file_find(f, "b");
    assert_true(tensor_file_count(f) == 3 && t && t->type == DT_BF16 && t->n_dims == 2 && t->shape[0] == 2 &&
                t->shape[1] == 3);
    assert_ptr_equal(t->data, data + 4);
    t = tensor_file_find(f, "a");
    assert_true(t && t->n_dims == 0 && t->n_bytes == 4);
    t = tensor_file_find(f, "i");
    assert_true(t && t->type == DT_COUNT);
    assert_string_equal(t->type_name, "I64");
    assert_null(tensor_file_find(f, "__metadata__"));
    tensor_file_close(f);
    bytes_free(&b);
}

/* ---- Folders ---- */

#define ONE "{" T("a", "F32", "[1]", "0", "4") "}"
#define INDEX(map) "{\"metadata\":{},\"weight_map\":{" map "}}"
#define A_MAP "\"a\":\"m-1.safetensors\""
#define B_MAP "\"b\":\"m-2.safetensors\""

static const struct {
    const char *name, *expect;
    const char *index;           /* NULL: no index file */
    const char *shard1, *shard2; /* headers of m-1 and m-2, each with 4 bytes of data; NULL: no file */
} bad_folders[] = {
    {"nothing there", "neither", NULL, NULL, NULL},
    {"index is not JSON", "index.json is not valid", "{", ONE, NULL},
    {"no weight_map", "weight_map", "{}", ONE, NULL},
    {"weight_map is an array", "weight_map", "{\"weight_map\":[]}", ONE, NULL},
    {"file is a number", "tensor 'a'", INDEX("\"a\":1"), ONE, NULL},
    {"path upwards", "tensor 'a'", INDEX("\"a\":\"../m-1.safetensors\""), ONE, NULL},
    {"absolute path", "tensor 'a'", INDEX("\"a\":\"/etc/m.safetensors\""), ONE, NULL},
    {"hidden file", "tensor 'a'", INDEX("\"a\":\"..safetensors\""), ONE, NULL},
    {"another suffix", "tensor 'a'", INDEX("\"a\":\"m-1.bin\""), ONE, NULL},
    {"shard missing", "m-2.safetensors", INDEX(A_MAP "," B_MAP), ONE, NULL},
    {"tensor missing", "'b' is not in m-1", INDEX(A_MAP ",\"b\":\"m-1.safetensors\""), ONE, NULL},
    {"tensor not mapped", "tensor 'a'", INDEX("\"b\":\"m-1.safetensors\""), ONE, NULL},
    {"tensor in two shards", "'a'", INDEX(A_MAP "," B_MAP), ONE, ONE},
    {"tensor mapped twice", "not valid", INDEX(A_MAP ",\"a\":\"m-2.safetensors\""), ONE, ONE},
    {"bad shard", "m-2.safetensors: tensor 'b'", INDEX(A_MAP "," B_MAP), ONE, "{" T("b", "F32", "[2]", "0", "4") "}"},
};

static void bad_folders_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad_folders); i++) {
        const char *folder = temp_folder();
        struct err e = {0};
        temp_file(folder, "config.json", config, sizeof config - 1);
        const char *shards[] = {bad_folders[i].shard1, bad_folders[i].shard2};
        for (int k = 0; k < 2; k++) {
            struct bytes b = {0};
            if (!shards[k]) continue;
            put_safetensors(&b, shards[k], 4);
            temp_file(folder, k == 0 ? "m-1.safetensors" : "m-2.safetensors", b.data, b.n);
            bytes_free(&b);
        }
        const char *index = bad_folders[i].index;
        if (index) temp_file(folder, "model.safetensors.index.json", index, strlen(index));
        check_refused(bad_folders[i].name, tensor_file_open(folder, &e), &e, bad_folders[i].expect);
    }
    temp_remove();
}

static void a_folder_needs_a_config(void **state) {
    (void)state;
    static const struct {
        const char *text, *expect;
    } rows[] = {{NULL, "config.json cannot be opened"}, {"{", "config.json is not valid"}, {"[]", "not an object"}};
    static char huge[CONFIG_BYTES_MAX + 3];
    memset(huge, ' ', sizeof huge - 1);
    memcpy(huge, "{}", 2);
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        const char *folder = temp_folder();
        struct err e = {0};
        if (rows[i].text) temp_file(folder, "config.json", rows[i].text, strlen(rows[i].text));
        check_refused("config", tensor_file_open(folder, &e), &e, rows[i].expect);
    }
    struct err e = {0};
    const char *folder = temp_folder();
    temp_file(folder, "config.json", huge, sizeof huge - 1);
    check_refused("huge config", tensor_file_open(folder, &e), &e, "config.json");
    check_refused("huge config", tensor_file_open_memory("", 0, huge, sizeof huge - 1, &e), &e,
                  "config.json has more than");
    temp_remove();
}

static void an_index_of_too_many_files_is_refused(void **state) {
    (void)state;
    struct bytes b = {0};
    struct err e = {0};
    char entry[64];
    const char *folder = temp_folder();
    bytes_put(&b, "{\"weight_map\":{", 15);
    for (int i = 0; i <= TENSOR_SHARDS_MAX; i++) {
        int n = snprintf(entry, sizeof entry, "%s\"t%d\":\"m-%d.safetensors\"", i ? "," : "", i, i);
        bytes_put(&b, entry, (size_t)n);
    }
    bytes_put(&b, "}}", 2);
    temp_file(folder, "config.json", config, sizeof config - 1);
    temp_file(folder, "model.safetensors.index.json", b.data, b.n);
    check_refused("shards", tensor_file_open(folder, &e), &e, "weight_map names more than 512 files");
    bytes_free(&b);
    temp_remove();
}

/* The fixture of three shards: every tensor is found, in the shard that the index names, with its bytes. */
static void shards_are_joined(void **state) {
    (void)state;
    struct err e;
    struct tensor_file *f = tensor_file_open(FIXTURES "llama_f16", &e);
    if (!f) fail_msg("%s", e.message);
    assert_int_equal(tensor_file_count(f), 21);
    assert_false(gguf_has(f, "general.architecture")); /* a folder has no GGUF keys */
    size_t total = 0;
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const struct tensor *t = tensor_file_at(f, i);
        assert_int_equal(t->type, DT_F16);
        total += t->n_bytes;
    }
    size_t n;
    char *index = (char *)file_read(FIXTURES "llama_f16/model.safetensors.index.json", &n);
    char *size = strstr(index, "\"total_size\":");
    assert_non_null(size);
    assert_int_equal(total, strtoull(size + strlen("\"total_size\":"), NULL, 10));
    free(index);
    tensor_file_close(f);
}

/* The hash is of the content: the same tensors in one file or in two give the same one, any other content another. */
static void the_hash_is_of_the_content(void **state) {
    (void)state;
    static const char *const headers[] = {
        "{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "4", "8") "}",
        "{" T("a", "F32", "[1]", "0", "4") "," T("c", "F32", "[1]", "4", "8") "}",
        "{" T("a", "F16", "[2]", "0", "4") "," T("b", "F32", "[1]", "4", "8") "}",
        "{" T("a", "F32", "[1,1]", "0", "4") "," T("b", "F32", "[1]", "4", "8") "}",
    };
    uint8_t first[16], hash[16];
    struct err e;
    for (size_t i = 0; i <= ARRAY_COUNT(headers); i++) {
        struct bytes b = {0};
        put_safetensors(&b, headers[i % ARRAY_COUNT(headers)], 8);
        if (i == ARRAY_COUNT(headers)) b.data[b.n - 1] = 1; /* one bit of a weight */
        struct tensor_file *f = tensor_file_open_memory(b.data, b.n, config, sizeof config - 1, &e);
        assert_non_null(f);
        tensor_file_hash(f, i == 0 ? first : hash);
        if (i > 0) assert_memory_not_equal(first, hash, 16);
        tensor_file_close(f);
        bytes_free(&b);
    }
    const char *folder = temp_folder();
    struct bytes a = {0}, b = {0};
    put_safetensors(&a, "{" T("b", "F32", "[1]", "0", "4") "}", 4);
    put_safetensors(&b, ONE, 4);
    temp_file(folder, "config.json", config, sizeof config - 1);
    temp_file(folder, "m-1.safetensors", a.data, a.n);
    temp_file(folder, "m-2.safetensors", b.data, b.n);
    static const char index[] = INDEX("\"b\":\"m-1.safetensors\",\"a\":\"m-2.safetensors\"");
    temp_file(folder, "model.safetensors.index.json", index, sizeof index - 1);
    struct tensor_file *f = tensor_file_open(folder, &e);
    if (!f) fail_msg("%s", e.message);
    tensor_file_hash(f, hash);
    assert_memory_equal(first, hash, 16);
    tensor_file_close(f);
    bytes_free(&a);
    bytes_free(&b);
    temp_remove();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_headers_are_refused_by_name),
        cmocka_unit_test(header_lengths_are_checked_before_use),
        cmocka_unit_test(a_header_that_costs_more_than_it_weighs_is_refused),
        cmocka_unit_test(good_headers_are_read),
        cmocka_unit_test(bad_folders_are_refused_by_name),
        cmocka_unit_test(a_folder_needs_a_config),
        cmocka_unit_test(an_index_of_too_many_files_is_refused),
        cmocka_unit_test(shards_are_joined),
        cmocka_unit_test(the_hash_is_of_the_content),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
