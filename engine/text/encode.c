/* encode.c - text to tokens: the order of the steps, and the list of ids.
 *
 *   repair UTF-8 -> cut at added tokens (raw) -> normalize -> cut at added tokens (normalized) -> merge
 *
 * SPM: "raw" are the control tokens, "normalized" the user-defined ones, and normalizing maps U+2581 to a space and
 * puts the space prefix before the first text and before text after a control token (as llama.cpp does).
 * BPE: as Hugging Face's tokenizers: each added token says whether it is looked for before or after NFC.
 * At each position the longest token wins; a control token that is not asked for is as if it were not there.
 *
 * Runs on the caller's thread; all state is the `struct encoder` on its stack.
 *
 * Invariants
 *  1. After repair every string here is valid UTF-8 and every cut is between characters.
 *  2. *ids never holds more than n_max tokens; work stops soon after the limit is passed.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>

typedef bool encode_part(struct encoder *c, const char *text, size_t n);

bool encoder_no_memory(struct encoder *c) {
    return err_set(c->e, ERR_INTERNAL, "No memory to tokenize the text.");
}

static bool too_long(struct encoder *c) {
    return err_set(c->e, ERR_CONTEXT_LENGTH, "The text is longer than %zu tokens.", c->n_max);
}

bool encoder_emit(struct encoder *c, int32_t id) {
    if (*c->n_ids >= c->n_max) return too_long(c);
    if (*c->n_ids >= c->n_ids_alloc) {
        size_t n_alloc = size_max(64, *c->n_ids + *c->n_ids / 2);
        int32_t *ids = realloc(*c->ids, n_alloc * sizeof *ids);
        if (!ids) return encoder_no_memory(c);
        *c->ids = ids;
        c->n_ids_alloc = n_alloc;
    }
    (*c->ids)[(*c->n_ids)++] = id;
    return true;
}

/* Where text must take more tokens than are left, there is no need to merge it first. */
static bool may_fit(struct encoder *c, size_t n_bytes) {
    const struct tokenizer *t = c->t;
    if (!t->has_all_bytes) return true; /* one unknown token may stand for a whole text */
    return n_bytes / size_max(t->piece_bytes_max, 1) <= c->n_max - *c->n_ids || too_long(c);
}

/* ---- the last step: text without added tokens ---- */

static bool encode_plain(struct encoder *c, const char *text, size_t n) {
    if (!may_fit(c, n)) return false;
    if (c->t->kind == TOKENIZER_SPM) return spm_encode_text(c, text, n);
    if (c->t->pattern) return pattern_encode(c, c->t->pattern, text, n);
    for (size_t at = 0; at < n;) {
        size_t end = pretoken_end(c->t->pre, text, n, at);
        if (!bpe_encode_word(c, text + at, end - at)) return false;
        at = end;
    }
    return true;
}

/* ---- cutting at added tokens ---- */

static size_t strip_left(const char *text, size_t from, size_t at) {
    while (at > from) {
        size_t before = at - 1;
        uint32_t n_bytes;
        while (before > from && ((uint8_t)text[before] & 0xc0) == 0x80) before--;
        if (!char_is_space(utf8_decode(text + before, &n_bytes))) break;
        at = before;
        text_work++;
    }
    return at;
}

static size_t strip_right(const char *text, size_t n, size_t at) {
    uint32_t n_bytes;
    while (at < n && char_is_space(utf8_decode(text + at, &n_bytes))) {
        at += n_bytes;
        text_work++;
    }
    return at;
}

static bool cut_at_added(struct encoder *c, const struct matcher *m, const char *text, size_t n, encode_part *rest) {
    const struct tokenizer *t = c->t;
    size_t done = 0;
    text_work += n;
    for (size_t at = 0; m && at < n;) {
        uint32_t n_bytes;
        int32_t id = matcher_longest(m, t, text + at, n - at, c->control, &n_bytes);
        if (id < 0) {
            at++;
            continue;
        }
        size_t start = at, end = at + n_bytes;
        if (t->added && t->added[id].lstrip) start = strip_left(text, done, at);
        if (t->added && t->added[id].rstrip) end = strip_right(text, n, end);
        if (start > done && !rest(c, text + done, start - done)) return false;
        if (!encoder_emit(c, id)) return false;
        if (t->tokens[id].kind != TOKEN_USER_DEFINED) c->after_control = true;
        done = at = end;
    }
    return done == n || rest(c, text + done, n - done);
}

/* ---- normalizing ---- */

static bool encode_spm_text(struct encoder *c, const char *text, size_t n) {
    bool prefix = c->t->add_space_prefix && c->after_control;
    char *spaced = malloc(n + 1);
    if (!spaced) return encoder_no_memory(c);
    spaced[0] = ' ';
    size_t n_spaced = prefix + copy_spaced(text, n, spaced + prefix);
    text_work += n;
    c->after_control = false;
    bool ok = cut_at_added(c, c->t->normalized, spaced, n_spaced, encode_plain);
    free(spaced);
    return ok;
}

static bool encode_bpe_text(struct encoder *c, const char *text, size_t n) {
    if (!c->t->normalize_nfc || nfc_is_trivial(text, n))
        return cut_at_added(c, c->t->normalized, text, n, encode_plain);
    size_t n_normal;
    char *normal = nfc_normalize(text, n, &n_normal);
    if (!normal) return encoder_no_memory(c);
    bool ok = cut_at_added(c, c->t->normalized, normal, n_normal, encode_plain);
    free(normal);
    return ok;
}

static bool encode_all(struct encoder *c, const char *text, size_t n, unsigned flags) {
    const struct tokenizer *t = c->t;
    bool special = (flags & TOKENIZE_ADD_SPECIAL) != 0;
    if (special && t->add_bos && !encoder_emit(c, t->bos)) return false;
    if (n > 0 && !cut_at_added(c, t->raw, text, n, t->kind == TOKENIZER_SPM ? encode_spm_text : encode_bpe_text))
        return false;
    return !special || !t->add_eos || encoder_emit(c, t->eos);
}

bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_bytes, unsigned flags, size_t n_max,
                      int32_t **ids, size_t *n_ids, struct err *e) {
    struct encoder c = {.t = t,
                        .control = (flags & TOKENIZE_PARSE_SPECIAL) != 0,
                        .n_max = n_max,
                        .ids = ids,
                        .n_ids = n_ids,
                        .n_ids_alloc = *n_ids,
                        .e = e,
                        .after_control = true};
    if (n_bytes > TEXT_INPUT_BYTES_MAX) return too_long(&c);
    char *repaired = NULL;
    if (!utf8_valid(text, n_bytes)) {
        repaired = utf8_repair(text, n_bytes, &n_bytes);
        if (!repaired) return encoder_no_memory(&c);
        text = repaired;
    }
    text_work += n_bytes;
    bool ok = encode_all(&c, text, n_bytes, flags);
    free(repaired);
    free(c.symbols);
    free(c.heap);
    free(c.match_data);
    return ok;
}
