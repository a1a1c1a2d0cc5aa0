/* test_refuse.c - vocabularies and tokenizer.json files that are wrong or not understood are refused when they are
 * opened, and the message says what (reliability.md, C33). */
#include "engine/text/hf_int.h"
#include "tests/text/text_test.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- specs ---- */

static struct bpe_parts p;

static void assert_refused(const char *says) {
    struct err e = {0};
    struct tokenizer *t = tokenizer_open(&p.spec, &e);
    assert_null(t);
    if (!strstr(e.message, says)) print_error("\"%s\" does not say \"%s\"\n", e.message, says);
    assert_non_null(strstr(e.message, says));
    assert_int_equal(e.code, ERR_LOAD);
}

static void reset(void) {
    static const char *const merges[] = {"t h", "th e"};
    bpe_parts_init(&p, merges, 2);
}

static void set_token(uint32_t id, const char *text, enum token_kind kind) {
    p.vocab[id] = (struct vocab_entry){text, (uint32_t)strlen(text), 0, kind};
    if (id >= p.spec.n_vocab) p.spec.n_vocab = id + 1;
}

static void broken_vocabularies(void **state) {
    (void)state;
    struct err e = {0};
    reset();
    struct tokenizer *t = tokenizer_open(&p.spec, &e);
    assert_non_null(t); /* the unbroken one is taken */
    tokenizer_close(t);
    set_token(258, "the", TOKEN_NORMAL);
    assert_refused("tokens 257 and 258 are the same");
    reset();
    set_token(258, "", TOKEN_NORMAL);
    assert_refused("token 258 has 0 bytes");
    set_token(258, "", TOKEN_CONTROL);
    assert_refused("token 258 has 0 bytes");
    p.vocab[258] = (struct vocab_entry){"x", TEXT_PIECE_BYTES_MAX + 1, 0, TOKEN_NORMAL};
    assert_refused("token 258 has");
    set_token(258, "<0x41>", TOKEN_BYTE);
    assert_refused("token 258 is marked as a byte");
    set_token(258, "<x\xff>", TOKEN_CONTROL);
    assert_refused("token 258 is not valid UTF-8");
    set_token(258, "x", (enum token_kind)99);
    assert_refused("token 258 has an unknown type");
    set_token(258, "<x>", TOKEN_NORMAL);
    p.vocab[258].score = NAN;
    assert_refused("score of token 258");
    reset();
    p.vocab[65].kind = TOKEN_UNUSED;
    assert_refused("no token for some bytes");
    p.spec.n_vocab = 0;
    assert_refused("0 tokens");
}

static void broken_ids_and_merges(void **state) {
    (void)state;
    static const int32_t out[] = {258}, negative[] = {-1};
    reset();
    p.spec.bos = 258;
    assert_refused("bos token 258");
    reset();
    p.spec.eos = -2;
    assert_refused("eos token -2");
    reset();
    p.spec.unk = INT32_MAX;
    assert_refused("unknown token");
    reset();
    p.spec.eog = out;
    p.spec.n_eog = 1;
    assert_refused("end token 258");
    p.spec.eog = negative;
    assert_refused("end token -1");
    p.spec.n_eog = 1000;
    assert_refused("1000 end tokens");
    reset();
    p.spec.add_bos = true;
    assert_refused("to be added but there is none");
    static const struct {
        struct merge_entry m;
        const char *says;
    } merges[] = {{{"zz", "a", 2, 1}, "left side of merge 1"},
                  {{"a", "zz", 1, 2}, "right side of merge 1"},
                  {{"a", "b", 1, 1}, "result of merge 1"},
                  {{"", "a", 0, 1}, "left side of merge 1"},
                  {{"a", "\xff", 1, 1}, "right side of merge 1"}};
    for (size_t i = 0; i < ARRAY_COUNT(merges); i++) {
        reset();
        p.merges[1] = merges[i].m;
        assert_refused(merges[i].says);
    }
}

static void broken_byte_tokens(void **state) {
    (void)state;
    static const char *const names[] = {"<0x-1>", "<0x4>", "<0x100>", "0x41", "<0xGG>", "<0x 1>", "<0x4a>", "<0x+1>"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct vocab_entry vocab[] = {{"<unk>", 5, 0, TOKEN_UNKNOWN},
                                      {names[i], (uint32_t)strlen(names[i]), 0, TOKEN_BYTE}};
        p.spec = (struct tokenizer_spec){
            .kind = TOKENIZER_SPM, .vocab = vocab, .n_vocab = 2, .bos = -1, .eos = -1, .byte_fallback = true};
        assert_refused("token 1 is marked as a byte");
    }
    struct vocab_entry twice[] = {
        {"<unk>", 5, 0, TOKEN_UNKNOWN}, {"<0x41>", 6, 0, TOKEN_BYTE}, {"<0x41>", 6, 0, TOKEN_BYTE}};
    p.spec.vocab = twice;
    p.spec.n_vocab = 3;
    assert_refused("tokens 1 and 2 are the same byte");
    p.spec.n_vocab = 2;
    p.spec.unk = -1;
    assert_refused("no unknown token");
}

