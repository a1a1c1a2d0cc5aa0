/* hf_vocab.c - vocabulary, added tokens and merges of a tokenizer.json.
 *
 * Loading thread. Nothing is trusted: ids are bounded before memory is sized by them, no id is given twice, and
 * what an added token says must agree with the vocabulary.
 */
#include "engine/text/hf_int.h"

#include <stdlib.h>
#include <string.h>

static bool no_memory(struct hf_build *b) {
    return err_set(b->e, ERR_LOAD, "No memory for the tokenizer.");
}

/* Makes room for an id; new ids are unused. */
static bool vocab_reach(struct hf_build *b, uint32_t id) {
    if (id < b->spec.n_vocab) return true;
    if (id >= b->n_vocab_alloc) {
        uint32_t n_alloc = (uint32_t)size_min(TEXT_VOCAB_MAX, size_max(1024, 2 * ((size_t)id + 1)));
        struct vocab_entry *vocab = realloc(b->vocab, n_alloc * sizeof *vocab);
        if (!vocab) return no_memory(b);
        b->vocab = vocab;
        struct added_flags *added = realloc(b->added, n_alloc * sizeof *added);
        if (!added) return no_memory(b);
        b->added = added;
        b->n_vocab_alloc = n_alloc;
    }
    for (uint32_t i = b->spec.n_vocab; i <= id; i++) {
        b->vocab[i] = (struct vocab_entry){.bytes = "", .kind = TOKEN_UNUSED};
        b->added[i] = (struct added_flags){false, false, false};
    }
    b->spec.n_vocab = id + 1;
    return true;
}

static bool read_model_vocab(struct hf_build *b, const struct json_at *vocab) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocab->value, key, value) {
        struct json_at at = {value, vocab, key, 0};
        int64_t id;
        if (!json_as_i64(&at, 0, TEXT_VOCAB_MAX - 1, &id, b->e) || !vocab_reach(b, (uint32_t)id)) return false;
        struct vocab_entry *v = &b->vocab[id];
        size_t n = strlen(key);
        if (v->n_bytes > 0) return json_err(&at, ERR_LOAD, b->e, "Two tokens have the id %d.", (int)id);
        if (n == 0 || n > TEXT_PIECE_BYTES_MAX)
            return json_err(&at, ERR_LOAD, b->e, "Token %d is empty or too long.", (int)id);
        *v = (struct vocab_entry){.bytes = key, .n_bytes = (uint32_t)n, .kind = TOKEN_NORMAL};
    }
    return true;
}

/* A token that is looked for in normalized text must be what normalizing leaves of it. */
static bool is_normal(const struct hf_build *b, const char *s, size_t n) {
    if (!b->spec.normalize_nfc || nfc_is_trivial(s, n)) return true;
    size_t n_normal = 0;
    char *normal = nfc_normalize(s, n, &n_normal);
    bool same = normal && n_normal == n && memcmp(normal, s, n) == 0;
    free(normal);
    return same;
}

