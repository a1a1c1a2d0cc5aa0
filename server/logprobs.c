/* logprobs.c - writing log-probabilities; see logprobs.h for the shapes. */
#include "server/logprobs.h"

#include <math.h>
#include <string.h>

/* What clients take for "very unlikely", since JSON has no infinity. */
static const float LOGPROB_LEAST = -9999.0f;

static const char *token_text(const struct logprobs_style *s, int32_t id, uint32_t *n) {
    *n = 0;
    const char *bytes = tokenizer_bytes(s->tokenizer, id, true, n);
    return bytes ? bytes : "";
}

static void comma(struct strbuf *b) {
    if (b->count > 0) strbuf_add_char(b, ',');
}

static void number_add(struct strbuf *b, float logprob) {
    strbuf_add_float(b, logprob > LOGPROB_LEAST ? logprob : LOGPROB_LEAST);
}

/* Token text as a JSON string; what is no whole text is repaired, or spelled byte by byte. */
static void token_add(struct strbuf *b, const struct logprobs_style *s, int32_t id, bool spell_bytes) {
    uint32_t n;
    const char *bytes = token_text(s, id, &n);
    if (s->tokens_as_ids) {
        strbuf_printf(b, "\"token_id:%d\"", id);
    } else if (!spell_bytes || utf8_valid(bytes, n)) {
        strbuf_add_json(b, bytes, n);
    } else {
        strbuf_add_str(b, "\"bytes:");
        for (uint32_t i = 0; i < n; i++) strbuf_printf(b, "\\\\x%02x", (unsigned char)bytes[i]);
        strbuf_add_char(b, '"');
    }
}

static void chat_token_add(struct strbuf *b, const struct logprobs_style *s, int32_t id, float logprob) {
    uint32_t n;
    const char *bytes = token_text(s, id, &n);
    strbuf_add_str(b, "{\"token\":");
    token_add(b, s, id, false);
    strbuf_add_str(b, ",\"logprob\":");
    number_add(b, logprob);
    strbuf_add_str(b, ",\"bytes\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) strbuf_add_char(b, ',');
        strbuf_add_u64(b, (unsigned char)bytes[i]);
    }
    strbuf_add_char(b, ']');
}

static uint32_t top_count(const struct logprobs_style *s, const struct sample_output *o) {
    return s->n_top < o->n_top ? s->n_top : o->n_top;
}

void logprobs_add_chat(struct strbuf *b, const struct logprobs_style *s, const struct sample_output *o) {
    comma(b);
    chat_token_add(b, s, o->drawn.id, o->drawn.logprob);
    strbuf_add_str(b, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < top_count(s, o); i++) {
        if (i > 0) strbuf_add_char(b, ',');
        chat_token_add(b, s, o->top[i].id, o->top[i].logprob);
        strbuf_add_char(b, '}');
    }
    strbuf_add_str(b, "]}");
}

static void prompt_token_add(struct strbuf *b, const struct logprobs_style *s, const struct token_logprob *t) {
    strbuf_printf(b, "\"%d\":{\"logprob\":", t->id);
    number_add(b, t->logprob);
    strbuf_printf(b, ",\"rank\":%u,\"decoded_token\":", t->rank);
    token_add(b, s, t->id, false);
    strbuf_add_char(b, '}');
}

void logprobs_add_prompt(struct strbuf *b, const struct logprobs_style *s, const struct sample_output *o) {
    comma(b);
    strbuf_add_char(b, '{');
    prompt_token_add(b, s, &o->drawn);
    for (uint32_t i = 0; i < top_count(s, o); i++) {
        if (o->top[i].id == o->drawn.id) continue;
        strbuf_add_char(b, ',');
        prompt_token_add(b, s, &o->top[i]);
    }
    strbuf_add_char(b, '}');
}

