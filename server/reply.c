/* reply.c - a generation's reply as JSON: stream chunks and whole bodies, for both endpoints.
 *
 * Text is appended to g->out; no tree is built. Owner: the output thread.
 */
#include "server/generation.h"
#include "server/server.h"

#include <string.h>

static bool is_chat(const struct generation *g) {
    return g->api.endpoint == API_CHAT;
}

static const char *object_name(const struct generation *g) {
    if (!is_chat(g)) return "text_completion";
    return g->api.stream ? "chat.completion.chunk" : "chat.completion";
}

void reply_head_write(struct generation *g) {
    struct strbuf *b = &g->head;
    strbuf_printf(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", g->reply_id, object_name(g),
                  (long long)g->created);
    strbuf_add_json_str(b, g->server->model.names[0]);
    strbuf_add_str(b, ",\"system_fingerprint\":");
    strbuf_add_json_str(b, engine_info(g->server->engine)->numerics_id);
    strbuf_add_str(b, ",\"seed\":");
    strbuf_add_i64(b, (int64_t)g->api.sampling.seed);
}

static void prompt_ids_write(struct strbuf *b, const struct prompt_part *p) {
    strbuf_add_str(b, ",\"prompt_token_ids\":[");
    for (uint32_t i = 0; i < p->tokens.n; i++) {
        if (i > 0) strbuf_add_char(b, ',');
        strbuf_add_i64(b, p->tokens.ids[i]);
    }
    strbuf_add_char(b, ']');
}

static void prompt_logprobs_write(struct strbuf *b, const struct prompt_part *p) {
    strbuf_add_str(b, ",\"prompt_logprobs\":[");
    strbuf_add(b, strbuf_cstr(&p->logprobs), p->logprobs.count);
    strbuf_add_char(b, ']');
}

static void usage_write(struct strbuf *b, const struct generation *g) {
    struct generation_usage u = generation_usage(g);
    strbuf_printf(b,
                  ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                  (unsigned long long)u.prompt, (unsigned long long)u.completion,
                  (unsigned long long)(u.prompt + u.completion), (unsigned long long)u.cached);
}

static void finish_write(struct strbuf *b, const struct choice *c) {
    strbuf_add_str(b, ",\"finish_reason\":");
    strbuf_add_json_str(b, c->finish_reason);
    strbuf_add_str(b, ",\"stop_reason\":");
    if (c->stop_index >= 0) {
        const struct stop_string *s = &c->generation->api.stop.strings[c->stop_index];
        strbuf_add_json(b, s->text, s->n);
    } else if (c->stop_token >= 0) {
        strbuf_add_i64(b, c->stop_token);
    } else {
        strbuf_add_str(b, "null");
    }
}

static void logprobs_write(struct strbuf *b, const struct choice *c) {
    strbuf_add_str(b, ",\"logprobs\":");
    const struct generation *g = c->generation;
    bool nothing = is_chat(g) ? c->chat_logprobs.count == 0 : c->legacy.tokens.count == 0;
    if (g->api.n_logprobs < 0 || (g->api.stream && nothing)) {
        strbuf_add_str(b, "null");
    } else if (is_chat(g)) {
        strbuf_add_str(b, "{\"content\":[");
        strbuf_add(b, strbuf_cstr(&c->chat_logprobs), c->chat_logprobs.count);
        strbuf_add_str(b, "],\"refusal\":null}");
    } else {
        logprobs_write_legacy(b, &c->legacy);
    }
}

static void token_ids_write(struct strbuf *b, const struct choice *c) {
    if (!c->generation->api.return_token_ids) return;
    strbuf_add_str(b, ",\"token_ids\":[");
    strbuf_add(b, strbuf_cstr(&c->token_ids), c->token_ids.count);
    strbuf_add_char(b, ']');
}

/* Puts the prompt's text and log-probabilities before the choice's own. */
static void echo_prepend(struct choice *c) {
    struct prompt_part *p = c->prompt;
    struct strbuf text = {0};
    strbuf_add(&text, strbuf_cstr(&p->echo), p->echo.count);
    strbuf_add(&text, strbuf_cstr(&c->text), c->text.count);
    text.failed |= c->text.failed;
    strbuf_free(&c->text);
    c->text = text;
    struct logprobs_legacy legacy = {0};
    logprobs_legacy_append(&legacy, &p->legacy);
    logprobs_legacy_append(&legacy, &c->legacy);
    logprobs_legacy_free(&c->legacy);
    c->legacy = legacy;
}

/* ---- streams ---- */

static void chunk_begin(struct generation *g) {
    strbuf_add_str(&g->out, "data: ");
    strbuf_add(&g->out, strbuf_cstr(&g->head), g->head.count);
}

static void chunk_end(struct generation *g) {
    if (g->api.continuous_usage) {
        usage_write(&g->out, g);
    } else if (g->api.include_usage) {
        strbuf_add_str(&g->out, ",\"usage\":null");
    }
    strbuf_add_str(&g->out, "}\n\n");
}

