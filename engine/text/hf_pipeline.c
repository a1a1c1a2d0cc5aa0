/* hf_pipeline.c - normalizer, pre-tokenizer, model options, post-processor and decoder of a tokenizer.json.
 *
 * Each construct is either one that encode.c performs or is refused by its name: a tokenizer that is nearly the
 * model's gives text that is nearly right. "truncation" and "padding" are settings of training batches and are not
 * read; the server has its own limits. Loading thread.
 */
#include "engine/text/hf_int.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The patterns that pretoken.c knows, as tokenizer.json files write them. */
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BEFORE_NUMBER CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define AFTER_NUMBER "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char llama3_regex[] = BEFORE_NUMBER "\\p{N}{1,3}" AFTER_NUMBER;
static const char qwen2_regex[] = BEFORE_NUMBER "\\p{N}" AFTER_NUMBER;
/* What a ByteLevel pre-tokenizer with use_regex stands for. */
static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum { REGEX_BYTES_MAX = 8192, STEPS_MAX = 16 };

const char *hf_type(const struct json_at *object) {
    const char *type = json_string_value(json_object_get(object->value, "type"));
    return type ? type : "";
}

bool hf_refuse(struct hf_build *b, const struct json_at *at, const char *what, const char *name) {
    char safe[41];
    size_t n = 0;
    for (; name[n] && n < sizeof safe - 1; n++)
        safe[n] = isalnum((unsigned char)name[n]) || name[n] == '_' ? name[n] : '?';
    safe[n] = '\0';
    return json_err(at, ERR_LOAD, b->e, "tokenizer.json has %s '%s', which is not supported.", what, safe);
}

/* Calls `read` for the value, or for each item of a "Sequence" under `list`. Null and absent are nothing. */
static bool each_step(struct hf_build *b, const struct json_at *doc, const char *key, const char *list,
                      bool (*read)(struct hf_build *, const struct json_at *)) {
    struct json_at at, items;
    if (!json_member(doc, key, &at)) return true;
    if (!json_as_object(&at, b->e)) return false;
    if (strcmp(hf_type(&at), "Sequence") != 0) return read(b, &at);
    if (!json_require(&at, list, &items, b->e) || !json_as_array(&items, 0, STEPS_MAX, b->e)) return false;
    for (size_t i = 0; i < json_count(&items); i++) {
        struct json_at item = json_item(&items, i);
        if (!json_as_object(&item, b->e) || !read(b, &item)) return false;
    }
    return true;
}

static bool read_normalizer(struct hf_build *b, const struct json_at *at) {
    if (strcmp(hf_type(at), "NFC") != 0) return hf_refuse(b, at, "the normalizer", hf_type(at));
    b->spec.normalize_nfc = true;
    return true;
}

static bool set_regex(struct hf_build *b, const struct json_at *at, const char *regex) {
    if (b->regex) return hf_refuse(b, at, "a second", "Split");
    b->regex = strdup(regex);
    return b->regex || err_set(b->e, ERR_LOAD, "No memory for the tokenizer.");
}

static bool read_split(struct hf_build *b, const struct json_at *at) {
    static const char *const names[] = {"type", "pattern", "behavior", "invert"}, *const pattern_names[] = {"Regex"};
    struct json_at pattern;
    const char *behavior = "", *regex = NULL;
    bool invert = false;
    if (!json_only_members(at, names, ARRAY_COUNT(names), b->e) ||
        !json_opt_string(at, "behavior", 64, &behavior, NULL, b->e))
        return false;
    if (!json_opt_bool(at, "invert", &invert, b->e) || !json_require(at, "pattern", &pattern, b->e)) return false;
    if (strcmp(behavior, "Isolated") != 0) return hf_refuse(b, at, "a Split with the behavior", behavior);
    if (invert) return hf_refuse(b, at, "a Split with", "invert");
    if (!json_as_object(&pattern, b->e) || !json_only_members(&pattern, pattern_names, 1, b->e)) return false;
    if (!json_opt_string(&pattern, "Regex", REGEX_BYTES_MAX, &regex, NULL, b->e)) return false;
    if (!regex) return json_err(&pattern, ERR_LOAD, b->e, "A Split needs a Regex.");
    return set_regex(b, at, regex);
}

static bool read_pre_tokenizer(struct hf_build *b, const struct json_at *at) {
    static const char *const names[] = {"type", "add_prefix_space", "trim_offsets", "use_regex"};
    if (strcmp(hf_type(at), "Split") == 0) return read_split(b, at);
    if (strcmp(hf_type(at), "ByteLevel") != 0) return hf_refuse(b, at, "the pre-tokenizer", hf_type(at));
    bool prefix = true, use_regex = true; /* the defaults of the tokenizers library */
    if (!json_only_members(at, names, ARRAY_COUNT(names), b->e)) return false;
    if (!json_opt_bool(at, "add_prefix_space", &prefix, b->e) || !json_opt_bool(at, "use_regex", &use_regex, b->e))
        return false;
    if (prefix) return hf_refuse(b, at, "a ByteLevel with", "add_prefix_space");
    return !use_regex || set_regex(b, at, gpt2_regex);
}

/* ---- post-processor: which token goes before and after the text ---- */

