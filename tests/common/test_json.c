/* test_json.c - JSON from outside: bounded memory, strict types, errors that name the field (research rows 15-17).
 *
 * Memory is measured, not assumed: jansson allocates through a counter here, and the bound that json_prescan promises
 * is compared with the true peak, malloc's own overhead included.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/json.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t heap_now, heap_peak;

static void *counted_malloc(size_t n) {
    void *p = malloc(n);
    if (p) heap_now += malloc_usable_size(p) + sizeof(size_t);
    if (heap_now > heap_peak) heap_peak = heap_now;
    return p;
}

static void counted_free(void *p) {
    if (p) heap_now -= malloc_usable_size(p) + sizeof(size_t);
    free(p);
}

/* Parses and returns true, or false with *e; checks the promise either way. */
static bool parse(const char *bytes, size_t n, struct err *e) {
    uint64_t bound = 0;
    struct err ignored;
    heap_peak = heap_now;
    const size_t before = heap_now;
    json_t *doc = json_parse(bytes, n, NULL, e);
    const size_t peak = heap_peak - before;
    assert_true(peak <= 24 * n + ((size_t)1 << 20)); /* 20 times in the tree, and the lexer's copies of one string */
    if (doc) {
        assert_true(json_prescan(bytes, n, NULL, &bound, &ignored));
        if (peak > bound + 512) fail_msg("peak %zu is above the bound %zu", peak, (size_t)bound);
    }
    json_decref(doc);
    assert_int_equal(heap_now, before);
    return doc != NULL;
}

static char *repeated(const char *open, const char *unit, const char *close, size_t n_bytes, size_t *count) {
    const size_t n_unit = strlen(unit), times = n_bytes / n_unit;
    char *text = malloc(strlen(open) + times * n_unit + strlen(close) + 1);
    char *at = text + sprintf(text, "%s", open);
    for (size_t i = 0; i < times; i++, at += n_unit) memcpy(at, unit, n_unit);
    if (times > 0 && at[-1] == ',') at--; /* no comma before the close */
    strcpy(at, close);
    *count = strlen(text);
    return text;
}

static void memory_is_bounded_for_the_worst_bodies(void **state) {
    static const struct {
        const char *open, *unit, *close;
    } bodies[] = {
        {"[", "{},", "]"},
        {"[", "[],", "]"},
        {"[", "1,", "]"},
        {"[", "-1.5e3,", "]"},
        {"[", "\"\",", "]"},
        {"[", "\"a\",", "]"},
        {"[", "{\"a\":1},", "]"},
        {"[", "null,", "]"},
        {"[", "{\"a\":[{}]},", "]"},
        {"[\"", "x", "\"]"},
        {"[\"", "\\u0041", "\"]"},
        {"{\"a\":\"", "\xc3\xa9", "\"}"},
        {"[", "[[[[1]]]],", "]"},
        {"[", "123456,", "]"},
        {"[", "{\"role\":\"user\",\"content\":\"hello there\"},", "]"},
        {"[", "                    1,", "]"},
    };
    static const size_t sizes[] = {100, 10000, 1000000};
    struct err e;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bodies); i++) {
        for (size_t k = 0; k < ARRAY_COUNT(sizes); k++) {
            size_t n;
            char *text = repeated(bodies[i].open, bodies[i].unit, bodies[i].close, sizes[k], &n);
            parse(text, n, &e);
            free(text);
        }
    }
}

static void distinct_keys_are_bounded(void **state) {
    static const size_t counts[] = {10, 100, 1000, 10000, 60000};
    struct strbuf b = {0};
    struct err e;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        strbuf_clear(&b);
        for (size_t k = 0; k < counts[i]; k++) strbuf_printf(&b, "%c\"%zx\":0", k ? ',' : '{', k);
        strbuf_add_char(&b, '}');
        parse(b.data, b.count, &e);
    }
    strbuf_free(&b);
}