/* ---- tokenizer.json ---- */

static json_t *doc;

static struct tokenizer *open_doc(struct err *e) {
    char *text = json_dumps(doc, JSON_COMPACT);
    struct hf_files f = {.tokenizer = {text, strlen(text)}};
    struct tokenizer *t = tokenizer_open_hf_files(&f, e);
    free(text);
    return t;
}

/* Puts the JSON at the dotted path ("added_tokens.0.id"); "-" takes the member away. */
static void edit(const char *path, const char *json) {
    char part[64];
    json_t *at = doc;
    while (true) {
        size_t n = strcspn(path, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        path += n;
        if (*path == '\0') break;
        path++;
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(part)) : json_object_get(at, part);
        assert_non_null(at);
    }
    json_t *value = json_loads(json, JSON_DECODE_ANY, NULL);
    if (strcmp(json, "-") == 0)
        json_object_del(at, part);
    else if (json_is_array(at))
        json_array_set_new(at, (size_t)atoi(part), value);
    else
        json_object_set_new(at, part, value);
}

static void load_doc(const char *name) {
    char path[256];
    snprintf(path, sizeof path, TEXT_FIXTURES "%s/tokenizer.json", name);
    doc = json_load_file(path, 0, NULL);
    assert_non_null(doc);
}

static void constructs_that_are_not_supported_are_named(void **state) {
    (void)state;
    static const struct {
        const char *path, *json, *says;
    } cases[] = {
        {"model.type", "\"Unigram\"", "the model 'Unigram'"},
        {"model.dropout", "0.1", "'dropout'"},
        {"model.byte_fallback", "true", "'byte_fallback'"},
        {"model.continuing_subword_prefix", "\"##\"", "'continuing_subword_prefix'"},
        {"model.end_of_word_suffix", "\"</w>\"", "'end_of_word_suffix'"},
        {"model.new_thing", "1", "new_thing"},
        {"new_thing", "{}", "new_thing"},
        {"normalizer", "{\"type\":\"Lowercase\"}", "the normalizer 'Lowercase'"},
        {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Replace\"}]}",
         "the normalizer 'Replace'"},
        {"normalizer", "{\"type\":\"bad \\u0007 name\"}", "'bad???name'"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\"}", "the pre-tokenizer 'Metaspace'"},
        {"pre_tokenizer", "null", "is not ByteLevel"},
        {"pre_tokenizer.pretokenizers.0.behavior", "\"Removed\"", "the behavior 'Removed'"},
        {"pre_tokenizer.pretokenizers.0.invert", "true", "'invert'"},
        {"pre_tokenizer.pretokenizers.0.pattern", "{\"String\":\" \"}", "String"},
        {"pre_tokenizer.pretokenizers.0.pattern.Regex", "\"\\\\w+\"", "\\w"},
        {"pre_tokenizer.pretokenizers.1.add_prefix_space", "true", "'add_prefix_space'"},
        {"pre_tokenizer.pretokenizers.1.use_regex", "true", "a second 'Split'"},
        {"pre_tokenizer.pretokenizers.1", "{\"type\":\"Digits\"}", "'Digits'"},
        {"decoder", "{\"type\":\"WordPiece\"}", "the decoder 'WordPiece'"},
        {"decoder", "-", "decoder"},
        {"post_processor", "{\"type\":\"BertProcessing\"}", "the post-processor 'BertProcessing'"},
        {"post_processor.processors.1.single",
         "[{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\"}},{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\"}},{"
         "\"Sequence\":{\"id\":\"A\"}}]",
         "more"},
        {"post_processor.processors.1.single", "[{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\"}}]", "no text"},
        {"post_processor.processors.1.single.0", "{\"SpecialToken\":{\"id\":\"<none>\"}}", "<none>"},
        {"added_tokens.0.single_word", "true", "'single_word'"},
        {"added_tokens.0.surprise", "true", "surprise"},
        {"added_tokens.0.id", "1", "another token's"},
        {"added_tokens.0.id", "-1", "added_tokens[0].id"},
        {"added_tokens.0.id", "99999999", "added_tokens[0].id"},
        {"added_tokens.0.content", "\"\"", "needs an id and a content"},
        {"added_tokens.0.special", "1", "added_tokens[0].special"},
        {"model.vocab.a", "99999999", "model.vocab"},
        {"model.vocab.a", "\"x\"", "model.vocab"},
        {"model.vocab.a", "66", "the id 66"},
        {"model.vocab", "[]", "model.vocab"},
        {"model.vocab.", "9000", "empty"},
        {"model.merges.0", "\"a\"", "one space"},
        {"model.merges.0", "\"a b c\"", "one space"},
        {"model.merges.0", "[\"a\"]", "model.merges[0]"},
        {"model.merges.0", "[\"a\",\"zzzz\"]", "right side of merge 0"},
        {"model.merges.0", "7", "model.merges[0]"},
        {"model", "-", "model"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err e = {0};
        load_doc("llama3");
        edit(cases[i].path, cases[i].json);
        struct tokenizer *t = open_doc(&e);
        bool says = strstr(e.message, cases[i].says) || strstr(e.param, cases[i].says);
        if (t || !says) print_error("%s = %s: \"%s\" (%s)\n", cases[i].path, cases[i].json, e.message, e.param);
        assert_null(t);
        assert_true(says);
        assert_int_equal(e.code, ERR_LOAD);
        json_decref(doc);
    }
}

static void both_spellings_of_merges_are_the_same(void **state) {
    (void)state;
    struct err e = {0};
    load_doc("llama3");
    json_t *merges = json_object_get(json_object_get(doc, "model"), "merges");
    struct tokenizer *a = open_doc(&e);
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *s = json_string_value(json_array_get(merges, i)), *space = strchr(s, ' ');
        json_array_set_new(merges, i, json_pack("[s#,s]", s, (int)(space - s), space + 1));
    }
    struct tokenizer *b = open_doc(&e);
    assert_true(a && b);
    struct fixture f = fixture_open(TEXT_FIXTURES "strings.bin");
    struct ids x = text_encode(a, f.bytes, f.n_bytes, 0), y = text_encode(b, f.bytes, f.n_bytes, 0);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.ids, y.ids, x.n * 4);
    free(x.ids);
    free(y.ids);
    fixture_close(&f);
    tokenizer_close(a);
    tokenizer_close(b);
    json_decref(doc);
}

