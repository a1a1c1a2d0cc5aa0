/* vocab.c - opening a tokenizer: a checked copy of a spec.
 *
 * Design: all tokens' bytes, as they appear in text, lie in one arena. A SentencePiece U+2581 is stored as the space
 * that it stands for and input text is mapped the same way, so nothing is translated back and forth. Opening is a few
 * passes over the vocabulary: it is part of the time to the first token. Runs on the loading thread; afterwards
 * everything is immutable and shared.
 *
 * Invariants
 *  1. Ids that a tokenizer gives out or takes from its spec are inside its vocabulary.
 *  2. Every text has tokens: all bytes have one, or there is an unknown token.
 *  3. Tokens that whole-token matching finds are valid UTF-8, so that a match never cuts a character.
 */
#include "engine/text/text_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Turn markers of the built-in chat templates. Whatever kind a file gives them, text never becomes one. */
static const char *const turn_markers[] = {
    "<start_of_turn>",     "<end_of_turn>",                   /* Gemma */
    "<|im_start|>",        "<|im_end|>",                      /* ChatML, Qwen */
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", /* Llama 3 */
};

static bool is_turn_marker(const struct vocab_entry *v) {
    if (v->n_bytes == 0 || v->bytes[0] != '<') return false;
    for (size_t i = 0; i < ARRAY_COUNT(turn_markers); i++) {
        if (strlen(turn_markers[i]) == v->n_bytes && memcmp(turn_markers[i], v->bytes, v->n_bytes) == 0) return true;
    }
    return false;
}

/* ---- copying the spec ---- */

int byte_token_value(const char *s, size_t n) {
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        int digit = s[i] >= '0' && s[i] <= '9' ? s[i] - '0' : s[i] >= 'A' && s[i] <= 'F' ? s[i] - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

uint32_t copy_spaced(const char *s, size_t n, char *out) {
    uint32_t n_out = 0;
    for (const char *end = s + n; s < end;) {
        const char *lead = memchr(s, 0xe2, (size_t)(end - s));
        size_t n_same = (size_t)((lead ? lead : end) - s);
        memcpy(out + n_out, s, n_same);
        n_out += (uint32_t)n_same;
        s += n_same;
        if (s == end) break;
        bool is_space = end - s >= 3 && memcmp(s, "\xe2\x96\x81", 3) == 0;
        out[n_out++] = is_space ? ' ' : *s;
        s += is_space ? 3 : 1;
    }
    return n_out;
}

/* Order of floats as order of integers, highest score first. */
static uint32_t prio_of_score(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, 4);
    return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

static bool copy_byte_token(struct tokenizer *t, uint32_t id, const struct vocab_entry *v, char *out, struct err *e) {
    int value = t->kind == TOKENIZER_SPM ? byte_token_value(v->bytes, v->n_bytes) : -1;
    if (value < 0)
        return err_set(e, ERR_LOAD, "Tokenizer: token %u is marked as a byte but is not named <0x00>..<0xFF>.", id);
    if (t->byte_id[value] >= 0) {
        return err_set(e, ERR_LOAD, "Tokenizer: tokens %d and %u are the same byte.", t->byte_id[value], id);
    }
    t->byte_id[value] = (int32_t)id;
    out[0] = (char)value;
    return true;
}

static bool copy_token(struct tokenizer *t, uint32_t id, const struct vocab_entry *v, struct err *e) {
    if ((unsigned)v->kind > TOKEN_BYTE) return err_set(e, ERR_LOAD, "Tokenizer: token %u has an unknown type.", id);
    if (v->n_bytes > TEXT_PIECE_BYTES_MAX || (v->n_bytes == 0 && v->kind != TOKEN_UNUSED)) {
        return err_set(e, ERR_LOAD, "Tokenizer: token %u has %u bytes; 1 to %d are allowed.", id, v->n_bytes,
                       TEXT_PIECE_BYTES_MAX);
    }
    if (!isfinite(v->score))
        return err_set(e, ERR_LOAD, "Tokenizer: the score of token %u is not a finite number.", id);
    struct token *k = &t->tokens[id];
    char *out = t->arena + t->n_arena;
    *k = (struct token){.offset = (uint32_t)t->n_arena, .n_bytes = v->n_bytes, .kind = (uint8_t)v->kind};
    if (is_turn_marker(v)) k->kind = TOKEN_CONTROL;
    if (k->kind == TOKEN_BYTE) {
        if (!copy_byte_token(t, id, v, out, e)) return false;
        k->n_bytes = 1;
    } else if (t->kind == TOKENIZER_SPM && (k->kind == TOKEN_NORMAL || k->kind == TOKEN_USER_DEFINED)) {
        k->n_bytes = copy_spaced(v->bytes, v->n_bytes, out);
        k->prio = prio_of_score(v->score);
    } else if (k->kind != TOKEN_NORMAL || !byte_level_decode(v->bytes, v->n_bytes, out, &k->n_bytes)) {
        memcpy(out, v->bytes, v->n_bytes);
        k->n_bytes = v->n_bytes;
        k->unreachable = k->kind == TOKEN_NORMAL;
    }
    if (k->kind != TOKEN_NORMAL && k->kind != TOKEN_BYTE && !utf8_valid(out, k->n_bytes)) {
        return err_set(e, ERR_LOAD, "Tokenizer: the name of token %u is not valid UTF-8.", id);
    }
    t->n_arena += k->n_bytes;
    return true;
}

static bool copy_vocab(struct tokenizer *t, const struct tokenizer_spec *spec, struct err *e) {
    size_t n_arena = 1;
    for (uint32_t i = 0; i < spec->n_vocab; i++) n_arena += size_min(spec->vocab[i].n_bytes, TEXT_PIECE_BYTES_MAX);
    if (n_arena > UINT32_MAX) return err_set(e, ERR_LOAD, "Tokenizer: the vocabulary's text is over 4 GB.");
    t->n_vocab = spec->n_vocab;
    t->tokens = malloc(t->n_vocab * sizeof *t->tokens);
    t->arena = malloc(n_arena);
    if (!t->tokens || !t->arena) return err_set(e, ERR_LOAD, "No memory for the tokenizer's vocabulary.");
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        if (!copy_token(t, id, &spec->vocab[id], e)) return false;
    }
    return true;
}