/* The bodies that people send are not what the bound refuses. */
static void ordinary_bodies_pass(void **state) {
    static const struct {
        const char *open, *unit, *close;
    } bodies[] = {
        {"{\"prompt\":[", "12345,", "]}"},
        {"{\"prompt\":[", "123, ", "0]}"},
        {"{\"messages\":[", "{\"role\":\"user\",\"content\":\"How are you?\"},", "]}"},
        {"{\"prompt\":\"", "All work and no play. ", "\"}"},
        {"{\"input\":[", "\"a sentence to embed\",", "]}"},
    };
    struct err e;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bodies); i++) {
        size_t n;
        char *text = repeated(bodies[i].open, bodies[i].unit, bodies[i].close, 1000000, &n);
        if (!parse(text, n, &e)) fail_msg("body %zu: %s", i, e.message);
        free(text);
    }
}

static void assert_refused(const char *bytes, size_t n, const char *expected) {
    struct err e = {0};
    if (parse(bytes, n, &e)) fail_msg("'%.60s' was accepted", bytes);
    assert_int_equal(e.code, ERR_BAD_JSON);
    if (!strstr(e.message, expected)) fail_msg("'%.60s': the message '%s' lacks '%s'", bytes, e.message, expected);
}

static void bad_json_is_refused_with_its_offset(void **state) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"{\"a\":1,\"b\":}", "byte 12"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"[1e400]", "byte"},
        {"[-1e400]", "byte"},
        {"[9223372036854775808]", "byte"},
        {"[-9223372036854775809]", "byte"},
        {"[NaN]", "byte 4"},
        {"[Infinity]", "byte"},
        {"[\"\\ud800\"]", "byte"},
        {"[\"\\udc00x\"]", "byte"},
        {"[\"\xff\"]", "byte"},
        {"[\"\xc0\xaf\"]", "byte"},
        {"[\"\xed\xa0\x80\"]", "byte"},
        {"\xef\xbb\xbf{}", "byte"},
        {"{} x", "byte"},
        {"{}{}", "byte"},
        {"{\"a\":1,}", "byte"},
        {"[01]", "byte"},
        {"[+1]", "byte"},
        {"[.5]", "byte"},
        {"[1.]", "byte"},
        {"['a']", "byte"},
        {"[\"a\nb\"]", "byte"},
        {"[\"\\u0000\"]", "byte"},
        {"// x\n{}", "byte"},
        {"\"text\"", "byte"},
        {"1", "byte"},
        {"null", "byte"},
        {"", "empty"},
        {"[", "byte"},
        {"[\"abc", "byte"},
        {"{\"a\\u0000b\":1}", "byte"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_refused(cases[i].text, strlen(cases[i].text), cases[i].expected);
    assert_refused("[\"a\0b\"]", 7, "byte");
    assert_refused("{}\0", 3, "byte");
}

static void depth_and_length_attacks_are_refused(void **state) {
    size_t n;
    (void)state;
    char *text = repeated("", "[", "", 1000000, &n);
    assert_refused(text, n, "64 levels at byte 64");
    free(text);
    text = repeated("", "{\"a\":", "", 1000000, &n);
    assert_refused(text, n, "64 levels");
    free(text);
    text = repeated("[", "9", "]", 2000000, &n);
    assert_refused(text, n, "byte");
    free(text);
    text = repeated("[", "{},", "]", 1000000, &n);
    assert_refused(text, n, "too many small values");
    free(text);
    struct err e;
    text = repeated("", "[", "", 64, &n);
    char *closed = malloc(2 * n + 1);
    memcpy(closed, text, n);
    memset(closed + n, ']', n);
    closed[2 * n] = '\0';
    assert_true(parse(closed, 2 * n, &e)); /* 64 levels are allowed */
    free(text);
    free(closed);
}

/* ---- getters ---- */

#define RANGE_MIN 1
#define RANGE_MAX 100

static enum err_code read_int(const char *value, int64_t *out, struct err *e) {
    char text[128];
    snprintf(text, sizeof text, "{\"n\":%s}", value);
    json_t *doc = json_parse(text, strlen(text), NULL, e);
    if (!doc) return ERR_BAD_JSON;
    const struct json_at top = json_top(doc);
    const bool ok = json_opt_i64(&top, "n", RANGE_MIN, RANGE_MAX, out, e);
    json_decref(doc);
    return ok ? ERR_NONE : e->code;
}