static void role_chunk_write(struct generation *g, const struct choice *c) {
    chunk_begin(g);
    strbuf_printf(&g->out,
                  ",\"choices\":[{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                  "\"finish_reason\":null}]",
                  c->index);
    if (g->api.return_token_ids) prompt_ids_write(&g->out, c->prompt);
    chunk_end(g);
}

static void text_chunk_write(struct generation *g, const struct choice *c, size_t n_text, bool first) {
    struct strbuf *b = &g->out;
    chunk_begin(g);
    strbuf_printf(b, ",\"choices\":[{\"index\":%u", c->index);
    if (is_chat(g)) {
        strbuf_add_str(b, ",\"delta\":{");
        if (n_text > 0) {
            strbuf_add_str(b, "\"content\":");
            strbuf_add_json(b, strbuf_cstr(&c->text), n_text);
        }
        strbuf_add_char(b, '}');
    } else {
        strbuf_add_str(b, ",\"text\":");
        strbuf_add_json(b, strbuf_cstr(&c->text), n_text);
    }
    logprobs_write(b, c);
    if (c->finish_reason) {
        finish_write(b, c);
    } else {
        strbuf_add_str(b, ",\"finish_reason\":null");
    }
    token_ids_write(b, c);
    if (first && !is_chat(g) && g->api.return_token_ids) prompt_ids_write(b, c->prompt);
    strbuf_add_str(b, "}]");
    chunk_end(g);
}

static void sent_clear(struct choice *c, size_t n_text) {
    if (n_text > 0) memmove(c->text.data, c->text.data + n_text, c->text.count - n_text + 1);
    c->text.count -= n_text;
    strbuf_clear(&c->token_ids);
    strbuf_clear(&c->chat_logprobs);
    logprobs_legacy_clear(&c->legacy);
}

void reply_chunk_write(struct generation *g, struct choice *c) {
    if (c->prompt->waits || c->ended) return;
    bool first = !c->begun;
    if (first && g->api.echo) echo_prepend(c);
    size_t held = c->finish_reason ? 0 : stop_scan_held(&c->scan, &g->api.stop);
    ASSERT(held <= c->text.count || c->text.failed);
    size_t n_text = c->text.failed ? 0 : c->text.count - held;
    bool something = n_text > 0 || c->token_ids.count > 0 || c->chat_logprobs.count > 0 || c->legacy.tokens.count > 0 ||
                     c->finish_reason;
    if (!something) return;
    if (first && is_chat(g)) role_chunk_write(g, c);
    c->begun = true;
    text_chunk_write(g, c, n_text, first);
    c->ended = c->finish_reason != NULL;
    sent_clear(c, n_text);
}

void reply_stream_end_write(struct generation *g) {
    if (g->api.include_usage) {
        chunk_begin(g);
        strbuf_add_str(&g->out, ",\"choices\":[]");
        usage_write(&g->out, g);
        strbuf_add_str(&g->out, "}\n\n");
    }
    strbuf_add_str(&g->out, "data: [DONE]\n\n");
}

/* ---- whole bodies ---- */

static void body_choice_write(struct generation *g, struct choice *c) {
    struct strbuf *b = &g->out;
    if (g->api.echo) echo_prepend(c);
    if (c->index > 0) strbuf_add_char(b, ',');
    strbuf_printf(b, "{\"index\":%u,", c->index);
    if (is_chat(g)) {
        strbuf_add_str(b, "\"message\":{\"role\":\"assistant\",\"content\":");
        strbuf_add_json(b, strbuf_cstr(&c->text), c->text.count);
        strbuf_add_str(b, ",\"refusal\":null}");
    } else {
        strbuf_add_str(b, "\"text\":");
        strbuf_add_json(b, strbuf_cstr(&c->text), c->text.count);
    }
    logprobs_write(b, c);
    finish_write(b, c);
    token_ids_write(b, c);
    if (!is_chat(g)) {
        if (g->api.return_token_ids) prompt_ids_write(b, c->prompt);
        if (g->api.prompt_logprobs >= 0) prompt_logprobs_write(b, c->prompt);
    }
    strbuf_add_char(b, '}');
}

void reply_body_write(struct generation *g) {
    strbuf_add(&g->out, strbuf_cstr(&g->head), g->head.count);
    strbuf_add_str(&g->out, ",\"choices\":[");
    for (uint32_t i = 0; i < g->n_choices; i++) body_choice_write(g, &g->choices[i]);
    strbuf_add_char(&g->out, ']');
    if (is_chat(g)) {
        if (g->api.return_token_ids) prompt_ids_write(&g->out, &g->prompts[0]);
        if (g->api.prompt_logprobs >= 0) prompt_logprobs_write(&g->out, &g->prompts[0]);
    }
    usage_write(&g->out, g);
    strbuf_add_char(&g->out, '}');
}
