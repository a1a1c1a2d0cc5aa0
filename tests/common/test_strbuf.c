/* test_strbuf.c - the string builder. Oracles: Python's and numpy's shortest numbers (number_cases.h, made by
 * make_number_cases.py), jansson as the reader of escaped strings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/strbuf.h"
#include "number_cases.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t significant_digits(const char *text) {
    size_t n = 0, zeros = 0;
    for (; *text && *text != 'e'; text++) {
        if (*text < '0' || *text > '9' || (n == 0 && *text == '0')) continue;
        n++;
        zeros = *text == '0' ? zeros + 1 : 0;
    }
    return n - zeros;
}

static void doubles_read_back_and_are_shortest(void **state) {
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(double_cases); i++) {
        double v, back;
        memcpy(&v, &double_cases[i].bits, sizeof v);
        strbuf_clear(&b);
        strbuf_add_double(&b, v);
        back = strtod(b.data, NULL);
        assert_memory_equal(&v, &back, sizeof v);
        assert_int_equal(significant_digits(b.data), significant_digits(double_cases[i].text));
        json_t *doc = json_loads(b.data, JSON_DECODE_ANY, NULL);
        assert_true(json_is_real(doc));
        json_decref(doc);
    }
    strbuf_free(&b);
}

static void floats_read_back_and_are_shortest(void **state) {
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(float_cases); i++) {
        float v, back;
        memcpy(&v, &float_cases[i].bits, sizeof v);
        strbuf_clear(&b);
        strbuf_add_float(&b, v);
        back = strtof(b.data, NULL);
        assert_memory_equal(&v, &back, sizeof v);
        assert_int_equal(significant_digits(b.data), significant_digits(float_cases[i].text));
    }
    strbuf_free(&b);
}

static void what_json_has_no_number_for_is_null(void **state) {
    struct strbuf b = {0};
    (void)state;
    strbuf_add_double(&b, INFINITY);
    strbuf_add_float(&b, -INFINITY);
    strbuf_add_double(&b, NAN);
    assert_string_equal(b.data, "nullnullnull");
    strbuf_free(&b);
}

static void integers(void **state) {
    struct strbuf b = {0};
    (void)state;
    strbuf_add_u64(&b, 0);
    strbuf_add_char(&b, ' ');
    strbuf_add_u64(&b, UINT64_MAX);
    strbuf_add_char(&b, ' ');
    strbuf_add_i64(&b, INT64_MIN);
    strbuf_add_char(&b, ' ');
    strbuf_add_i64(&b, -7);
    assert_string_equal(b.data, "0 18446744073709551615 -9223372036854775808 -7");
    strbuf_free(&b);
}

/* Every byte string becomes valid JSON; valid UTF-8 comes back as it was. */
static void strings_come_back_through_jansson(void **state) {
    static const char *const texts[] = {
        "",
        "plain",
        "quote\" back\\slash /",
        "\b\f\n\r\t\x01\x1f\x7f",
        "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xee\x80\x80 \xf4\x8f\xbf\xbf",
        "\xe2\x80\xa8",
    };
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        strbuf_clear(&b);
        strbuf_add_json_str(&b, texts[i]);
        json_t *doc = json_loads(b.data, JSON_DECODE_ANY, NULL);
        assert_non_null(doc);
        assert_string_equal(json_string_value(doc), texts[i]);
        json_decref(doc);
    }
    strbuf_free(&b);
}

static void random_bytes_become_valid_json(void **state) {
    struct strbuf b = {0};
    uint32_t seed = 1;
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char bytes[24];
        for (size_t i = 0; i < sizeof bytes; i++) {
            seed = seed * 1664525u + 1013904223u;
            /* mostly lead and continuation bytes: the interesting borders */
            bytes[i] = (char)((seed >> 8) % 3 ? 0x80 | (seed >> 16) : seed >> 24);
        }
        strbuf_clear(&b);
        strbuf_add_json(&b, bytes, sizeof bytes);
        json_t *doc = json_loadb(b.data, b.count, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(doc);
        json_decref(doc);
    }
    strbuf_free(&b);
}

/* The Unicode standard's own examples (section 3.9, tables 3-8 to 3-11). */
static void wrong_utf8_is_replaced_as_unicode_recommends(void **state) {
#define R "\xef\xbf\xbd"
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", R R R R R R R R "A"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", R R R R R R R R "A"},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", R R R R R "A" R R "B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A"},
    };
    struct strbuf b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char expected[128];
        snprintf(expected, sizeof expected, "\"%s\"", cases[i].out);
        strbuf_clear(&b);
        strbuf_add_json_str(&b, cases[i].in);
        assert_string_equal(b.data, expected);
    }
    strbuf_free(&b);
}

static void too_much_fails_without_harm(void **state) {
    struct strbuf b = {0};
    (void)state;
    strbuf_add_str(&b, "kept");
    assert_false(strbuf_reserve(&b, STRBUF_BYTES_MAX));
    assert_true(b.failed);
    strbuf_add_str(&b, " ignored");
    strbuf_printf(&b, "%d", 1);
    assert_string_equal(b.data, "kept");
    size_t n;
    assert_null(strbuf_take(&b, &n));
    assert_null(b.data);
}

static void printf_grows(void **state) {
    struct strbuf b = {0};
    (void)state;
    for (int i = 0; i < 300; i++) strbuf_printf(&b, "%*d", i, i % 10);
    assert_int_equal(b.count, 300 * 299 / 2 + 1); /* widths 0..299, and the first prints one digit */
    assert_int_equal(strlen(b.data), b.count);
    strbuf_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(doubles_read_back_and_are_shortest),
        cmocka_unit_test(floats_read_back_and_are_shortest),
        cmocka_unit_test(what_json_has_no_number_for_is_null),
        cmocka_unit_test(integers),
        cmocka_unit_test(strings_come_back_through_jansson),
        cmocka_unit_test(random_bytes_become_valid_json),
        cmocka_unit_test(wrong_utf8_is_replaced_as_unicode_recommends),
        cmocka_unit_test(too_much_fails_without_harm),
        cmocka_unit_test(printf_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
