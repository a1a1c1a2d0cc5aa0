/* token.c - the plain questions about a tokenizer and its tokens. Read-only, any thread. */
#include "engine/text/text_int.h"

#include <string.h>

uint32_t tokenizer_n_vocab(const struct tokenizer *t) {
    return t->n_vocab;
}
int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->bos;
}
int32_t tokenizer_eos(const struct tokenizer *t) {
    return t->eos;
}
bool tokenizer_adds_bos(const struct tokenizer *t) {
    return t->add_bos;
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id) {
    if (id < 0) return false;
    if (id == t->eos) return true;
    for (uint32_t i = 0; i < t->n_eog; i++) {
        if (t->eog[i] == id) return true;
    }
    return false;
}

enum token_kind tokenizer_kind_of(const struct tokenizer *t, int32_t id) {
    if (id < 0 || (uint32_t)id >= t->n_vocab) return TOKEN_UNUSED;
    return t->tokens[id].kind;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n_bytes) {
    char piece[TEXT_PIECE_BYTES_MAX];
    uint32_t n_piece = 0;
    if (n_bytes == 0 || n_bytes > TEXT_PIECE_BYTES_MAX) return -1;
    int32_t id = vocab_find(t, SPACE_NAMES, text, n_bytes);
    if (id >= 0) return id;
    if (t->kind == TOKENIZER_BPE) {
        return byte_level_decode(text, n_bytes, piece, &n_piece) ? vocab_find(t, SPACE_PIECES, piece, n_piece) : -1;
    }
    if (byte_token_value(text, n_bytes) >= 0) return t->byte_id[byte_token_value(text, n_bytes)];
    n_piece = copy_spaced(text, n_bytes, piece);
    return vocab_find(t, SPACE_PIECES, piece, n_piece);
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, bool special, uint32_t *n_bytes) {
    enum token_kind kind = tokenizer_kind_of(t, id);
    bool silent = id < 0 || (uint32_t)id >= t->n_vocab || kind == TOKEN_UNUSED ||
                  ((kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN) && !special);
    *n_bytes = silent ? 0 : t->tokens[id].n_bytes;
    return silent ? "" : t->arena + t->tokens[id].offset;
}
