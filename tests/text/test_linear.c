/* test_linear.c - encoding takes work in proportion to the text (n log n), whatever the text (reliability.md, C29).
 *
 * Counted is text_work (characters classified, bytes hashed, heap levels moved through), not time: twice the text,
 * at most 2.2 times the work, and no more than WORK_PER_BYTE_MAX for a byte.
 *
 * The default model is among them where CHOIR_TEST_MODEL names its file.
 */
#include "engine/text/text_int.h"
#include "tests/text/text_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_BYTES = 1 << 20, N_BYTES_SMALL = 1 << 17, N_LARGE = 6, WORK_PER_BYTE_MAX = 150 };

static uint64_t work_of(const struct tokenizer *t, const char *text, size_t n) {
    text_work = 0;
    struct ids a = text_encode(t, text, n, TOKENIZE_PARSE_SPECIAL);
    free(a.ids);
    return text_work;
}

static void check_growth(const struct tokenizer *t, const char *what, const char *text, size_t n) {
    uint64_t half = work_of(t, text, n / 2), whole = work_of(t, text, n);
    if (whole * 10 > half * 22 || whole > (uint64_t)n * WORK_PER_BYTE_MAX) {
        print_error("%s: %llu for %zu bytes, %llu for %zu\n", what, (unsigned long long)half, n / 2,
                    (unsigned long long)whole, n);
    }
    assert_true(whole * 10 <= half * 22);
    assert_true(whole <= (uint64_t)n * WORK_PER_BYTE_MAX);
}

static void check_tokenizer(const struct tokenizer *t) {
    static const struct {
        const char *unit;
        size_t n;
    } units[] = {
        /* N_LARGE of a megabyte */
        {"a", 1},
        {" ", 1},
        {"\xcc\x81\xcc\xa3", 4},
        {"", 1},
        {"\xff", 1},
        {"\xe4\xb8\xad", 3},
        /* and of N_BYTES_SMALL */
        {"\xcc\x81", 2},
        {"\xcc\xa3\xcc\x81\xe0\xa4\xbc\xd6\xb0", 9},
        {"\xf0\x9f\x98", 3},
        {"1", 1},
        {"'", 1},
        {"\n", 1},
        {" \n", 2},
        {"\n ", 2},
        {"\t", 1},
        {"ab", 2},
        {"ha ", 3},
        {"<", 1},
        {"<|", 2},
        {"<unused", 7},
        {"<|im_start|", 11},
        {"\xf0\x9f\x98\x80", 4},
        {"\xc2\xa0", 2},
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", 9},
        {" <left>", 7},
        {"<right> ", 8},
        {"\xe2\x96\x81", 3},
        {"> </", 4},
    };
    char *text = malloc(N_BYTES);
    assert_non_null(text);
    for (size_t k = 0; k < ARRAY_COUNT(units); k++) {
        for (size_t i = 0; i < N_BYTES; i++) text[i] = units[k].unit[i % units[k].n];
        check_growth(t, units[k].unit, text, k < N_LARGE ? N_BYTES : N_BYTES_SMALL);
        text[N_BYTES_SMALL - 1] = text[N_BYTES_SMALL / 2 - 1] = 'x'; /* the run ends before the text does */
        check_growth(t, units[k].unit, text, N_BYTES_SMALL);
    }
    uint64_t r = 1;
    for (size_t i = 0; i < N_BYTES; i++) {
        r = r * 6364136223846793005u + 1442695040888963407u;
        text[i] = (char)('a' + (r >> 33) % 26);
    }
    check_growth(t, "a word of 100,000 random letters", text, 100000);
    free(text);
}

static void check_path(const char *path) {
    struct err e = {0};
    struct tokenizer *t = text_test_open(path, &e);
    if (!t) print_error("%s\n", e.message);
    assert_non_null(t);
    check_tokenizer(t);
    tokenizer_close(t);
}

static void byte_level_bpe_of_llama3(void **state) {
    (void)state;
    check_path(TEXT_FIXTURES "llama3");
}

static void byte_level_bpe_of_qwen3(void **state) {
    (void)state;
    check_path(TEXT_FIXTURES "qwen3");
}

/* Every pair makes a piece, so that nothing can be cut beforehand. */
static void sentencepiece(void **state) {
    (void)state;
    static const char *const pieces[] = {"aa",   "aaaa", "aaaaaaaa", "ab", "ba", "abab", "a~",  "~a", "~~",
                                         "~~~~", "!<b>", "h",        "a",  "~",  "ha",   "ha~", "th", "er"};
    struct tokenizer *t = spm_open(pieces, ARRAY_COUNT(pieces), true, true);
    check_tokenizer(t);
    tokenizer_close(t);
    t = spm_open(pieces, ARRAY_COUNT(pieces), false, false);
    check_tokenizer(t);
    tokenizer_close(t);
}

static void the_default_model(void **state) {
    (void)state;
    const char *path = getenv("CHOIR_TEST_MODEL");
    if (!path || !*path) skip();
    check_path(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_level_bpe_of_llama3),
        cmocka_unit_test(byte_level_bpe_of_qwen3),
        cmocka_unit_test(sentencepiece),
        cmocka_unit_test(the_default_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
