/* test_pretoken.c - the pre-tokenizers by hand against PCRE2, patterns from files, and normalization. */
#include "engine/text/hf_int.h"
#include "tests/text/text_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include <cmocka.h>

#define LETTERS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* No merges: ignore_merges then shows pre-tokens only where they are pieces, so the cuts are compared through a
 * vocabulary that has merges for everything short. */
static struct tokenizer *open_cutter(enum pre_tokenizer pre, const char *regex) {
    static struct bpe_parts p;
    static const char *const merges[] = {"\xc4\xa0 \xc4\xa0",
                                         "' s",
                                         "1 2",
                                         "2 3",
                                         "\xc4\x8a \xc4\x8a",
                                         "\xc4\xa0 a",
                                         "a b",
                                         "b a",
                                         "\xc4\xa0 \xc4\x8a",
                                         "! !",
                                         "\xc3\x84 \xc2\xb1",
                                         "e r",
                                         "t h",
                                         "th e",
                                         "\xc4\xa0 the",
                                         "' t",
                                         "i n",
                                         "o n",
                                         "0 0",
                                         "1 1"};
    bpe_parts_init(&p, merges, ARRAY_COUNT(merges));
    p.spec.pre = pre;
    p.spec.pre_regex = regex;
    struct err e = {0};
    struct tokenizer *t = tokenizer_open(&p.spec, &e);
    if (!t) print_error("%s\n", e.message);
    assert_non_null(t);
    return t;
}

static void the_matchers_by_hand_cut_as_pcre2_does(void **state) {
    (void)state;
    const struct {
        enum pre_tokenizer pre;
        const char *regex;
    } cases[] = {{PRE_LLAMA3, LETTERS "\\p{N}{1,3}" REST}, {PRE_QWEN2, LETTERS "\\p{N}" REST}};
    for (size_t k = 0; k < 2; k++) {
        struct tokenizer *hand = open_cutter(cases[k].pre, NULL), *pcre = open_cutter(PRE_NONE, cases[k].regex);
        struct fixture f = fixture_open(TEXT_FIXTURES "strings.bin");
        while (!fixture_ends(&f)) {
            size_t n;
            const char *s = fixture_block(&f, &n);
            struct ids a = text_encode(hand, s, n, 0), b = text_encode(pcre, s, n, 0);
            if (a.n != b.n) print_error("%.*s\n", (int)n, s);
            assert_int_equal(a.n, b.n);
            assert_memory_equal(a.ids, b.ids, a.n * 4);
            free(a.ids);
            free(b.ids);
        }
        struct ids a = text_encode(hand, f.bytes, f.n_bytes, 0),
                   b = text_encode(pcre, f.bytes, f.n_bytes, 0); /* as one text */
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.ids, b.ids, a.n * 4);
        free(a.ids);
        free(b.ids);
        fixture_close(&f);
        tokenizer_close(hand);
        tokenizer_close(pcre);
    }
}

/* The tokenizer of fixtures/text/llama3 with another pre-tokenizer; an empty regex: GPT-2's, which is ByteLevel's own.
 */
static struct tokenizer *open_with_regex(const char *regex) {
    json_t *doc = json_load_file(TEXT_FIXTURES "llama3/tokenizer.json", 0, NULL);
    json_t *pre = json_object_get(doc, "pre_tokenizer"), *steps = json_object_get(pre, "pretokenizers");
    if (*regex) {
        json_object_set_new(json_object_get(json_array_get(steps, 0), "pattern"), "Regex", json_string(regex));
    } else {
        json_array_remove(steps, 0);
        json_object_set_new(json_array_get(steps, 0), "use_regex", json_true());
    }
    char *text = json_dumps(doc, JSON_COMPACT);
    struct hf_files f = {.tokenizer = {text, strlen(text)}};
    struct err e = {0};
    struct tokenizer *t = tokenizer_open_hf_files(&f, &e);
    if (!t) print_error("%s\n", e.message);
    assert_non_null(t);
    free(text);
    json_decref(doc);
    return t;
}

static void patterns_of_other_models_cut_as_in_transformers(void **state) {
    (void)state;
    struct fixture strings = fixture_open(TEXT_FIXTURES "strings.bin"), f = fixture_open(TEXT_FIXTURES "patterns.bin");
    size_t n_patterns = 0;
    for (; !fixture_ends(&f); n_patterns++) {
        char regex[1024];
        size_t n;
        const char *s = fixture_block(&f, &n);
        snprintf(regex, sizeof regex, "%.*s", (int)n, s);
        struct tokenizer *t = open_with_regex(regex);
        for (strings.at = 0; !fixture_ends(&strings);) {
            struct ids a = {NULL, 0};
            struct err e = {0};
            for (int i = 0; i < 100 && !fixture_ends(&strings); i++) {
                s = fixture_block(&strings, &n);
                assert_true(tokenizer_encode(t, s, n, 0, SIZE_MAX, &a.ids, &a.n, &e));
            }
            assert_int_equal(ids_hash(&a), fixture_u64(&f));
            free(a.ids);
        }
        tokenizer_close(t);
    }
    assert_true(n_patterns >= 5);
    fixture_close(&strings);
    fixture_close(&f);
}

