/* gguf_tokenizer.c - the tokenizer.ggml.* keys of a GGUF file as a checked struct tokenizer_spec.
 *
 * Two kinds: model "llama" is SentencePiece BPE with scores, "gpt2" is byte-level BPE with merges and a named
 * pre-tokenizer. Defaults are llama.cpp's.
 *
 * Owner: the thread that loads the model. The spec's arrays live until tokenizer_open has copied them.
 *
 * Invariants
 * 1. Arrays that describe the same tokens have the same length and the right element type before any of them is
 *    used; ids are -1 or below n_vocab; every token has 1..TOKEN_BYTES_MAX bytes.
 * 2. Memory is bounded by VOCAB_MAX and MERGES_MAX, not by what the file claims.
 */
#include "engine/model/config.h"
#include "engine/model/tensor_file_int.h"
#include "engine/text/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KEY(name) "tokenizer.ggml." name

enum { TOKEN_BYTES_MAX = 4096, MERGES_MAX = 1 << 22, EOG_MAX = 16 };

struct builder {
    const struct tensor_file *f;
    struct err *e;
    struct tokenizer_spec spec;
    struct vocab_entry *vocab;  /* [spec.n_vocab] */
    struct merge_entry *merges; /* [spec.n_merges] */
    int32_t eog[EOG_MAX];
};

static bool key_err(struct builder *b, const char *key, const char *why) {
    return err_set_param(b->e, ERR_LOAD, key, "Key '%s' %s", key, why);
}

static bool item_err(struct builder *b, const char *key, uint64_t i, const char *why) {
    return err_set_param(b->e, ERR_LOAD, key, "Key '%s': element %" PRIu64 " %s", key, i, why);
}

static bool text_is(const char *s, size_t n, const char *text) {
    return strlen(text) == n && memcmp(s, text, n) == 0;
}

/* ---- Vocabulary ---- */

static bool read_array(struct builder *b, const char *key, enum gguf_type type, struct gguf_array *out) {
    if (!gguf_get_array(b->f, key, out)) return key_err(b, key, "is missing or not an array");
    if (out->type == type) return true;
    return err_set_param(b->e, ERR_LOAD, key, "Key '%s' is an array of %s, not of %s", key, gguf_type_name(out->type),
                         gguf_type_name(type));
}

static bool same_length(struct builder *b, const char *key, const struct gguf_array *a) {
    if (a->count == b->spec.n_vocab) return true;
    return err_set_param(b->e, ERR_LOAD, key, "Key '%s' has %" PRIu64 " elements, but '" KEY("tokens") "' has %" PRIu32,
                         key, a->count, b->spec.n_vocab);
}

/* "<0x0A>", two upper-case digits: the only way to write a byte. */
static bool is_byte_text(const char *s, size_t n) {
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return false;
    for (int i = 3; i < 5; i++) {
        if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'A' && s[i] <= 'F'))) return false;
    }
    return true;
}

static bool read_texts(struct builder *b, const struct gguf_array *tokens) {
    for (uint64_t i = 0; i < tokens->count; i++) {
        size_t n;
        gguf_array_str(tokens, i, &b->vocab[i].bytes, &n);
        if (n == 0 || n > TOKEN_BYTES_MAX) return item_err(b, KEY("tokens"), i, "is empty or too long");
        b->vocab[i].n_bytes = (uint32_t)n;
    }
    return true;
}

static bool read_kinds(struct builder *b) {
    static const enum token_kind kinds[] = {[1] = TOKEN_NORMAL,       [2] = TOKEN_UNKNOWN, [3] = TOKEN_CONTROL,
                                            [4] = TOKEN_USER_DEFINED, [5] = TOKEN_UNUSED,  [6] = TOKEN_BYTE};
    struct gguf_array types;
    if (!read_array(b, KEY("token_type"), GGUF_I32, &types) || !same_length(b, KEY("token_type"), &types)) return false;
    for (uint64_t i = 0; i < types.count; i++) {
        int64_t type = 0;
        gguf_array_i64(&types, i, &type);
        if (type < 1 || type >= (int64_t)ARRAY_COUNT(kinds)) return item_err(b, KEY("token_type"), i, "is not 1 to 6");
        b->vocab[i].kind = kinds[type];
        if (type == 6 && !is_byte_text(b->vocab[i].bytes, b->vocab[i].n_bytes)) {
            return item_err(b, KEY("tokens"), i, "is of type byte but not written as '<0xHH>'");
        }
    }
    return true;
}

