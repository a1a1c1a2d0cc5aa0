/* test_tokenizer.c - the tokenizer.ggml.* keys: arrays that disagree, wrong types and ids out of range are refused by
 * the name of the key (reliability.md, row C33); a good file gives the tokenizer of the same model's tokenizer.json.
 */
#include "engine/text/text.h"
#include "tests/files/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FIXTURES "tests/fixtures/models/"
#define K(name) "tokenizer.ggml." name

enum { N_VOCAB = 9, N_BYTES = 256, N_BPE = N_BYTES + 6 };

/* What a row changes in a good vocabulary of either kind. */
struct row {
    const char *name, *expect;
    bool bpe;
    const char *model, *pre; /* NULL: good */
    const char *token5;      /* instead of the sixth */
    bool no_bos, empty_tokens;
    size_t n_tokens; /* 0: all; of the scores and types too */
    bool no_tokens, tokens_are_numbers, no_scores, no_types, no_merges;
    size_t n_scores, n_types;               /* 0: N_VOCAB */
    enum gguf_type scores_type, types_type; /* GGUF_U8 (0): good */
    float score;                            /* of the sixth */
    int32_t type5;                          /* of the sixth; 0: normal */
    const char *merge;                      /* one more */
    const char *id_key;                     /* with id */
    uint32_t id;
    const char *flag_key; /* a key that is not a bool */
    const char *true_key; /* a key that is true */
};

static void put_scores(struct bytes *b, const struct row *r) {
    size_t n = r->n_scores ? r->n_scores : r->n_tokens ? r->n_tokens : N_VOCAB;
    key_array(b, K("scores"), r->scores_type ? r->scores_type : GGUF_F32, n);
    for (size_t i = 0; i < n; i++) {
        float score = i == 5 ? r->score : -(float)i;
        bytes_put(b, &score, sizeof score);
    }
}

static void put_types(struct bytes *b, const struct row *r) {
    size_t n = r->n_types ? r->n_types : r->n_tokens ? r->n_tokens : r->bpe ? N_BPE : N_VOCAB;
    static const int32_t kinds[N_VOCAB] = {2, 3, 3, 6, 1, 1, 1, 1, 1};
    key_array(b, K("token_type"), r->types_type ? r->types_type : GGUF_I32, n);
    for (size_t i = 0; i < n; i++) {
        int32_t kind = r->bpe ? (i >= N_BYTES && i < N_BYTES + 2 ? 3 : 1) : kinds[i % N_VOCAB];
        if (i == 5 && r->type5) kind = r->type5 == -1 ? 0 : r->type5;
        put_u32(b, (uint32_t)kind);
    }
}

static void put_merges(struct bytes *b, const struct row *r) {
    const char *merges[] = {"a b", "ab c", r->merge};
    key_strings(b, K("merges"), merges, r->merge ? 3 : 2);
}

