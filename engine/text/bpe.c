/* bpe.c - byte-level BPE: the merge table, and one pre-token to tokens.
 *
 * The vocabulary is kept as raw bytes (a file spells bytes as printable characters, GPT-2's table); merges are one
 * open-addressing table from a pair of ids to rank and result. Built on the loading thread, then immutable.
 *
 * Invariants
 *  1. Every byte has a one-byte piece (checked at opening), so any text has tokens.
 *  2. Of equal pairs the last rank in the file counts, as in Hugging Face's tokenizers.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>

/* GPT-2 writes the printable bytes as themselves and the n-th other byte as U+0100 + n. */
static bool byte_is_printable(uint32_t b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

/* The byte that a character stands for, or -1. */
static int byte_of_char(uint32_t c) {
    if (c < 0x100) return byte_is_printable(c) ? (int)c : -1;
    uint32_t n = c - 0x100; /* 0..32: bytes 00-20; 33..66: 7f-a0; 67: ad */
    if (n <= 0x20) return (int)n;
    if (n <= 0x42) return (int)(n - 0x21 + 0x7f);
    return n == 0x43 ? 0xad : -1;
}

bool byte_level_decode(const char *s, size_t n, char *out, uint32_t *n_out) {
    *n_out = 0;
    if (!utf8_valid(s, n)) return false;
    for (size_t at = 0; at < n;) {
        uint32_t n_bytes;
        int byte = byte_of_char(utf8_decode(s + at, &n_bytes));
        if (byte < 0) return false;
        out[(*n_out)++] = (char)byte;
        at += n_bytes;
    }
    return true;
}

/* ---- merge table ---- */

static uint32_t merge_probe(const struct tokenizer *t, uint64_t pair) {
    uint64_t h = pair * 0xff51afd7ed558ccdu;
    uint32_t i = (uint32_t)(h >> 32) & t->merge_mask;
    while (t->merges[i].pair != pair && t->merges[i].pair != MERGE_EMPTY) i = (i + 1) & t->merge_mask;
    return i;
}

static int32_t find_side(const struct tokenizer *t, const char *s, uint32_t n, char *piece, uint32_t *n_piece) {
    if (n == 0 || n > TEXT_PIECE_BYTES_MAX || !byte_level_decode(s, n, piece, n_piece)) return -1;
    return vocab_find(t, SPACE_PIECES, piece, *n_piece);
}

static bool merge_add(struct tokenizer *t, const struct merge_entry *m, uint32_t rank, struct err *e) {
    char piece[2 * TEXT_PIECE_BYTES_MAX];
    uint32_t n_left = 0, n_right = 0;
    int32_t left = find_side(t, m->left, m->n_left, piece, &n_left);
    if (left < 0) return err_set(e, ERR_LOAD, "Tokenizer: the left side of merge %u is not in the vocabulary.", rank);
    int32_t right = find_side(t, m->right, m->n_right, piece + n_left, &n_right);
    if (right < 0) return err_set(e, ERR_LOAD, "Tokenizer: the right side of merge %u is not in the vocabulary.", rank);
    int32_t id = vocab_find(t, SPACE_PIECES, piece, n_left + n_right);
    if (id < 0) return err_set(e, ERR_LOAD, "Tokenizer: the result of merge %u is not in the vocabulary.", rank);
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    t->merges[merge_probe(t, pair)] = (struct merge_slot){pair, rank, id};
    return true;
}

bool bpe_merges_build(struct tokenizer *t, const struct tokenizer_spec *spec, struct err *e) {
    uint32_t n_slots = 16;
    while (n_slots < 2 * spec->n_merges) n_slots *= 2;
    t->merges = malloc(n_slots * sizeof *t->merges);
    if (!t->merges) return err_set(e, ERR_LOAD, "No memory for the tokenizer's merges.");
    t->merge_mask = n_slots - 1;
    for (uint32_t i = 0; i < n_slots; i++) t->merges[i].pair = MERGE_EMPTY;
    for (uint32_t rank = 0; rank < spec->n_merges; rank++) {
        if (!merge_add(t, &spec->merges[rank], rank, e)) return false;
    }
    return true;
}

/* ---- encoding ---- */

static bool find_merge(const struct tokenizer *t, const char *text, const struct symbol *left,
                       const struct symbol *right, uint32_t *prio, int32_t *id) {
    (void)text;
    text_work++;
    const struct merge_slot *slot =
        &t->merges[merge_probe(t, (uint64_t)(uint32_t)left->id << 32 | (uint32_t)right->id)];
    if (slot->pair == MERGE_EMPTY) return false;
    *prio = slot->rank;
    *id = slot->id;
    return true;
}

bool bpe_encode_word(struct encoder *c, const char *text, size_t n) {
    const struct tokenizer *t = c->t;
    text_work += n;
    if (n == 1 || (t->ignore_merges && n <= t->piece_bytes_max)) {
        int32_t id = n == 1 ? t->byte_id[(uint8_t)text[0]] : vocab_find(t, SPACE_PIECES, text, n);
        if (id >= 0) return encoder_emit(c, id);
    }
    if (!encoder_reserve_symbols(c, n)) return false;
    for (size_t i = 0; i < n; i++) {
        c->symbols[i] = (struct symbol){(uint32_t)i, 1, (int32_t)i - 1, (int32_t)i + 1, t->byte_id[(uint8_t)text[i]]};
    }
    c->symbols[n - 1].next = -1;
    if (!merge_symbols(c, text, n, find_merge)) return false;
    for (int32_t i = 0; i >= 0; i = c->symbols[i].next) {
        if (!encoder_emit(c, c->symbols[i].id)) return false;
    }
    return true;
}