/* What merging needs to know about all pieces at once. */
static void measure_pieces(struct tokenizer *t) {
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        const struct token *k = &t->tokens[id];
        if (k->unreachable || token_space(t, k->kind) != SPACE_PIECES) continue;
        const uint8_t *s = (const uint8_t *)t->arena + k->offset;
        if (k->n_bytes > t->piece_bytes_max) t->piece_bytes_max = k->n_bytes;
        for (uint32_t i = 1; t->kind == TOKENIZER_SPM && i < k->n_bytes; i++)
            t->pairs[s[i - 1]][s[i] / 8] |= (uint8_t)(1 << s[i] % 8);
    }
}

/* ---- opening ---- */

static bool check_id(const struct tokenizer *t, int32_t id, const char *name, struct err *e) {
    if (id >= -1 && id < (int64_t)t->n_vocab) return true;
    return err_set(e, ERR_LOAD, "Tokenizer: the %s token %d is outside the vocabulary of %u.", name, id, t->n_vocab);
}

static bool copy_special_ids(struct tokenizer *t, const struct tokenizer_spec *spec, struct err *e) {
    if (!check_id(t, spec->bos, "bos", e) || !check_id(t, spec->eos, "eos", e) || !check_id(t, spec->unk, "unknown", e))
        return false;
    t->bos = spec->bos;
    t->eos = spec->eos;
    t->unk = spec->unk;
    if ((spec->add_bos && spec->bos < 0) || (spec->add_eos && spec->eos < 0)) {
        return err_set(e, ERR_LOAD, "Tokenizer: a bos or eos token is to be added but there is none.");
    }
    t->add_bos = spec->add_bos;
    t->add_eos = spec->add_eos;
    if (spec->n_eog > TEXT_EOG_MAX - ARRAY_COUNT(turn_markers))
        return err_set(e, ERR_LOAD, "Tokenizer: %u end tokens are too many.", spec->n_eog);
    for (uint32_t i = 0; i < spec->n_eog; i++) {
        if (spec->eog[i] == -1) return err_set(e, ERR_LOAD, "Tokenizer: the end token -1 is none.");
        if (!check_id(t, spec->eog[i], "end", e)) return false;
        t->eog[t->n_eog++] = spec->eog[i];
    }
    static const char *const turn_ends[] = {"<end_of_turn>", "<|im_end|>", "<|eot_id|>"}; /* as chat_encode does */
    for (size_t i = 0; i < ARRAY_COUNT(turn_ends); i++) {
        int32_t id = vocab_find(t, SPACE_NAMES, turn_ends[i], strlen(turn_ends[i]));
        if (id >= 0) t->eog[t->n_eog++] = id;
    }
    return true;
}