/* Byte-level BPE writes a byte as one character: itself where it is printable Latin-1, else U+0100 and up in turn. */
static const char **bpe_tokens(void) {
    static const char *tokens[N_BPE] = {[N_BYTES] = "<bos>", "<eos>", "ab", "abc", "xx", "yy"};
    static char text[N_BYTES][3];
    int n_other = 0;
    for (int b = 0; b < N_BYTES; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
        int c = printable ? b : 256 + n_other++;
        if (c < 128)
            snprintf(text[b], sizeof text[b], "%c", c);
        else
            snprintf(text[b], sizeof text[b], "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
        tokens[b] = text[b];
    }
    return tokens;
}

static void build(struct bytes *b, const struct row *r) {
    const char *spm[N_VOCAB] = {"<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "c", "\u2581"};
    const char **tokens = r->bpe ? bpe_tokens() : spm;
    size_t n_tokens = r->n_tokens ? r->n_tokens : r->bpe ? N_BPE : N_VOCAB;
    uint64_t n_keys = 1;
    struct bytes keys = {0};
    key_str(&keys, K("model"), r->model ? r->model : r->bpe ? "gpt2" : "llama");
    if (r->token5) tokens[5] = r->token5;
    if (r->bpe) key_str(&keys, K("pre"), r->pre ? r->pre : "llama-bpe"), n_keys++;
    if (r->empty_tokens)
        key_strings(&keys, K("tokens"), NULL, 0), n_keys++;
    else if (!r->no_tokens && !r->tokens_are_numbers)
        key_strings(&keys, K("tokens"), tokens, n_tokens), n_keys++;
    if (r->tokens_are_numbers) key_array(&keys, K("tokens"), GGUF_U8, 1), bytes_put(&keys, NULL, 1), n_keys++;
    if (!r->bpe && !r->no_scores) put_scores(&keys, r), n_keys++;
    if (!r->no_types) put_types(&keys, r), n_keys++;
    if (r->bpe && !r->no_merges) put_merges(&keys, r), n_keys++;
    if (r->bpe && !r->no_bos && !(r->id_key && strcmp(r->id_key, K("bos_token_id")) == 0))
        key_u32(&keys, K("bos_token_id"), N_BYTES), n_keys++;
    if (r->id_key) key_u32(&keys, r->id_key, r->id), n_keys++;
    if (r->flag_key) key_u32(&keys, r->flag_key, 1), n_keys++;
    if (r->true_key) key_bool(&keys, r->true_key, 1), n_keys++;
    put_header(b, 0, n_keys);
    bytes_put(b, keys.data, keys.n);
    bytes_free(&keys);
}

static const struct row bad_rows[] = {
    {"unknown model", "'tokenizer.ggml.model' is 'bert'", .model = "bert"},
    {"no tokens", K("tokens"), .no_tokens = true},
    {"tokens are numbers", K("tokens"), .tokens_are_numbers = true},
    {"no token at all", "'tokenizer.ggml.tokens' is empty", .empty_tokens = true},
    {"too few tokens for the default eos", K("eos_token_id"), .n_tokens = 2},
    {"empty token", "element 5", .token5 = ""},
    {"byte below zero", "element 5", .token5 = "<0x-1>", .type5 = 6},
    {"byte of three digits", "element 5", .token5 = "<0x100>", .type5 = 6},
    {"byte in lower case", "element 5", .token5 = "<0xff>", .type5 = 6},
    {"byte without brackets", K("tokens"), .token5 = "0xFF", .type5 = 6},
    {"no scores", K("scores"), .no_scores = true},
    {"too few scores", K("scores"), .n_scores = N_VOCAB - 1},
    {"too many scores", K("scores"), .n_scores = N_VOCAB + 1},
    {"scores are u8", "'tokenizer.ggml.scores' is an array of u32", .scores_type = GGUF_U32},
    {"score is NaN", "'tokenizer.ggml.scores': element 5", .score = NAN},
    {"score is infinite", "'tokenizer.ggml.scores': element 5", .score = INFINITY},
    {"no types", K("token_type"), .no_types = true},
    {"too few types", K("token_type"), .n_types = 1},
    {"types are u32", K("token_type"), .types_type = GGUF_U32},
    {"type 0", "'tokenizer.ggml.token_type': element 5", .type5 = -1},
    {"type 7", "'tokenizer.ggml.token_type': element 5", .type5 = 7},
    {"type below zero", "'tokenizer.ggml.token_type': element 5", .type5 = -2},
    {"bos out of range", K("bos_token_id"), .id_key = K("bos_token_id"), .id = N_VOCAB},
    {"eos 2^32 - 1", K("eos_token_id"), .id_key = K("eos_token_id"), .id = UINT32_MAX},
    {"unk 2^31", K("unknown_token_id"), .id_key = K("unknown_token_id"), .id = 1u << 31},
    {"eot out of range", K("eot_token_id"), .id_key = K("eot_token_id"), .id = N_VOCAB},
    {"add_bos is a number", K("add_bos_token"), .flag_key = K("add_bos_token")},
    {"add_space_prefix is a number", K("add_space_prefix"), .flag_key = K("add_space_prefix")},
    {"a normalizer", K("remove_extra_whitespaces"), .true_key = K("remove_extra_whitespaces")},
    {"a character map", K("precompiled_charsmap"), .true_key = K("precompiled_charsmap")},
    {"a bos that is missing", K("bos_token_id"), .bpe = true, .no_bos = true},
    {"a space prefix with bpe", K("add_space_prefix"), .bpe = true, .true_key = K("add_space_prefix")},
    {"unknown pre-tokenizer", "'tokenizer.ggml.pre' is 'gpt-9'", .bpe = true, .pre = "gpt-9"},
    {"no merges", K("merges"), .bpe = true, .no_merges = true},
    {"merge without a space", "'tokenizer.ggml.merges': element 2", .bpe = true, .merge = "ab"},
    {"merge with an empty left", "'tokenizer.ggml.merges': element 2", .bpe = true, .merge = " b"},
    {"merge with an empty right", "'tokenizer.ggml.merges': element 2", .bpe = true, .merge = "a "},
    {"empty merge", "'tokenizer.ggml.merges': element 2", .bpe = true, .merge = ""},
    {"eos out of range, bpe", K("eos_token_id"), .bpe = true, .id_key = K("eos_token_id"), .id = 1000},
    {"an eos that is missing", K("eos_token_id"), .bpe = true, .true_key = K("add_eos_token")},
    /* What only the tokenizer itself can see; its message speaks of the vocabulary. */
    {"duplicate token", "the same", .token5 = "a"},
    {"merge of a token that is not there", "left side of merge 2", .bpe = true, .merge = "qq y"},
    {"merge to a token that is not there", "result of merge 2", .bpe = true, .merge = "d e"},
};

static struct tokenizer *open_row(const struct row *r, struct err *e) {
    struct bytes b = {0};
    build(&b, r);
    struct tensor_file *f = tensor_file_open_memory(b.data, b.n, NULL, 0, e);
    if (!f) fail_msg("%s: %s", r->name, e->message);
    struct tokenizer *t = tensor_file_tokenizer(f, e);
    tensor_file_close(f);
    bytes_free(&b);
    return t;
}

static void bad_vocabularies_are_refused_by_key(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad_rows); i++) {
        struct err e = {0};
        if (open_row(&bad_rows[i], &e)) fail_msg("%s: was not refused", bad_rows[i].name);
        check_refused(bad_rows[i].name, NULL, &e, bad_rows[i].expect);
    }
}