static void integers_are_integers(void **state) {
    static const struct {
        const char *value;
        enum err_code code;
        int64_t out;
    } cases[] = {
        {"5", ERR_NONE, 5},
        {"1", ERR_NONE, 1},
        {"100", ERR_NONE, 100},
        {"null", ERR_NONE, -77},
        {"5.0", ERR_BAD_TYPE, 0},
        {"5e0", ERR_BAD_TYPE, 0},
        {"\"5\"", ERR_BAD_TYPE, 0},
        {"true", ERR_BAD_TYPE, 0},
        {"[5]", ERR_BAD_TYPE, 0},
        {"{}", ERR_BAD_TYPE, 0},
        {"0", ERR_BAD_VALUE, 0},
        {"-1", ERR_BAD_VALUE, 0},
        {"101", ERR_BAD_VALUE, 0},
        {"-0", ERR_BAD_VALUE, 0},
        {"2147483648", ERR_BAD_VALUE, 0},
        {"9007199254740993", ERR_BAD_VALUE, 0},
        {"9223372036854775807", ERR_BAD_VALUE, 0},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int64_t out = -77;
        struct err e = {0};
        const enum err_code code = read_int(cases[i].value, &out, &e);
        if (code != cases[i].code) fail_msg("%s gave %s", cases[i].value, err_info(code)->name);
        assert_int_equal(out, code == ERR_NONE ? cases[i].out : -77);
        if (code != ERR_NONE) assert_string_equal(e.param, "n");
    }
}

static void every_getter_refuses_every_other_type(void **state) {
    static const char *const values[] = {"true", "7", "7.5", "\"s\"", "[]", "{}"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(values); i++) {
        char text[64];
        struct err e;
        bool b;
        int64_t n;
        double d;
        const char *s;
        snprintf(text, sizeof text, "[%s]", values[i]);
        json_t *doc = json_parse(text, strlen(text), NULL, &e);
        const struct json_at top = json_top(doc), at = json_item(&top, 0);
        assert_int_equal(json_as_bool(&at, &b, &e), i == 0);
        assert_int_equal(json_as_i64(&at, 0, 10, &n, &e), i == 1);
        assert_int_equal(json_as_double(&at, 0, 10, &d, &e), i == 1 || i == 2);
        assert_int_equal(json_as_string(&at, 10, &s, NULL, &e), i == 3);
        assert_int_equal(json_as_array(&at, 0, 10, &e), i == 4);
        assert_int_equal(json_as_object(&at, &e), i == 5);
        json_decref(doc);
    }
}

static void ranges_of_small_types(void **state) {
    static const char text[] = "{\"a\":4294967295,\"b\":-2147483648,\"c\":4294967296,\"d\":1e308,\"e\":0.25}";
    struct err e;
    uint32_t u = 0;
    int32_t i = 0;
    float f = 0;
    (void)state;
    json_t *doc = json_parse(text, sizeof text - 1, NULL, &e);
    const struct json_at top = json_top(doc);
    assert_true(json_opt_u32(&top, "a", 0, UINT32_MAX, &u, &e) && u == UINT32_MAX);
    assert_true(json_opt_i32(&top, "b", INT32_MIN, INT32_MAX, &i, &e) && i == INT32_MIN);
    assert_false(json_opt_u32(&top, "c", 0, UINT32_MAX, &u, &e));
    assert_false(json_opt_u32(&top, "b", 0, UINT32_MAX, &u, &e));
    assert_false(json_opt_float(&top, "d", -1e30f, 1e30f, &f, &e));
    assert_true(json_opt_float(&top, "e", 0, 1, &f, &e) && f == 0.25f);
    assert_int_equal(u, UINT32_MAX);
    json_decref(doc);
}