/* Every character must have a token: bytes, or the unknown token. */
static bool check_coverage(struct tokenizer *t, struct err *e) {
    if (t->kind == TOKENIZER_BPE) {
        for (int b = 0; b < 256; b++) {
            char c = (char)b;
            t->byte_id[b] = vocab_find(t, SPACE_PIECES, &c, 1);
        }
    }
    t->has_all_bytes = t->kind == TOKENIZER_BPE || t->byte_fallback;
    for (int b = 0; b < 256; b++) t->has_all_bytes &= t->byte_id[b] >= 0;
    if (t->has_all_bytes || (t->kind == TOKENIZER_SPM && t->unk >= 0)) return true;
    return err_set(e, ERR_LOAD, "Tokenizer: the vocabulary has no token for some bytes and no unknown token.");
}

static bool build_matchers(struct tokenizer *t, const struct added_flags *added, struct err *e) {
    int32_t *ids[2] = {malloc(t->n_vocab * sizeof **ids), malloc(t->n_vocab * sizeof **ids)}; /* raw, normalized */
    uint32_t n_ids[2] = {0, 0};
    bool ok = ids[0] && ids[1];
    if (!ok) err_set(e, ERR_LOAD, "No memory for the tokenizer's added tokens.");
    for (uint32_t id = 0; ok && id < t->n_vocab; id++) {
        enum token_kind kind = t->tokens[id].kind;
        if (kind != TOKEN_CONTROL && kind != TOKEN_UNKNOWN && kind != TOKEN_USER_DEFINED) continue;
        bool normalized = added ? added[id].normalized : t->kind == TOKENIZER_SPM && kind == TOKEN_USER_DEFINED;
        ids[normalized][n_ids[normalized]++] = (int32_t)id;
    }
    if (ok && n_ids[0]) ok = (t->raw = matcher_open(t, ids[0], n_ids[0], e)) != NULL;
    if (ok && n_ids[1]) ok = (t->normalized = matcher_open(t, ids[1], n_ids[1], e)) != NULL;
    free(ids[0]);
    free(ids[1]);
    return ok;
}

static bool build(struct tokenizer *t, const struct tokenizer_spec *spec, const struct added_flags *added,
                  struct err *e) {
    if (!copy_vocab(t, spec, e) || !vocab_index_build(t, e) || !copy_special_ids(t, spec, e)) return false;
    measure_pieces(t);
    if (!check_coverage(t, e) || !build_matchers(t, added, e)) return false;
    if (added) {
        t->added = malloc(t->n_vocab * sizeof *added);
        if (!t->added) return err_set(e, ERR_LOAD, "No memory for the tokenizer's added tokens.");
        memcpy(t->added, added, t->n_vocab * sizeof *added);
    }
    if (t->kind == TOKENIZER_SPM) return true;
    if (spec->pre_regex && !(t->pattern = pattern_open(spec->pre_regex, e))) return false;
    return bpe_merges_build(t, spec, e);
}

struct tokenizer *tokenizer_open_with(const struct tokenizer_spec *spec, const struct added_flags *added,
                                      struct err *e) {
    if (spec->n_vocab == 0 || spec->n_vocab > TEXT_VOCAB_MAX || spec->n_merges > TEXT_MERGES_MAX) {
        err_set(e, ERR_LOAD, "Tokenizer: %u tokens and %u merges; 1 to %d and up to %d are allowed.", spec->n_vocab,
                spec->n_merges, TEXT_VOCAB_MAX, TEXT_MERGES_MAX);
        return NULL;
    }
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(e, ERR_LOAD, "No memory for the tokenizer.");
        return NULL;
    }
    t->kind = spec->kind;
    t->pre = spec->pre;
    t->add_space_prefix = spec->add_space_prefix;
    t->byte_fallback = spec->byte_fallback;
    t->ignore_merges = spec->ignore_merges;
    t->normalize_nfc = spec->normalize_nfc;
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    if (build(t, spec, added, e)) return t;
    tokenizer_close(t);
    return NULL;
}

struct tokenizer *tokenizer_open(const struct tokenizer_spec *spec, struct err *e) {
    return tokenizer_open_with(spec, NULL, e);
}

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    matcher_close(t->raw);
    matcher_close(t->normalized);
    pattern_close(t->pattern);
    free(t->added);
    free(t->merges);
    free(t->index);
    free(t->arena);
    free(t->tokens);
    free(t);
}