static void good_vocabularies_are_taken(void **state) {
    (void)state;
    struct err e;
    struct tokenizer *t = open_row(&(struct row){.name = "spm", .id_key = K("eot_token_id"), .id = 7}, &e);
    if (!t) fail_msg("%s", e.message);
    assert_int_equal(tokenizer_n_vocab(t), N_VOCAB);
    assert_int_equal(tokenizer_bos(t), 1); /* llama.cpp's defaults */
    assert_int_equal(tokenizer_eos(t), 2);
    assert_true(tokenizer_adds_bos(t));
    assert_true(tokenizer_is_eog(t, 7) && tokenizer_is_eog(t, 2) && !tokenizer_is_eog(t, 4));
    assert_int_equal(tokenizer_kind_of(t, 3), TOKEN_BYTE);
    tokenizer_close(t);
    t = open_row(&(struct row){.name = "bpe", .bpe = true}, &e);
    if (!t) fail_msg("%s", e.message);
    assert_int_equal(tokenizer_bos(t), N_BYTES);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_true(tokenizer_adds_bos(t)); /* the default with llama-bpe */
    tokenizer_close(t);
}

/* make_models.py wrote one tokenizer twice: as tokenizer.json by the tokenizers package, as keys by the gguf package.
 */
static void keys_and_tokenizer_json_make_the_same_tokenizer(void **state) {
    (void)state;
    static const char *const texts[] = {"", "You may reproduce and distribute copies of the Work.",
                                        "  two  spaces\n\n\tand 12345 digits", "caf\xc3\xa9 \xe4\xbd\xa0\xe5\xa5\xbd",
                                        "it's <|end_of_text|> we'LL"};
    struct err e;
    struct tensor_file *g = tensor_file_open(FIXTURES "llama3_gguf/model.gguf", &e);
    struct tensor_file *h = tensor_file_open(FIXTURES "llama3_f32", &e);
    if (!g || !h) fail_msg("%s", e.message);
    struct tokenizer *a = tensor_file_tokenizer(g, &e);
    if (!a) fail_msg("%s", e.message);
    struct tokenizer *b = tensor_file_tokenizer(h, &e);
    if (!b) fail_msg("%s", e.message);
    tensor_file_close(g);
    tensor_file_close(h);
    assert_int_equal(tokenizer_n_vocab(a), tokenizer_n_vocab(b));
    assert_int_equal(tokenizer_bos(a), tokenizer_bos(b));
    assert_int_equal(tokenizer_eos(a), tokenizer_eos(b));
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        for (unsigned flags = 0; flags < 4; flags++) {
            int32_t *x = NULL, *y = NULL;
            size_t n_x = 0, n_y = 0;
            assert_true(tokenizer_encode(a, texts[i], strlen(texts[i]), flags, 1000, &x, &n_x, &e));
            assert_true(tokenizer_encode(b, texts[i], strlen(texts[i]), flags, 1000, &y, &n_y, &e));
            assert_int_equal(n_x, n_y);
            if (n_x) assert_memory_equal(x, y, n_x * sizeof *x);
            free(x);
            free(y);
        }
    }
    tokenizer_close(a);
    tokenizer_close(b);
}

/* Ids as transformers has them for google/gemma-3-270m. */
static void the_default_model_has_its_tokenizer(void **state) {
    (void)state;
    if (!default_model()) skip();
    static const int32_t want[] = {2, 818, 5279, 529, 7001, 563};
    static const char text[] = "The capital of France is";
    struct err e;
    struct tensor_file *f = tensor_file_open(default_model(), &e);
    assert_non_null(f);
    struct tokenizer *t = tensor_file_tokenizer(f, &e);
    if (!t) fail_msg("%s", e.message);
    tensor_file_close(f);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_true(tokenizer_encode(t, text, sizeof text - 1, TOKENIZE_ADD_SPECIAL, 100, &ids, &n, &e));
    assert_int_equal(n, ARRAY_COUNT(want));
    assert_memory_equal(ids, want, sizeof want);
    assert_int_equal(tokenizer_n_vocab(t), 262144);
    assert_true(tokenizer_is_eog(t, 1) && tokenizer_is_eog(t, tokenizer_find(t, "<end_of_turn>", 13)));
    free(ids);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_vocabularies_are_refused_by_key),
        cmocka_unit_test(good_vocabularies_are_taken),
        cmocka_unit_test(keys_and_tokenizer_json_make_the_same_tokenizer),
        cmocka_unit_test(the_default_model_has_its_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
