/* vocab_index.c - finds a token by its bytes: one open-addressing table of 32-bit hash and id, at most half full.
 *
 * Built once on the loading thread, then read by all. The table is fixed, so text cannot flood it: a look-up of any
 * text costs its hash and a short walk.
 *
 * Invariants
 *  1. Text from merges can only become a token of SPACE_PIECES: control, byte and unused tokens are never there.
 *  2. Within a space, no two tokens have the same bytes, so that encoding is a function.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>

/* Multiply and fold, eight bytes at a time. */
static uint32_t hash_bytes(const char *s, size_t n, uint32_t seed) {
    uint64_t h = (seed + 1) * 0x9e3779b97f4a7c15u + n, word;
    for (; n >= 8; n -= 8, s += 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    word = 0;
    for (size_t i = 0; i < n; i++) word |= (uint64_t)(uint8_t)s[i] << (8 * i);
    h = (h ^ word) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
    h *= 0xc4ceb9fe1a85ec53u;
    return (uint32_t)(h >> 32);
}

enum text_space token_space(const struct tokenizer *t, enum token_kind kind) {
    if (kind == TOKEN_NORMAL) return SPACE_PIECES;
    return t->kind == TOKENIZER_SPM && kind == TOKEN_USER_DEFINED ? SPACE_PIECES : SPACE_NAMES;
}

/* The slot that holds the text, or the empty one where it belongs. */
static uint32_t index_probe(const struct tokenizer *t, enum text_space space, const char *s, size_t n, uint32_t hash) {
    uint32_t i = hash & t->index_mask;
    for (; t->index[i].id >= 0; i = (i + 1) & t->index_mask) {
        if (t->index[i].hash != hash) continue;
        const struct token *k = &t->tokens[t->index[i].id];
        if (k->n_bytes == n && token_space(t, k->kind) == space && memcmp(t->arena + k->offset, s, n) == 0) break;
    }
    return i;
}

int32_t vocab_find(const struct tokenizer *t, enum text_space space, const char *s, size_t n) {
    return t->index[index_probe(t, space, s, n, hash_bytes(s, n, space))].id;
}

/* Hash of a token that belongs into the index; false for one that does not. */
static bool token_hash(const struct tokenizer *t, uint32_t id, uint32_t *hash) {
    const struct token *k = &t->tokens[id];
    if (k->kind == TOKEN_BYTE || k->unreachable || k->n_bytes == 0) return false;
    *hash = hash_bytes(t->arena + k->offset, k->n_bytes, token_space(t, k->kind));
    return true;
}

/* The table is larger than the near caches, so a token's slot is fetched well before the token's turn. */
static bool index_fill(struct tokenizer *t, struct err *e) {
    enum { AHEAD = 16 };
    uint32_t hashes[AHEAD];
    bool in_index[AHEAD];
    for (uint32_t next = 0; next < t->n_vocab + AHEAD; next++) {
        uint32_t lane = next % AHEAD, id = next - AHEAD;
        if (next >= AHEAD && in_index[lane]) {
            const struct token *k = &t->tokens[id];
            const char *s = t->arena + k->offset;
            struct index_slot *slot = &t->index[index_probe(t, token_space(t, k->kind), s, k->n_bytes, hashes[lane])];
            if (slot->id >= 0) return err_set(e, ERR_LOAD, "Tokenizer: tokens %d and %u are the same.", slot->id, id);
            *slot = (struct index_slot){hashes[lane], (int32_t)id};
        }
        in_index[lane] = next < t->n_vocab && token_hash(t, next, &hashes[lane]);
        if (in_index[lane]) __builtin_prefetch(&t->index[hashes[lane] & t->index_mask], 1);
    }
    return true;
}

bool vocab_index_build(struct tokenizer *t, struct err *e) {
    uint32_t n_slots = 16;
    while (n_slots < 2 * t->n_vocab) n_slots *= 2;
    t->index = malloc(n_slots * sizeof *t->index);
    if (!t->index) return err_set(e, ERR_LOAD, "No memory for the tokenizer's index.");
    t->index_mask = n_slots - 1;
    memset(t->index, 0xff, n_slots * sizeof *t->index); /* id -1: empty */
    return index_fill(t, e);
}
