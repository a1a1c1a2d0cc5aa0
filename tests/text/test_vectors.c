/* test_vectors.c - equality with other people's tokenizers on the fixtures of tests/fixtures/text.
 *
 *   test_vectors NAME MODEL     MODEL "default": the file that CHOIR_TEST_MODEL names; skipped without
 *
 * Oracles: sentencepiece, llama.cpp and transformers (make_text.py says which for what).
 */
#include "tests/text/text_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include <cmocka.h>

static const char *name;
static struct tokenizer *t;

static struct fixture open_named(const char *kind) {
    char path[256];
    snprintf(path, sizeof path, TEXT_FIXTURES "%s.%s.bin", name, kind);
    return fixture_open(path);
}

/* Encodes every string of `strings` and compares with the next hashes of `expect`. */
static size_t check_hashes(struct fixture *strings, struct fixture *expect, unsigned flags) {
    size_t n_strings = 0, n_wrong = 0;
    for (strings->at = 0; !fixture_ends(strings); n_strings++) {
        size_t n;
        const char *s = fixture_block(strings, &n);
        struct ids a = text_encode(t, s, n, flags);
        if (ids_hash(&a) != fixture_u64(expect) && n_wrong++ < 5)
            print_error("string %zu differs (flags %u): %.*s\n", n_strings, flags, (int)n, s);
        free(a.ids);
    }
    assert_int_equal(n_wrong, 0);
    return n_strings;
}

static void ids_of_all_strings_equal_the_oracles(void **state) {
    (void)state;
    struct fixture strings = fixture_open(TEXT_FIXTURES "strings.bin"), special = open_named("special"),
                   expect = open_named("expect");
    assert_true(check_hashes(&strings, &expect, 0) >= 10000);
    assert_true(check_hashes(&special, &expect, 0) >= 400); /* names of special tokens in text stay text */
    assert_true(check_hashes(&special, &expect, TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL) >= 400);
    strings.at = 0;
    for (int i = 0; i < 200; i++) { /* the ids themselves, so that a failure can be read */
        size_t n, n_ids;
        const char *s = fixture_block(&strings, &n);
        const int32_t *ids = fixture_ids(&expect, &n_ids);
        struct ids a = text_encode(t, s, n, 0);
        assert_int_equal(a.n, n_ids);
        assert_memory_equal(a.ids, ids, n_ids * 4);
        free(a.ids);
    }
    assert_true(fixture_ends(&expect));
    fixture_close(&strings);
    fixture_close(&special);
    fixture_close(&expect);
}

/* Joins what the incremental detokenizer gives; each piece must be whole characters. */
static char *push_all(const int32_t *ids, size_t n_ids, size_t *n_out) {
    struct detok d;
    detok_init(&d, t, false, true);
    char *all = calloc(1, 1 << 20);
    *n_out = 0;
    for (size_t i = 0; i <= n_ids; i++) {
        size_t n;
        char *s = i < n_ids ? detok_push(&d, ids[i], &n) : detok_flush(&d, &n);
        assert_non_null(s);
        assert_true(utf8_valid(s, n) && s[n] == '\0' && *n_out + n < 1 << 20);
        memcpy(all + *n_out, s, n);
        *n_out += n;
        free(s);
    }
    return all;
}

static void decoding_equals_the_oracle_at_once_and_piece_by_piece(void **state) {
    (void)state;
    struct fixture f = open_named("decode");
    size_t n_cases = 0;
    for (; !fixture_ends(&f); n_cases++) {
        size_t n_ids, n_text, n;
        const int32_t *ids = fixture_ids(&f, &n_ids);
        const char *text = fixture_block(&f, &n_text);
        char *s = tokenizer_decode(t, ids, n_ids, false, &n);
        if (n != n_text || memcmp(s, text, n) != 0)
            print_error("case %zu: %.*s, not %.*s\n", n_cases, (int)n, s, (int)n_text, text);
        assert_int_equal(n, n_text);
        assert_memory_equal(s, text, n);
        free(s);
        s = push_all(ids, n_ids, &n);
        assert_int_equal(n, n_text);
        assert_memory_equal(s, text, n);
        free(s);
    }
    assert_true(n_cases >= 1500);
    fixture_close(&f);
}

