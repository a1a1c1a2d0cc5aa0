/* detok.c - tokens to text: all at once, or one token at a time without ever giving half a character.
 *
 * Bytes of tokens are joined; whole characters and the replacements of surely invalid bytes go out, an unfinished
 * character (at most three bytes) is held until the next token or the flush. So the pieces joined equal the text
 * decoded at once, whatever the cuts. A `struct detok` belongs to one stream.
 *
 * Invariant: held[0..n_held) is empty or the proper beginning of one well-formed character.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of a token in a stream: drops the space prefix of the first text. */
static const char *token_bytes(const struct tokenizer *t, int32_t id, bool special, bool *at_start, uint32_t *n_bytes) {
    const char *s = tokenizer_bytes(t, id, special, n_bytes);
    if (*n_bytes == 0 || !*at_start) return s;
    *at_start = false;
    if (!t->add_space_prefix || s[0] != ' ' || t->kind != TOKENIZER_SPM) return s;
    --*n_bytes;
    return s + 1;
}

/* Length of the beginning of s that needs nothing more: all but an unfinished character at the end. */
static size_t finished_length(const char *s, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        if (((uint8_t)s[n - back] & 0xc0) == 0x80) continue;
        uint32_t n_bad;
        bool truncated;
        bool unfinished = utf8_char_length(s + n - back, back, &n_bad, &truncated) == 0 && truncated;
        return unfinished ? n - back : n;
    }
    return n;
}

void detok_init(struct detok *d, const struct tokenizer *t, bool special, bool at_start) {
    *d = (struct detok){.t = t, .special = special, .at_start = at_start};
}

char *detok_push(struct detok *d, int32_t id, size_t *n_bytes) {
    char joined[sizeof d->held + TEXT_PIECE_BYTES_MAX];
    uint32_t n;
    const char *s = token_bytes(d->t, id, d->special, &d->at_start, &n);
    memcpy(joined, d->held, d->n_held);
    memcpy(joined + d->n_held, s, n);
    size_t n_joined = d->n_held + n, n_finished = finished_length(joined, n_joined);
    char *out = utf8_repair(joined, n_finished, n_bytes);
    if (!out) return NULL;
    d->n_held = (uint32_t)(n_joined - n_finished);
    memcpy(d->held, joined + n_finished, d->n_held);
    return out;
}

char *detok_flush(struct detok *d, size_t *n_bytes) {
    char *out = utf8_repair((const char *)d->held, d->n_held, n_bytes);
    if (out) d->n_held = 0;
    return out;
}

char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool special, size_t *n_bytes) {
    size_t n = 0;
    uint32_t n_token;
    bool at_start = true;
    for (size_t i = 0; i < n_ids; i++) {
        token_bytes(t, ids[i], special, &at_start, &n_token);
        n += n_token;
    }
    char *joined = malloc(n + 1);
    if (!joined) return NULL;
    n = 0;
    at_start = true;
    for (size_t i = 0; i < n_ids; i++) {
        const char *s = token_bytes(t, ids[i], special, &at_start, &n_token);
        memcpy(joined + n, s, n_token);
        n += n_token;
    }
    char *out = utf8_repair(joined, n, n_bytes);
    free(joined);
    return out;
}