static bool read_added_token(struct hf_build *b, const struct json_at *at) {
    static const char *const names[] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"};
    int64_t id = -1;
    size_t n = 0;
    const char *content = NULL;
    bool single_word = false, special = false;
    struct added_flags flags = {false, false, false};
    if (!json_as_object(at, b->e) || !json_only_members(at, names, ARRAY_COUNT(names), b->e)) return false;
    if (!json_opt_i64(at, "id", 0, TEXT_VOCAB_MAX - 1, &id, b->e) ||
        !json_opt_string(at, "content", TEXT_PIECE_BYTES_MAX, &content, &n, b->e))
        return false;
    if (!json_opt_bool(at, "single_word", &single_word, b->e) || !json_opt_bool(at, "special", &special, b->e))
        return false;
    if (!json_opt_bool(at, "lstrip", &flags.lstrip, b->e) || !json_opt_bool(at, "rstrip", &flags.rstrip, b->e))
        return false;
    if (!json_opt_bool(at, "normalized", &flags.normalized, b->e)) return false;
    if (id < 0 || n == 0) return json_err(at, ERR_LOAD, b->e, "An added token needs an id and a content.");
    if (single_word) return hf_refuse(b, at, "an added token with", "single_word");
    if (flags.normalized && !is_normal(b, content, n))
        return json_err(at, ERR_LOAD, b->e, "A normalized added token is not in NFC.");
    if (!vocab_reach(b, (uint32_t)id)) return false;
    struct vocab_entry *v = &b->vocab[id];
    if (v->n_bytes > 0 && (v->kind != TOKEN_NORMAL || v->n_bytes != n || memcmp(v->bytes, content, n) != 0)) {
        return json_err(at, ERR_LOAD, b->e, "The id %d of an added token is another token's.", (int)id);
    }
    *v = (struct vocab_entry){
        .bytes = content, .n_bytes = (uint32_t)n, .kind = special ? TOKEN_CONTROL : TOKEN_USER_DEFINED};
    b->added[id] = flags;
    return true;
}

bool hf_read_vocab(struct hf_build *b, const struct json_at *doc) {
    struct json_at model, vocab, added;
    if (!json_require(doc, "model", &model, b->e) || !json_as_object(&model, b->e)) return false;
    if (!json_require(&model, "vocab", &vocab, b->e) || !json_as_object(&vocab, b->e)) return false;
    if (!read_model_vocab(b, &vocab)) return false;
    if (json_member(doc, "added_tokens", &added)) {
        if (!json_as_array(&added, 0, TEXT_VOCAB_MAX, b->e)) return false;
        for (size_t i = 0; i < json_count(&added); i++) {
            struct json_at at = json_item(&added, i);
            if (!read_added_token(b, &at)) return false;
        }
    }
    b->spec.vocab = b->vocab;
    return true;
}

/* "left right" with exactly one space. */
static bool split_merge(const char *s, size_t n, struct merge_entry *m) {
    const char *space = memchr(s, ' ', n);
    if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - s))) return false;
    *m = (struct merge_entry){s, space + 1, (uint32_t)(space - s), (uint32_t)(s + n - space - 1)};
    return true;
}

static bool read_merge(struct hf_build *b, const struct json_at *at, struct merge_entry *m) {
    size_t n = 0, n_right = 0;
    if (json_is_array(at->value)) {
        if (!json_as_array(at, 2, 2, b->e)) return false;
        struct json_at left = json_item(at, 0), right = json_item(at, 1);
        if (!json_as_string(&left, TEXT_PIECE_BYTES_MAX, &m->left, &n, b->e)) return false;
        if (!json_as_string(&right, TEXT_PIECE_BYTES_MAX, &m->right, &n_right, b->e)) return false;
        m->n_left = (uint32_t)n;
        m->n_right = (uint32_t)n_right;
        return true;
    }
    const char *s;
    if (!json_as_string(at, 2 * TEXT_PIECE_BYTES_MAX + 1, &s, &n, b->e)) return false;
    return split_merge(s, n, m) ||
           json_err(at, ERR_LOAD, b->e, "A merge is not two tokens with one space between them.");
}

bool hf_read_merges(struct hf_build *b, const struct json_at *model) {
    struct json_at merges;
    if (!json_require(model, "merges", &merges, b->e) || !json_as_array(&merges, 0, TEXT_MERGES_MAX, b->e))
        return false;
    size_t n = json_count(&merges);
    b->merges = malloc(n * sizeof *b->merges + 1);
    if (!b->merges) return no_memory(b);
    for (size_t i = 0; i < n; i++) {
        struct json_at at = json_item(&merges, i);
        if (!read_merge(b, &at, &b->merges[i])) return false;
    }
    b->spec.merges = b->merges;
    b->spec.n_merges = (uint32_t)n;
    return true;
}
