/* chat.c - the built-in chat template: messages straight to tokens.
 *
 * Design: one table row per family says how a turn looks; rendering alternates between stretches of text, which are
 * tokenized as plain text, and marker ids. The text between two markers is tokenized in one piece, so the tokens are
 * those of the family's own template. Runs on the caller's thread.
 *
 * Invariant: ids of control tokens are only ever written by chat_mark; text cannot become one (vocab.c makes the
 * markers control tokens, and encoding is without TOKENIZE_PARSE_SPECIAL).
 */
#include "engine/text/text_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLES };

struct family {
    const char *open, *role_end, *close; /* markers; role_end may be NULL */
    const char *after_role, *after_close;
    const char *roles[ROLES]; /* NULL: goes before the next user turn's text */
    bool trim, needs_bos;
};

static const struct family families[] = {
    {"<start_of_turn>", NULL, "<end_of_turn>", "\n", "\n", {NULL, "user", "model", "user"}, true, true},
    {"<|start_header_id|>",
     "<|end_header_id|>",
     "<|eot_id|>",
     "\n\n",
     "",
     {"system", "user", "assistant", "ipython"},
     true,
     true},
    {"<|im_start|>", NULL, "<|im_end|>", "\n", "\n", {"system", "user", "assistant", "tool"}, false, false},
};
static const struct family no_family = {NULL,  NULL, NULL, ": ", "\n", {"system", "user", "assistant", "tool"},
                                        false, false};

struct chat {
    const struct tokenizer *t;
    const struct family *family;
    size_t n_max;
    int32_t **ids;
    size_t *n_ids;
    struct err *e;
    char *text; /* since the last marker */
    size_t n_text, n_text_alloc;
};

static int32_t marker_id(const struct tokenizer *t, const char *name) {
    int32_t id = vocab_find(t, SPACE_NAMES, name, strlen(name));
    return tokenizer_kind_of(t, id) == TOKEN_CONTROL ? id : -1;
}

static const struct family *family_of(const struct tokenizer *t) {
    for (size_t i = 0; i < ARRAY_COUNT(families); i++) {
        const struct family *f = &families[i];
        bool role_end = !f->role_end || marker_id(t, f->role_end) >= 0;
        if (marker_id(t, f->open) >= 0 && marker_id(t, f->close) >= 0 && role_end) return f;
    }
    return &no_family;
}

static bool chat_add(struct chat *c, const char *s, size_t n) {
    if (n > TEXT_INPUT_BYTES_MAX - c->n_text)
        return err_set(c->e, ERR_CONTEXT_LENGTH, "The messages are longer than %zu tokens.", c->n_max);
    if (c->n_text + n > c->n_text_alloc) {
        size_t n_alloc = size_max(256, 2 * (c->n_text + n));
        char *text = realloc(c->text, n_alloc);
        if (!text) return err_set(c->e, ERR_INTERNAL, "No memory to tokenize the messages.");
        c->text = text;
        c->n_text_alloc = n_alloc;
    }
    if (n > 0) memcpy(c->text + c->n_text, s, n);
    c->n_text += n;
    return true;
}

/* Tokenizes the text so far. */
static bool chat_end_text(struct chat *c) {
    size_t n = c->n_text;
    c->n_text = 0;
    return n == 0 || tokenizer_encode(c->t, c->text, n, 0, c->n_max, c->ids, c->n_ids, c->e);
}

static bool chat_mark_id(struct chat *c, int32_t id) {
    if (!chat_end_text(c)) return false;
    if (*c->n_ids >= c->n_max)
        return err_set(c->e, ERR_CONTEXT_LENGTH, "The messages are longer than %zu tokens.", c->n_max);
    int32_t *ids = realloc(*c->ids, (*c->n_ids + 1) * sizeof *ids);
    if (!ids) return err_set(c->e, ERR_INTERNAL, "No memory to tokenize the messages.");
    *c->ids = ids;
    ids[(*c->n_ids)++] = id;
    return true;
}

static bool chat_mark(struct chat *c, const char *name) {
    return !name || chat_mark_id(c, marker_id(c->t, name));
}