static void a_pattern_that_explodes_has_a_result_all_the_same(void **state) {
    (void)state;
    static const char *const regexes[] = {"(a+)+[bc]|a",          "(a|aa)+$|b", "a*a*a*a*[bc]|a",       "a*[bc]|a",
                                          "(?=(a+)[bc])c|\\p{L}", "x*",         "(?:a?){64}a{64}[bc]|."};
    for (size_t i = 0; i < ARRAY_COUNT(regexes); i++) {
        struct tokenizer *t = open_cutter(PRE_NONE, regexes[i]);
        uint64_t work[2];
        for (int k = 0; k < 2; k++) {
            size_t n = 20000u << k, n_back;
            char *text = malloc(n);
            memset(text, 'a', n);
            text[n / 2] = 'x';
            text_work = 0;
            struct ids a = text_encode(t, text, n, 0);
            work[k] = text_work;
            char *back = tokenizer_decode(t, a.ids, a.n, false, &n_back);
            assert_int_equal(n_back, n);
            assert_memory_equal(back, text, n);
            free(back);
            free(a.ids);
            free(text);
        }
        assert_true(work[1] < 200 * 40000u + 2000000u);
        tokenizer_close(t);
    }
}

static void only_patterns_that_mean_the_same_are_taken(void **state) {
    (void)state;
    static const char *const refused[] = {"\\w+",   "\\bx",    "[a[b]]",      "[a-z&&[^b]]",  "\\h",   "[\\S]",
                                          "(",      "[]a]",    "\\",          "\\u12",        "[^]",   "\\K",
                                          "\\C",    "\\Rx",    "[[:alpha:]]", "\\p{N}{1,3}+", "a{,3}", "(?i)a",
                                          "(?m:a)", "(?<x>a)", "(*UTF)a",     "\\p{L",        "a\xff"};
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        struct err e = {0};
        assert_null(pattern_open(refused[i], &e));
        assert_int_equal(e.code, ERR_LOAD);
    }
    static const char *const taken[] = {"\\s+|\\S+",          "[^\\s\\p{L}]+",      "\\u4e00-",
                                        "[\\u4e00-\\u9fff]+", "\\p{Han}+|\\d{1,3}", "^a$",
                                        "\\x{41}+|\\x42",     "(?i:x)|(?>a)|a++",   "\\[\\]\\-"};
    for (size_t i = 0; i < ARRAY_COUNT(taken); i++) {
        struct err e = {0};
        struct pattern *p = pattern_open(taken[i], &e);
        if (!p) print_error("%s: %s\n", taken[i], e.message);
        assert_non_null(p);
        pattern_close(p);
    }
}

/* Our ordering of combining marks against utf8proc's own, which is the same but quadratic. */
static void normalizing_equals_utf8proc(void **state) {
    (void)state;
    static const char *const parts[] = {"a",
                                        "e",
                                        "\xcc\x81",
                                        "\xcc\xa3",
                                        "\xcc\x82",
                                        "\xcd\x85",
                                        "\xea\xb0\x80",
                                        "\xe1\x86\xa8",
                                        "\xe1\x84\x80",
                                        "\xe1\x85\xa1",
                                        "\xf0\x9d\x85\x9e",
                                        "\xe0\xa5\x98",
                                        "\xc3\xa9",
                                        "\xef\xac\x81",
                                        "\xe2\x84\xa6",
                                        "\xcc\x80",
                                        "\xd6\xb0",
                                        "\xcc\x88",
                                        "\xcc\x84",
                                        "U",
                                        " "};
    uint64_t r = 1;
    for (int k = 0; k < 4000; k++) {
        char s[512];
        size_t n = 0, n_out;
        for (int i = 0, n_parts = 1 + k % 80; i < n_parts; i++) {
            r = r * 6364136223846793005u + 1442695040888963407u;
            const char *part = parts[(r >> 33) % (k % 3 ? ARRAY_COUNT(parts) : 6)];
            memcpy(s + n, part, strlen(part));
            n += strlen(part);
        }
        uint8_t *expected = NULL;
        utf8proc_ssize_t n_expected =
            utf8proc_map((const uint8_t *)s, (utf8proc_ssize_t)n, &expected, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        char *out = nfc_normalize(s, n, &n_out);
        assert_int_equal(n_out, n_expected);
        assert_memory_equal(out, expected, n_out);
        if (nfc_is_trivial(s, n)) assert_true(n == n_out && memcmp(s, out, n) == 0);
        free(out);
        free(expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_matchers_by_hand_cut_as_pcre2_does),
        cmocka_unit_test(patterns_of_other_models_cut_as_in_transformers),
        cmocka_unit_test(a_pattern_that_explodes_has_a_result_all_the_same),
        cmocka_unit_test(only_patterns_that_mean_the_same_are_taken),
        cmocka_unit_test(normalizing_equals_utf8proc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