/* Whether an earlier alternative, or the drawn token, has the same text: keys of an object must differ. */
static bool text_taken(const struct logprobs_style *s, const struct sample_output *o, uint32_t i) {
    uint32_t n, m;
    if (o->top[i].id == o->drawn.id) return true;
    if (s->tokens_as_ids) return false;
    const char *text = token_text(s, o->top[i].id, &n);
    for (uint32_t k = 0; k <= i; k++) {
        int32_t other_id = k < i ? o->top[k].id : o->drawn.id;
        const char *other = token_text(s, other_id, &m);
        if (n == m && memcmp(text, other, n) == 0) return true;
    }
    return false;
}

static void legacy_top_add(struct strbuf *b, const struct logprobs_style *s, const struct sample_output *o) {
    strbuf_add_char(b, '{');
    token_add(b, s, o->drawn.id, true);
    strbuf_add_char(b, ':');
    number_add(b, o->drawn.logprob);
    for (uint32_t i = 0; i < top_count(s, o); i++) {
        if (text_taken(s, o, i)) continue;
        strbuf_add_char(b, ',');
        token_add(b, s, o->top[i].id, true);
        strbuf_add_char(b, ':');
        number_add(b, o->top[i].logprob);
    }
    strbuf_add_char(b, '}');
}

void logprobs_add_legacy(struct logprobs_legacy *l, const struct logprobs_style *s, int32_t token,
                         const struct sample_output *o, uint32_t text_offset) {
    comma(&l->tokens);
    comma(&l->token_logprobs);
    comma(&l->top_logprobs);
    comma(&l->text_offset);
    token_add(&l->tokens, s, token, true);
    strbuf_add_u64(&l->text_offset, text_offset);
    if (o) {
        number_add(&l->token_logprobs, o->drawn.logprob);
        legacy_top_add(&l->top_logprobs, s, o);
    } else {
        strbuf_add_str(&l->token_logprobs, "null");
        strbuf_add_str(&l->top_logprobs, "null");
    }
}

static void part_append(struct strbuf *to, const struct strbuf *from) {
    if (from->failed) to->failed = true;
    if (from->count == 0) return;
    comma(to);
    strbuf_add(to, from->data, from->count);
}

void logprobs_legacy_append(struct logprobs_legacy *to, const struct logprobs_legacy *from) {
    part_append(&to->tokens, &from->tokens);
    part_append(&to->token_logprobs, &from->token_logprobs);
    part_append(&to->top_logprobs, &from->top_logprobs);
    part_append(&to->text_offset, &from->text_offset);
}

void logprobs_legacy_clear(struct logprobs_legacy *l) {
    strbuf_clear(&l->tokens);
    strbuf_clear(&l->token_logprobs);
    strbuf_clear(&l->top_logprobs);
    strbuf_clear(&l->text_offset);
}

void logprobs_legacy_free(struct logprobs_legacy *l) {
    strbuf_free(&l->tokens);
    strbuf_free(&l->token_logprobs);
    strbuf_free(&l->top_logprobs);
    strbuf_free(&l->text_offset);
}

bool logprobs_legacy_failed(const struct logprobs_legacy *l) {
    return l->tokens.failed || l->token_logprobs.failed || l->top_logprobs.failed || l->text_offset.failed;
}

static void array_add(struct strbuf *b, const char *name, const struct strbuf *items) {
    strbuf_add_str(b, name);
    strbuf_add_char(b, '[');
    strbuf_add(b, strbuf_cstr(items), items->count);
    strbuf_add_char(b, ']');
}

void logprobs_write_legacy(struct strbuf *b, const struct logprobs_legacy *l) {
    array_add(b, "{\"text_offset\":", &l->text_offset);
    array_add(b, ",\"token_logprobs\":", &l->token_logprobs);
    array_add(b, ",\"tokens\":", &l->tokens);
    array_add(b, ",\"top_logprobs\":", &l->top_logprobs);
    strbuf_add_char(b, '}');
}