static void errors_name_the_field(void **state) {
    static const char text[] =
        "{\"messages\":[{\"role\":\"u\"},{\"role\":\"u\",\"content\":[{\"text\":5}]}],\"strange\xc3\xa9\":1}";
    static const char *const known[] = {"messages"};
    struct err e;
    const char *s;
    (void)state;
    json_t *doc = json_parse(text, sizeof text - 1, NULL, &e);
    const struct json_at top = json_top(doc);
    struct json_at messages, content, out;
    assert_true(json_require(&top, "messages", &messages, &e));
    const struct json_at first = json_item(&messages, 0), second = json_item(&messages, 1);
    assert_false(json_require(&first, "content", &out, &e));
    assert_int_equal(e.code, ERR_MISSING_FIELD);
    assert_string_equal(e.param, "messages[0].content");
    assert_true(json_member(&second, "content", &content));
    const struct json_at part = json_item(&content, 0);
    assert_false(json_opt_string(&part, "text", 10, &s, NULL, &e));
    assert_int_equal(e.code, ERR_BAD_TYPE);
    assert_string_equal(e.param, "messages[1].content[0].text");
    assert_false(json_only_members(&top, known, 1, &e));
    assert_int_equal(e.code, ERR_UNKNOWN_FIELD);
    assert_string_equal(e.param, "strange??"); /* nothing but printable ASCII of a client's names gets into an error */
    json_decref(doc);
}

static void long_paths_keep_their_end(void **state) {
    struct json_at at[40];
    char path[JSON_PATH_MAX];
    (void)state;
    at[0] = (struct json_at){0};
    for (size_t i = 1; i < ARRAY_COUNT(at); i++) at[i] = (struct json_at){.parent = &at[i - 1], .key = "abcdefg"};
    json_path(&at[39], path, sizeof path);
    assert_int_equal(strlen(path), sizeof path - 1);
    assert_string_equal(path + strlen(path) - 16, ".abcdefg.abcdefg");
    json_path(&at[0], path, sizeof path);
    assert_string_equal(path, "");
}

static void error_replies_have_the_one_shape(void **state) {
    struct strbuf b = {0};
    struct err e;
    (void)state;
    for (int code = 1; code < ERR_COUNT; code++) {
        strbuf_clear(&b);
        err_set_param(&e, (enum err_code)code, code % 2 ? "a[0].\"b\"" : NULL, "Say \"%s\"\n", "x");
        json_add_err(&b, &e);
        json_t *doc = json_loads(b.data, 0, NULL), *error = json_object_get(doc, "error");
        assert_int_equal(json_object_size(doc), 1);
        assert_int_equal(json_object_size(error), 4);
        assert_string_equal(json_string_value(json_object_get(error, "message")), "Say \"x\"\n");
        assert_string_equal(json_string_value(json_object_get(error, "type")), err_info((enum err_code)code)->type);
        assert_int_equal(json_is_null(json_object_get(error, "param")), code % 2 == 0);
        assert_true(json_is_null(json_object_get(error, "code")) || json_is_string(json_object_get(error, "code")));
        json_decref(doc);
    }
    strbuf_free(&b);
}

static void object_members_are_counted_before_a_tree_is_built(void **state) {
    (void)state;
    const char *text = "{\"a\":1,\"b\":{\"c\":[2,3],\"d:e\":\"f:g\"}}"; /* 4 members; colons in strings are none */
    uint64_t bytes;
    struct err e;
    assert_true(json_prescan(text, strlen(text), &(struct json_limits){.members_max = 4}, &bytes, &e));
    assert_false(json_prescan(text, strlen(text), &(struct json_limits){.members_max = 3}, &bytes, &e));
    assert_int_equal(e.code, ERR_BAD_JSON);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_bounded_for_the_worst_bodies),
        cmocka_unit_test(distinct_keys_are_bounded),
        cmocka_unit_test(ordinary_bodies_pass),
        cmocka_unit_test(bad_json_is_refused_with_its_offset),
        cmocka_unit_test(depth_and_length_attacks_are_refused),
        cmocka_unit_test(integers_are_integers),
        cmocka_unit_test(every_getter_refuses_every_other_type),
        cmocka_unit_test(ranges_of_small_types),
        cmocka_unit_test(errors_name_the_field),
        cmocka_unit_test(long_paths_keep_their_end),
        cmocka_unit_test(error_replies_have_the_one_shape),
        cmocka_unit_test(object_members_are_counted_before_a_tree_is_built),
    };
    json_set_alloc_funcs(counted_malloc, counted_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