static bool template_token(struct hf_build *b, const struct json_at *processor, const struct json_at *special,
                           int32_t *out) {
    struct json_at tokens, token, ids;
    const char *name = NULL;
    int64_t id;
    if (!json_as_object(special, b->e) || !json_opt_string(special, "id", TEXT_PIECE_BYTES_MAX, &name, NULL, b->e))
        return false;
    if (!name) return json_err(special, ERR_LOAD, b->e, "A special token of the template has no id.");
    if (!json_require(processor, "special_tokens", &tokens, b->e) || !json_as_object(&tokens, b->e)) return false;
    if (!json_require(&tokens, name, &token, b->e) || !json_as_object(&token, b->e)) return false;
    if (!json_require(&token, "ids", &ids, b->e) || !json_as_array(&ids, 1, 1, b->e)) return false;
    struct json_at first = json_item(&ids, 0);
    if (!json_as_i64(&first, 0, (int64_t)b->spec.n_vocab - 1, &id, b->e)) return false;
    *out = (int32_t)id;
    return true;
}

static bool read_template(struct hf_build *b, const struct json_at *at) {
    struct json_at single, special, sequence;
    bool after_text = false;
    if (!json_require(at, "single", &single, b->e) || !json_as_array(&single, 1, 3, b->e)) return false;
    for (size_t i = 0; i < json_count(&single); i++) {
        struct json_at item = json_item(&single, i);
        if (!json_as_object(&item, b->e)) return false;
        if (json_member(&item, "Sequence", &sequence) && !after_text) {
            after_text = true;
            continue;
        }
        bool *add = after_text ? &b->spec.add_eos : &b->spec.add_bos;
        if (*add || !json_member(&item, "SpecialToken", &special))
            return hf_refuse(b, &item, "a template with", "more than one token beside the text");
        if (!template_token(b, at, &special, after_text ? &b->spec.eos : &b->spec.bos)) return false;
        *add = true;
    }
    return after_text || json_err(&single, ERR_LOAD, b->e, "The template has no text.");
}

static bool read_post_processor(struct hf_build *b, const struct json_at *at) {
    if (strcmp(hf_type(at), "ByteLevel") == 0) return true; /* moves offsets only */
    if (strcmp(hf_type(at), "TemplateProcessing") == 0) return read_template(b, at);
    return hf_refuse(b, at, "the post-processor", hf_type(at));
}

/* ---- the rest ---- */

static bool is_empty_text(const json_t *v) {
    return !v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0);
}

/* unk_token and fuse_unk need no reading: every byte has a token, so nothing is unknown. */
static bool read_model(struct hf_build *b, const struct json_at *model) {
    static const char *const names[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges"};
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    bool byte_fallback = false;
    double dropout = 0;
    if (strcmp(hf_type(model), "BPE") != 0) return hf_refuse(b, model, "the model", hf_type(model));
    if (!json_only_members(model, names, ARRAY_COUNT(names), b->e)) return false;
    if (!json_opt_bool(model, "ignore_merges", &b->spec.ignore_merges, b->e)) return false;
    if (!json_opt_bool(model, "byte_fallback", &byte_fallback, b->e)) return false;
    if (!json_opt_double(model, "dropout", 0, 1, &dropout, b->e)) return false;
    if (byte_fallback) return hf_refuse(b, model, "a model with", "byte_fallback");
    if (dropout > 0) return hf_refuse(b, model, "a model with", "dropout");
    for (size_t i = 0; i < ARRAY_COUNT(affixes); i++) {
        if (!is_empty_text(json_object_get(model->value, affixes[i])))
            return hf_refuse(b, model, "a model with", affixes[i]);
    }
    return true;
}

static bool read_decoder(struct hf_build *b, const struct json_at *doc) {
    struct json_at decoder;
    if (!json_require(doc, "decoder", &decoder, b->e) || !json_as_object(&decoder, b->e)) return false;
    return strcmp(hf_type(&decoder), "ByteLevel") == 0 || hf_refuse(b, &decoder, "the decoder", hf_type(&decoder));
}

/* Without a ByteLevel step the vocabulary is not spelled in its characters. */
static bool has_byte_level(const struct json_at *doc) {
    const json_t *pre = json_object_get(doc->value, "pre_tokenizer");
    const json_t *items = json_object_get(pre, "pretokenizers");
    const char *type =
        json_string_value(json_object_get(items ? json_array_get(items, json_array_size(items) - 1) : pre, "type"));
    return type && strcmp(type, "ByteLevel") == 0;
}

bool hf_read_pipeline(struct hf_build *b, const struct json_at *doc) {
    static const char *const names[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                        "pre_tokenizer", "post_processor", "decoder", "model"};
    struct json_at model;
    if (!json_only_members(doc, names, ARRAY_COUNT(names), b->e)) return false;
    if (!json_require(doc, "model", &model, b->e) || !json_as_object(&model, b->e) || !read_model(b, &model))
        return false;
    if (!each_step(b, doc, "normalizer", "normalizers", read_normalizer)) return false;
    if (!each_step(b, doc, "pre_tokenizer", "pretokenizers", read_pre_tokenizer)) return false;
    if (!has_byte_level(doc))
        return json_err(doc, ERR_LOAD, b->e, "tokenizer.json: the last pre-tokenizer is not ByteLevel.");
    if (b->regex && strcmp(b->regex, llama3_regex) == 0) {
        b->spec.pre = PRE_LLAMA3;
    } else if (b->regex && strcmp(b->regex, qwen2_regex) == 0) {
        b->spec.pre = PRE_QWEN2;
    } else {
        b->spec.pre_regex = b->regex;
    }
    return read_decoder(b, doc);
}

bool hf_read_post_processor(struct hf_build *b, const struct json_at *doc) {
    return each_step(b, doc, "post_processor", "processors", read_post_processor);
}