/* Python's str.strip(), which the templates' `trim` is: White_Space and the four separators U+001C..U+001F. */
static bool is_trimmed(const char *s, uint32_t *n_bytes) {
    uint32_t c = utf8_decode(s, n_bytes);
    return char_is_space(c) || (c >= 0x1c && c <= 0x1f);
}

static void trim(const char **s, size_t *n) {
    uint32_t n_bytes;
    while (*n > 0 && is_trimmed(*s, &n_bytes)) {
        *s += n_bytes;
        *n -= n_bytes;
    }
    while (*n > 0) {
        size_t last = *n - 1;
        while (last > 0 && ((uint8_t)(*s)[last] & 0xc0) == 0x80) last--;
        if (!is_trimmed(*s + last, &n_bytes)) return;
        *n = last;
    }
}

static bool chat_add_content(struct chat *c, const struct chat_message *m, bool trimmed) {
    size_t n;
    char *repaired = utf8_repair(m->content, m->n_content, &n);
    if (!repaired) return err_set(c->e, ERR_INTERNAL, "No memory to tokenize the messages.");
    const char *s = repaired;
    if (trimmed) trim(&s, &n);
    bool ok = chat_add(c, s, n);
    free(repaired);
    return ok;
}

static bool chat_open_turn(struct chat *c, const char *role) {
    const struct family *f = c->family;
    return chat_mark(c, f->open) && chat_add(c, role, strlen(role)) && chat_mark(c, f->role_end) &&
           chat_add(c, f->after_role, strlen(f->after_role));
}

static bool chat_close_turn(struct chat *c) {
    const struct family *f = c->family;
    return chat_mark(c, f->close) && chat_add(c, f->after_close, strlen(f->after_close));
}

static int role_of(const char *role) {
    static const char *const names[] = {"system", "user", "assistant", "tool", "developer"};
    for (int i = 0; i < (int)ARRAY_COUNT(names); i++) {
        if (strcmp(names[i], role) == 0) return i < ROLES ? i : ROLE_SYSTEM;
    }
    return -1;
}

/* System messages [from, to) before a turn's text, in a family without a system role. */
static bool chat_add_system(struct chat *c, const struct chat_message *m, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
        if (!chat_add_content(c, &m[i], false) || !chat_add(c, "\n\n", 2)) return false;
    }
    return true;
}

static bool chat_render(struct chat *c, const struct chat_message *m, size_t n, bool add_generation_prompt) {
    const struct family *f = c->family;
    size_t system_from = 0; /* system messages [system_from, i) wait for a turn */
    for (size_t i = 0; i < n; i++) {
        int role = role_of(m[i].role);
        if (role < 0) {
            char param[48];
            snprintf(param, sizeof param, "messages[%zu].role", i);
            return err_set_param(c->e, ERR_BAD_VALUE, param,
                                 "The role is none of system, developer, user, assistant and tool.");
        }
        if (!f->roles[role] && i + 1 < n) continue;
        if (!chat_open_turn(c, f->roles[role] ? f->roles[role] : f->roles[ROLE_USER])) return false;
        if (!chat_add_system(c, m, system_from, i) || !chat_add_content(c, &m[i], f->trim) || !chat_close_turn(c))
            return false;
        system_from = i + 1;
    }
    if (add_generation_prompt) {
        /* Without markers the reply begins after the colon: a space here would be cut from its first word. */
        const char *role = f->open ? f->roles[ROLE_ASSISTANT] : "assistant:";
        if (f->open ? !chat_open_turn(c, role) : !chat_add(c, role, strlen(role))) return false;
    }
    return chat_end_text(c);
}

bool chat_encode(const struct tokenizer *t, const struct chat_message *m, size_t n, bool add_generation_prompt,
                 size_t n_max, int32_t **ids, size_t *n_ids, struct err *e) {
    struct chat c = {.t = t, .family = family_of(t), .n_max = n_max, .ids = ids, .n_ids = n_ids, .e = e};
    bool bos = t->bos >= 0 && (t->add_bos || c.family->needs_bos);
    bool ok = (!bos || chat_mark_id(&c, t->bos)) && chat_render(&c, m, n, add_generation_prompt);
    free(c.text);
    return ok;
}