static void conversations_equal_the_family_template(void **state) {
    (void)state;
    struct fixture f = open_named("chat");
    size_t n_cases = 0;
    for (; !fixture_ends(&f); n_cases++) {
        struct chat_message m[16];
        char roles[16][16];
        uint32_t n = fixture_u32(&f), generation = fixture_u32(&f);
        assert_true(n <= 16);
        for (uint32_t i = 0; i < n; i++) {
            size_t n_role;
            const char *role = fixture_block(&f, &n_role);
            snprintf(roles[i], sizeof roles[i], "%.*s", (int)n_role, role);
            m[i].role = roles[i];
            m[i].content = fixture_block(&f, &m[i].n_content);
        }
        size_t n_ids;
        const int32_t *ids = fixture_ids(&f, &n_ids);
        struct ids a = {NULL, 0};
        struct err e = {0};
        assert_true(chat_encode(t, m, n, generation, SIZE_MAX, &a.ids, &a.n, &e));
        if (a.n != n_ids || memcmp(a.ids, ids, n_ids * 4) != 0) print_error("conversation %zu\n", n_cases);
        assert_int_equal(a.n, n_ids);
        assert_memory_equal(a.ids, ids, n_ids * 4);
        free(a.ids);
    }
    assert_true(n_cases >= 14);
    fixture_close(&f);
}

/* The text of a token, as a user would type it, tokenizes and converses without any control token of its own. */
static void no_control_token_can_be_written_by_a_user(void **state) {
    (void)state;
    struct chat_message m = {"user", "x", 1};
    struct err e = {0};
    struct ids plain = {NULL, 0};
    assert_true(chat_encode(t, &m, 1, true, SIZE_MAX, &plain.ids, &plain.n, &e));
    size_t n_markers = 0, n_controls = 0;
    for (size_t i = 0; i < plain.n; i++) n_markers += tokenizer_kind_of(t, plain.ids[i]) == TOKEN_CONTROL;
    assert_true(n_markers >= 3);
    for (int32_t id = 0; id < (int32_t)tokenizer_n_vocab(t); id++) {
        enum token_kind kind = tokenizer_kind_of(t, id);
        if (kind != TOKEN_CONTROL && kind != TOKEN_UNKNOWN) continue;
        char content[8300];
        uint32_t n;
        const char *s = tokenizer_bytes(t, id, true, &n);
        m.content = content;
        m.n_content = (size_t)snprintf(content, sizeof content, "%.*s\n<%.*s>", (int)n, s, (int)n, s);
        struct ids a = {NULL, 0};
        assert_true(chat_encode(t, &m, 1, true, SIZE_MAX, &a.ids, &a.n, &e));
        size_t n_found = 0;
        for (size_t i = 0; i < a.n; i++)
            n_found +=
                tokenizer_kind_of(t, a.ids[i]) == TOKEN_CONTROL || tokenizer_kind_of(t, a.ids[i]) == TOKEN_UNKNOWN;
        assert_int_equal(n_found, n_markers);
        free(a.ids);
        a = text_encode(t, s, n, 0);
        for (size_t i = 0; i < a.n; i++) assert_int_not_equal(tokenizer_kind_of(t, a.ids[i]), TOKEN_CONTROL);
        free(a.ids);
        a = text_encode(t, s, n, TOKENIZE_PARSE_SPECIAL);
        assert_true(a.n == 1 && a.ids[0] == id);
        free(a.ids);
        n_controls++;
    }
    assert_true(n_controls >= 3);
    free(plain.ids);
}

/* Text comes back as it was: but for NFC (Qwen; utf8proc's own is the oracle), and U+2581, which SentencePiece takes
 * for a space. */
static void decoding_undoes_encoding(void **state) {
    (void)state;
    bool nfc = strcmp(name, "qwen3") == 0;
    struct fixture strings = fixture_open(TEXT_FIXTURES "strings.bin");
    while (!fixture_ends(&strings)) {
        size_t n, n_out;
        const char *s = fixture_block(&strings, &n);
        if (strcmp(name, "gemma") == 0 && memmem(s, n, "\xe2\x96\x81", 3)) continue;
        struct ids a = text_encode(t, s, n, TOKENIZE_ADD_SPECIAL);
        char *back = tokenizer_decode(t, a.ids, a.n, false, &n_out);
        uint8_t *normal = NULL;
        if (nfc) {
            n = (size_t)utf8proc_map((const uint8_t *)s, (utf8proc_ssize_t)n, &normal,
                                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
            s = (const char *)normal;
        }
        assert_int_equal(n_out, n);
        assert_memory_equal(back, s, n);
        free(normal);
        free(back);
        free(a.ids);
    }
    fixture_close(&strings);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    name = argv[1];
    const char *model = strcmp(argv[2], "default") == 0 ? getenv("CHOIR_TEST_MODEL") : argv[2];
    if (!model || !*model) {
        puts("skipped: CHOIR_TEST_MODEL does not name the default model's file");
        return 77;
    }
    struct err e = {0};
    t = text_test_open(model, &e);
    if (!t) {
        fprintf(stderr, "%s\n", e.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_of_all_strings_equal_the_oracles),
        cmocka_unit_test(decoding_equals_the_oracle_at_once_and_piece_by_piece),
        cmocka_unit_test(conversations_equal_the_family_template),
        cmocka_unit_test(no_control_token_can_be_written_by_a_user),
        cmocka_unit_test(decoding_undoes_encoding),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(t);
    return n_failed;
}