static bool read_scores(struct builder *b) {
    struct gguf_array scores;
    if (!read_array(b, KEY("scores"), GGUF_F32, &scores) || !same_length(b, KEY("scores"), &scores)) return false;
    for (uint64_t i = 0; i < scores.count; i++) {
        gguf_array_f32(&scores, i, &b->vocab[i].score);
        if (!isfinite(b->vocab[i].score)) return item_err(b, KEY("scores"), i, "is not a finite number");
    }
    return true;
}

static bool read_vocab(struct builder *b) {
    struct gguf_array tokens;
    if (!read_array(b, KEY("tokens"), GGUF_STR, &tokens)) return false;
    if (tokens.count == 0 || tokens.count > VOCAB_MAX) return key_err(b, KEY("tokens"), "is empty or too long");
    b->spec.n_vocab = (uint32_t)tokens.count;
    b->vocab = calloc(tokens.count, sizeof *b->vocab);
    if (!b->vocab) return key_err(b, KEY("tokens"), "is larger than the memory there is");
    b->spec.vocab = b->vocab;
    return read_texts(b, &tokens) && read_kinds(b);
}

/* ---- Merges: "left right", each side at least one byte ---- */

static bool read_merges(struct builder *b) {
    struct gguf_array merges;
    if (!read_array(b, KEY("merges"), GGUF_STR, &merges)) return false;
    if (merges.count > MERGES_MAX) return key_err(b, KEY("merges"), "is too long");
    b->merges = calloc(merges.count + 1, sizeof *b->merges);
    if (!b->merges) return key_err(b, KEY("merges"), "is larger than the memory there is");
    b->spec.merges = b->merges;
    b->spec.n_merges = (uint32_t)merges.count;
    for (uint64_t i = 0; i < merges.count; i++) {
        const char *s;
        size_t n;
        gguf_array_str(&merges, i, &s, &n);
        const char *space = n > 2 && n <= 2 * TOKEN_BYTES_MAX ? memchr(s + 1, ' ', n - 2) : NULL;
        if (!space) return item_err(b, KEY("merges"), i, "is not two tokens with a space between");
        size_t n_left = (size_t)(space - s);
        b->merges[i] = (struct merge_entry){s, space + 1, (uint32_t)n_left, (uint32_t)(n - n_left - 1)};
    }
    return true;
}

/* ---- Ids and flags ---- */

static bool read_id(struct builder *b, const char *key, int32_t absent, int32_t *out) {
    uint32_t id;
    *out = absent;
    if (gguf_has(b->f, key)) {
        if (!gguf_get_u32(b->f, key, &id) || id >= b->spec.n_vocab) return key_err(b, key, "is not the id of a token");
        *out = (int32_t)id;
    }
    if (*out >= 0 && (uint32_t)*out >= b->spec.n_vocab)
        return key_err(b, key, "is missing, and its default is not in the vocabulary");
    return true;
}

static bool read_flag(struct builder *b, const char *key, bool absent, bool *out) {
    *out = absent;
    return !gguf_has(b->f, key) || gguf_get_bool(b->f, key, out) || key_err(b, key, "is not a bool");
}

static void add_eog(struct builder *b, int32_t id) {
    if (id < 0 || b->spec.n_eog == EOG_MAX) return;
    for (uint32_t i = 0; i < b->spec.n_eog; i++) {
        if (b->eog[i] == id) return;
    }
    b->eog[b->spec.n_eog++] = id;
}

/* Ends of a generation: eot and eom where the file names them, and the control tokens that end a turn in the chat
 * formats of the families served here. A file made from a base model names only eos. */
static bool read_eog(struct builder *b) {
    static const char *const ends[] = {"<end_of_turn>", "<|eot_id|>",    "<|eom_id|>", "<|end_of_text|>",
                                       "<|im_end|>",    "<|endoftext|>", "</s>"};
    int32_t eot, eom;
    if (!read_id(b, KEY("eot_token_id"), -1, &eot) || !read_id(b, KEY("eom_token_id"), -1, &eom)) return false;
    add_eog(b, eot);
    add_eog(b, eom);
    for (uint32_t i = 0; i < b->spec.n_vocab; i++) {
        if (b->vocab[i].kind != TOKEN_CONTROL) continue;
        for (size_t k = 0; k < ARRAY_COUNT(ends); k++) {
            if (text_is(b->vocab[i].bytes, b->vocab[i].n_bytes, ends[k])) add_eog(b, (int32_t)i);
        }
    }
    b->spec.eog = b->eog;
    return true;
}

