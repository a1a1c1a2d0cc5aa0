/* spm.c - SentencePiece BPE: merges by the score of the piece that two neighbours make.
 *
 * As sentencepiece's bpe_model.cc defines it: best score first, leftmost among equals; what is not a piece at the
 * end becomes its bytes, or (without byte fallback) one unknown token for the whole stretch. Pieces marked unused
 * are left out altogether. Spaces are spaces here (see vocab.c).
 *
 * Design: no merge can cross between two bytes that no piece has side by side. Text is cut there and each run merged
 * on its own: for most vocabularies that is before nearly every word, and small heaps stay in the cache.
 *
 * Invariant: a cut is between characters, and the tokens are those of the uncut text.
 */
#include "engine/text/text_int.h"

static bool find_piece(const struct tokenizer *t, const char *text, const struct symbol *left,
                       const struct symbol *right, uint32_t *prio, int32_t *id) {
    uint32_t n_bytes = left->n_bytes + right->n_bytes;
    text_work++;
    if (n_bytes > t->piece_bytes_max) return false;
    text_work += n_bytes / 8;
    *id = vocab_find(t, SPACE_PIECES, text + left->start, n_bytes);
    if (*id < 0) return false;
    *prio = t->tokens[*id].prio;
    return true;
}

/* A character that is no piece: its bytes, or the unknown token once for neighbours. */
static bool emit_unknown(struct encoder *c, const char *s, uint32_t n, bool *was_unknown) {
    const struct tokenizer *t = c->t;
    bool has_bytes = t->byte_fallback;
    for (uint32_t i = 0; i < n && has_bytes; i++) has_bytes = t->byte_id[(uint8_t)s[i]] >= 0;
    if (!has_bytes) {
        bool again = *was_unknown;
        *was_unknown = true;
        return again || encoder_emit(c, t->unk);
    }
    *was_unknown = false;
    for (uint32_t i = 0; i < n; i++) {
        if (!encoder_emit(c, t->byte_id[(uint8_t)s[i]])) return false;
    }
    return true;
}

static bool merge_run(struct encoder *c, const char *text, size_t n, bool *was_unknown) {
    if (!encoder_reserve_symbols(c, n)) return false;
    size_t n_symbols = 0;
    for (size_t at = 0; at < n; n_symbols++) {
        uint32_t n_bytes;
        utf8_decode(text + at, &n_bytes);
        int32_t i = (int32_t)n_symbols;
        c->symbols[i] = (struct symbol){(uint32_t)at, n_bytes, i - 1, i + 1, -1};
        at += n_bytes;
    }
    c->symbols[n_symbols - 1].next = -1;
    text_work += n;
    if (!merge_symbols(c, text, n_symbols, find_piece)) return false;
    for (int32_t i = 0; i >= 0; i = c->symbols[i].next) {
        const struct symbol *s = &c->symbols[i];
        int32_t id = s->id >= 0 ? s->id : vocab_find(c->t, SPACE_PIECES, text + s->start, s->n_bytes);
        if (id >= 0) *was_unknown = false;
        if (!(id >= 0 ? encoder_emit(c, id) : emit_unknown(c, text + s->start, s->n_bytes, was_unknown))) return false;
    }
    return true;
}

/* End of the run from `at` that merges cannot leave. */
static size_t run_end(const struct tokenizer *t, const char *text, size_t n, size_t at) {
    for (at++; at < n; at++) {
        uint8_t a = (uint8_t)text[at - 1], b = (uint8_t)text[at];
        bool starts_char = (b & 0xc0) != 0x80;
        if (starts_char && !(t->pairs[a][b / 8] >> b % 8 & 1)) break;
    }
    return at;
}

bool spm_encode_text(struct encoder *c, const char *text, size_t n) {
    bool was_unknown = false;
    for (size_t at = 0; at < n;) {
        size_t end = run_end(c->t, text, n, at);
        if (!merge_run(c, text + at, end - at, &was_unknown)) return false;
        at = end;
    }
    return true;
}
