/* fuzz_text.c - any bytes as text for each kind of tokenizer: what goes in comes out, in bounded work. */
#include "engine/text/text_int.h"
#include "tests/text/text_test.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

const char *const fuzz_words[] = {"<|im_start|>",
                                  "<|eot_id|>",
                                  "<left>",
                                  "<right>",
                                  "<both>",
                                  "<think>",
                                  "<cafe\xcc\x81>",
                                  "\xe2\x96\x81",
                                  "\xcc\x81\xcc\xa3",
                                  "    ",
                                  "\r\n",
                                  "'ll",
                                  "123",
                                  "\xf0\x9f\x98\x80",
                                  "\xef\xbf\xbd",
                                  "<b>",
                                  "\xc5\xbf",
                                  "\xe4\xb8",
                                  NULL};

enum { LLAMA3, QWEN3, SPM, SPM_PREFIX, SPM_UNKNOWN, TOKENIZERS };
static struct tokenizer *tokenizers[TOKENIZERS];

static void open_all(void) {
    static const char *const pieces[] = {"aa", "th", "the", "~the", "~",        "~~",           "!~~~", "!<b>",
                                         "e",  "t",  "h",   "a",    "\xc3\xa9", "\xe4\xb8\xad", "<",    "b>"};
    struct err e = {0};
    tokenizers[LLAMA3] = tokenizer_open_hf("../fixtures/text/llama3", &e);
    tokenizers[QWEN3] = tokenizer_open_hf("../fixtures/text/qwen3", &e);
    tokenizers[SPM] = spm_open(pieces, ARRAY_COUNT(pieces), true, false);
    tokenizers[SPM_PREFIX] = spm_open(pieces, ARRAY_COUNT(pieces), true, true);
    tokenizers[SPM_UNKNOWN] = spm_open(pieces, ARRAY_COUNT(pieces), false, true);
    ASSERT(tokenizers[LLAMA3] && tokenizers[QWEN3]);
}

/* Joins the pieces of the incremental detokenizer; each must be valid by itself. */
static void check_pushes(const struct tokenizer *t, const struct ids *a, const char *whole, size_t n_whole) {
    struct detok d;
    size_t at = 0;
    detok_init(&d, t, false, true);
    for (size_t i = 0; i <= a->n; i++) {
        size_t n;
        char *s = i < a->n ? detok_push(&d, a->ids[i], &n) : detok_flush(&d, &n);
        ASSERT(s && utf8_valid(s, n) && n <= n_whole - at && memcmp(whole + at, s, n) == 0);
        at += n;
        free(s);
    }
    ASSERT(at == n_whole);
}

static void check_plain(int kind, const char *text, size_t n) {
    const struct tokenizer *t = tokenizers[kind];
    size_t n_back, n_good;
    text_work = 0;
    struct ids a = text_encode(t, text, n, 0);
    ASSERT(text_work <= 200 * (uint64_t)n + 1000);
    char *back = tokenizer_decode(t, a.ids, a.n, false, &n_back), *good = utf8_repair(text, n, &n_good);
    ASSERT(back && good && utf8_valid(back, n_back));
    if (kind == SPM || kind == SPM_PREFIX) { /* U+2581 comes back as a space */
        char *spaced = malloc(n_good + 1);
        ASSERT(spaced);
        n_good = copy_spaced(good, n_good, spaced);
        free(good);
        good = spaced;
    }
    if (kind != QWEN3 && kind != SPM_UNKNOWN) ASSERT(n_back == n_good && memcmp(back, good, n_good) == 0);
    for (size_t i = 0; i < a.n; i++) ASSERT(tokenizer_kind_of(t, a.ids[i]) != TOKEN_CONTROL);
    check_pushes(t, &a, back, n_back);
    struct ids short_of = {NULL, 0};
    struct err e = {0};
    if (a.n > 0)
        ASSERT(!tokenizer_encode(t, text, n, 0, a.n - 1, &short_of.ids, &short_of.n, &e) &&
               e.code == ERR_CONTEXT_LENGTH);
    free(short_of.ids);
    free(back);
    free(good);
    free(a.ids);
}

static size_t count_controls(const struct tokenizer *t, const char *text, size_t n) {
    struct chat_message m[] = {{"system", text, n}, {"user", text, n}};
    struct ids a = {NULL, 0};
    struct err e = {0};
    size_t n_controls = 0;
    ASSERT(chat_encode(t, m, 2, true, SIZE_MAX, &a.ids, &a.n, &e));
    for (size_t i = 0; i < a.n; i++) n_controls += tokenizer_kind_of(t, a.ids[i]) == TOKEN_CONTROL;
    free(a.ids);
    return n_controls;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!tokenizers[0]) open_all();
    const char *text = (const char *)data;
    for (int kind = 0; kind < TOKENIZERS; kind++) {
        check_plain(kind, text, size);
        struct ids a = text_encode(tokenizers[kind], text, size, TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL);
        free(a.ids);
        ASSERT(count_controls(tokenizers[kind], text, size) == count_controls(tokenizers[kind], "", 0));
    }
    return 0;
}