static void broken_json_and_configs(void **state) {
    (void)state;
    struct fixture good = fixture_open(TEXT_FIXTURES "llama3/tokenizer.json");
    const struct {
        struct hf_files f;
        const char *says;
    } cases[] = {
        {{.tokenizer = {"", 0}}, "tokenizer.json"},
        {{.tokenizer = {"[]", 2}}, "tokenizer.json"},
        {{.tokenizer = {"{\"model\":", 9}}, "tokenizer.json"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .config = {"{", 1}}, "config.json"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .config = {"{\"eos_token_id\":99999}", 22}}, "eos_token_id"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .generation_config = {"{\"eos_token_id\":[0,-1]}", 23}},
         "eos_token_id"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .generation_config = {"{\"eos_token_id\":\"x\"}", 20}},
         "eos_token_id"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .tokenizer_config = {"{\"eos_token\":\"<none>\"}", 22}},
         "eos_token"},
        {{.tokenizer = {good.bytes, good.n_bytes}, .tokenizer_config = {"{\"bos_token\":7}", 15}}, "bos_token"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err e = {0};
        assert_null(tokenizer_open_hf_files(&cases[i].f, &e));
        if (!strstr(e.message, cases[i].says) && !strstr(e.param, cases[i].says))
            print_error("%zu: \"%s\" (%s)\n", i, e.message, e.param);
        assert_true(strstr(e.message, cases[i].says) || strstr(e.param, cases[i].says));
        assert_int_equal(e.code, ERR_LOAD);
    }
    struct err e = {0};
    assert_null(tokenizer_open_hf(TEXT_FIXTURES "nowhere", &e));
    assert_non_null(strstr(e.message, "tokenizer.json"));
    fixture_close(&good);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_vocabularies),
        cmocka_unit_test(broken_ids_and_merges),
        cmocka_unit_test(broken_byte_tokens),
        cmocka_unit_test(constructs_that_are_not_supported_are_named),
        cmocka_unit_test(both_spellings_of_merges_are_the_same),
        cmocka_unit_test(broken_json_and_configs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