static bool read_ids(struct builder *b, int32_t bos, int32_t eos, int32_t unk) {
    return read_id(b, KEY("bos_token_id"), bos, &b->spec.bos) && read_id(b, KEY("eos_token_id"), eos, &b->spec.eos) &&
           read_id(b, KEY("unknown_token_id"), unk, &b->spec.unk) && read_eog(b);
}

/* ---- The two kinds ---- */

static bool build_spm(struct builder *b) {
    struct tokenizer_spec *s = &b->spec;
    bool squeeze;
    s->kind = TOKENIZER_SPM;
    s->byte_fallback = true;
    if (!read_vocab(b) || !read_scores(b) || !read_ids(b, 1, 2, 0)) return false;
    if (gguf_has(b->f, KEY("precompiled_charsmap"))) {
        return key_err(b, KEY("precompiled_charsmap"), "asks for a normalizer that Choir does not have");
    }
    if (!read_flag(b, KEY("remove_extra_whitespaces"), false, &squeeze)) return false;
    if (squeeze) return key_err(b, KEY("remove_extra_whitespaces"), "asks for a normalizer that Choir does not have");
    return read_flag(b, KEY("add_space_prefix"), true, &s->add_space_prefix) &&
           read_flag(b, KEY("add_bos_token"), true, &s->add_bos) &&
           read_flag(b, KEY("add_eos_token"), false, &s->add_eos);
}

static bool read_pre(struct builder *b) {
    static const struct {
        const char *name;
        enum pre_tokenizer pre;
    } names[] = {{"llama-bpe", PRE_LLAMA3}, {"llama3", PRE_LLAMA3}, {"llama-v3", PRE_LLAMA3}, {"qwen2", PRE_QWEN2}};
    const char *pre;
    size_t n;
    if (!gguf_get_str(b->f, KEY("pre"), &pre, &n)) return key_err(b, KEY("pre"), "is missing or not a string");
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (!text_is(pre, n, names[i].name)) continue;
        b->spec.pre = names[i].pre;
        return true;
    }
    return err_set_param(b->e, ERR_LOAD, KEY("pre"), "Key '" KEY("pre") "' is '%s'; llama-bpe and qwen2 can be loaded",
                         name_shown(name_of(pre, n)).text);
}

static bool build_bpe(struct builder *b) {
    struct tokenizer_spec *s = &b->spec;
    s->kind = TOKENIZER_BPE;
    if (!read_pre(b) || !read_vocab(b) || !read_merges(b) || !read_ids(b, -1, -1, -1)) return false;
    bool llama3 = s->pre == PRE_LLAMA3;
    s->ignore_merges = llama3;
    s->normalize_nfc = s->pre == PRE_QWEN2;
    if (!read_flag(b, KEY("add_bos_token"), llama3, &s->add_bos) ||
        !read_flag(b, KEY("add_eos_token"), false, &s->add_eos) ||
        !read_flag(b, KEY("add_space_prefix"), false, &s->add_space_prefix)) {
        return false;
    }
    if (s->add_bos && s->bos < 0) return key_err(b, KEY("bos_token_id"), "is missing, but a BOS is to be added");
    if (s->add_eos && s->eos < 0) return key_err(b, KEY("eos_token_id"), "is missing, but an EOS is to be added");
    if (s->add_space_prefix)
        return key_err(b, KEY("add_space_prefix"), "is true, which byte-level BPE does not have here");
    return true;
}

static bool build(struct builder *b) {
    const char *model;
    size_t n;
    if (!gguf_get_str(b->f, KEY("model"), &model, &n)) return key_err(b, KEY("model"), "is missing or not a string");
    if (text_is(model, n, "llama")) return build_spm(b);
    if (text_is(model, n, "gpt2")) return build_bpe(b);
    return err_set_param(b->e, ERR_LOAD, KEY("model"), "Key '" KEY("model") "' is '%s'; llama and gpt2 can be loaded",
                         name_shown(name_of(model, n)).text);
}

struct tokenizer *tensor_file_tokenizer(const struct tensor_file *f, struct err *e) {
    if (!f->gguf) return tokenizer_open_hf(f->path, e);
    struct builder b = {.f = f, .e = e};
    struct tokenizer *t = build(&b) ? tokenizer_open(&b.spec, e) : NULL;
    free(b.vocab);
    free(b.merges);
    return t;
}
