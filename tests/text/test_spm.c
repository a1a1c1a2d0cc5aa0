/* test_spm.c - rules of SentencePiece BPE, each on a vocabulary of a few pieces; sentencepiece itself, given the same
 * pieces, makes the same of the texts without control tokens. */
#include "tests/text/text_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assert_ids(const struct tokenizer *t, const char *text, unsigned flags, const int32_t *expected, size_t n) {
    struct ids a = text_encode(t, text, strlen(text), flags);
    for (size_t i = 0; a.n != n && i < a.n; i++) print_error(" %d", a.ids[i]);
    assert_int_equal(a.n, n);
    assert_memory_equal(a.ids, expected, n * 4);
    free(a.ids);
}
#define ASSERT_IDS(t, text, flags, ...)                                                                                \
    assert_ids(t, text, flags, (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void better_scores_merge_first_and_leftmost_among_equals(void **state) {
    (void)state;
    enum { BC = SPM_FIRST_PIECE, AB, A, B, C, D, CD };
    struct tokenizer *t = spm_open((const char *const[]){"bc", "ab", "a", "b", "c", "d", "cd"}, 7, true, false);
    ASSERT_IDS(t, "abc", 0, A, BC);
    ASSERT_IDS(t, "abcd", 0, A, BC, D);
    ASSERT_IDS(t, "abab", 0, AB, AB);
    ASSERT_IDS(t, "bcbcb", 0, BC, BC, B);
    tokenizer_close(t);
    t = spm_open((const char *const[]){"a", "aa"}, 2, true, false);
    ASSERT_IDS(t, "aaaaa", 0, BC + 1, BC + 1, BC); /* all pairs score the same: from the left */
    tokenizer_close(t);
}

static void pieces_may_have_spaces_inside(void **state) {
    (void)state;
    enum { A = SPM_FIRST_PIECE, B, SPACE, B_SPACE, A_SPACE, A_SPACE_B, SPACES };
    struct tokenizer *t = spm_open((const char *const[]){"a", "b", "~", "b~", "a~", "a~b", "~~"}, 7, true, false);
    ASSERT_IDS(t, "a b", 0, A_SPACE_B);
    ASSERT_IDS(t, "b a b b", 0, B_SPACE, A_SPACE, B_SPACE, B);
    ASSERT_IDS(t, "    a", 0, SPACES, SPACES, A);
    tokenizer_close(t);
}

static void user_defined_pieces_come_before_merges_longest_first(void **state) {
    (void)state;
    enum { X = SPM_FIRST_PIECE, B, SPACES2, SPACES3, SPACE, TAG };
    struct tokenizer *t = spm_open((const char *const[]){"x", "b>", "!~~", "!~~~", "~", "!<b>"}, 6, true, false);
    ASSERT_IDS(t, "x<b>x", 0, X, TAG, X);
    ASSERT_IDS(t, "b>", 0, B);
    ASSERT_IDS(t, "x     x", 0, X, SPACES3, SPACES2, X);
    ASSERT_IDS(t, "\xe2\x96\x81 x", 0, SPACES2, X); /* U+2581 is a space */
    ASSERT_IDS(t, " <b> ", 0, SPACE, TAG, SPACE);
    tokenizer_close(t);
}

static void the_space_prefix_precedes_text_and_text_after_control_tokens(void **state) {
    (void)state;
    enum { SA = SPM_FIRST_PIECE, A, SPACE, TAG };
    struct tokenizer *t = spm_open((const char *const[]){"~a", "a", "~", "!<b>"}, 4, true, true);
    ASSERT_IDS(t, "a", TOKENIZE_ADD_SPECIAL, 1, SA);
    ASSERT_IDS(t, " a", 0, SPACE, SA);
    ASSERT_IDS(t, "<b>a", 0, SPACE, TAG, A);
    ASSERT_IDS(t, "a</s>a", TOKENIZE_PARSE_SPECIAL, SA, 2, SA);
    struct ids none = text_encode(t, "", 0, 0);
    assert_int_equal(none.n, 0);
    tokenizer_close(t);
}

static void characters_without_a_piece_become_bytes_or_one_unknown(void **state) {
    (void)state;
    enum { A = SPM_FIRST_PIECE };
    struct tokenizer *t = spm_open((const char *const[]){"a"}, 1, true, false);
    ASSERT_IDS(t, "a\xc3\xa9", 0, A, SPM_FIRST_BYTE + 0xc3, SPM_FIRST_BYTE + 0xa9);
    struct ids nul = text_encode(t, "a\0a", 3, 0);
    assert_true(nul.n == 3 && nul.ids[1] == SPM_FIRST_BYTE);
    free(nul.ids);
    tokenizer_close(t);
    t = spm_open((const char *const[]){"a"}, 1, false, false);
    ASSERT_IDS(t, "a\xc3\xa9?a ?", 0, 3, 0, 3, 0);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(better_scores_merge_first_and_leftmost_among_equals),
        cmocka_unit_test(pieces_may_have_spaces_inside),
        cmocka_unit_test(user_defined_pieces_come_before_merges_longest_first),
        cmocka_unit_test(the_space_prefix_precedes_text_and_text_after_control_tokens),
        cmocka_unit_test(characters_without_a_piece_become_bytes_or_one_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
