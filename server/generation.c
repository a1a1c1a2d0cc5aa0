/* generation.c - the life of a request that generates; generation.h has the states and owners.
 *
 * Invariants
 * 1. The reply handle is given back exactly once, by answered(), after which reply is NULL.
 * 2. n_open counts the choices whose last event is to come; the memory outlives them.
 * 3. Every choice that is open when the reply ends early has been cancelled.
 */
#include "server/generation.h"
#include "server/api_int.h"
#include "server/output.h"
#include "server/server.h"

#include "common/log.h"
#include "common/random.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static void on_gone(void *arg) {
    struct generation *g = arg;
    atomic_store_explicit(&g->gone, true, memory_order_release);
    output_notice_gone(&g->server->output);
}

static bool parts_open(struct generation *g, struct prompt_tokens *prompts) {
    g->prompts = arena_alloc(&g->api.arena, g->api.n_prompts, sizeof *g->prompts);
    g->n_choices = g->api.n_prompts * (uint32_t)g->api.n;
    g->choices = arena_alloc(&g->api.arena, g->n_choices, sizeof *g->choices);
    if (!g->prompts || !g->choices) {
        prompts_free(prompts, g->api.n_prompts);
        g->n_choices = 0;
        return false;
    }
    bool ok = true;
    for (uint32_t i = 0; i < g->api.n_prompts; i++) g->prompts[i].tokens = prompts[i];
    for (uint32_t i = 0; i < g->api.n_prompts; i++) ok = ok && prompt_part_open(&g->prompts[i], g);
    for (uint32_t i = 0; i < g->n_choices; i++) choice_open(&g->choices[i], g, i);
    g->n_incomplete = g->n_choices;
    return ok;
}

struct generation *generation_open(struct server *s, struct http_reply *reply, const struct http_request *q,
                                   struct api_request *api, struct prompt_tokens *prompts, struct err *e) {
    struct generation *g = calloc(1, sizeof *g);
    if (!g) {
        prompts_free(prompts, api->n_prompts);
        api_request_free(api);
        api_no_memory(e);
        return NULL;
    }
    g->server = s;
    g->salt = salt_of(&s->salt, q->key_index, api->cache_salt, api->n_cache_salt);
    api_request_drop_doc(api);
    g->api = *api;
    /* 48 bits: exact in every JSON reader. */
    if (!g->api.has_seed) g->api.sampling.seed = random_u64() >> 16;
    g->received_ns = q->received_ns;
    g->created = (int64_t)time(NULL);
    g->status = 200;
    memccpy(g->id, q->id, 0, sizeof g->id - 1);
    random_id(g->reply_id, sizeof g->reply_id, api->endpoint == API_CHAT ? "chatcmpl-" : "cmpl-", 16);
    reply_head_write(g);
    if (!parts_open(g, prompts) || g->head.failed) {
        generation_close(g);
        api_no_memory(e);
        return NULL;
    }
    g->reply = reply;
    http_reply_on_gone(reply, on_gone, g);
    return g;
}

void generation_close(struct generation *g) {
    ASSERT(!g->reply && g->n_open == 0);
    for (uint32_t i = 0; i < g->n_choices; i++) choice_free(&g->choices[i]);
    for (uint32_t i = 0; g->prompts && i < g->api.n_prompts; i++) prompt_part_free(&g->prompts[i]);
    strbuf_free(&g->head);
    strbuf_free(&g->out);
    api_request_free(&g->api);
    free(g);
}

struct generation_usage generation_usage(const struct generation *g) {
    struct generation_usage u = {0};
    for (uint32_t i = 0; i < g->api.n_prompts; i++) {
        u.prompt += g->prompts[i].tokens.n;
        u.cached += g->prompts[i].n_cached;
    }
    for (uint32_t i = 0; i < g->n_choices; i++) u.completion += g->choices[i].n_tokens;
    return u;
}

static void cancel_open(struct generation *g) {
    for (uint32_t i = 0; i < g->n_choices; i++)
        if (g->choices[i].open && !g->choices[i].finish_reason)
            engine_cancel(g->server->engine, &g->choices[i].request);
}

static double ms_between(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* The reply handle has just been given back. */
static void answered(struct generation *g, const char *outcome) {
    g->reply = NULL;
    uint64_t now = time_now_ns();
    struct generation_usage u = generation_usage(g);
    stats_request_done(g->server, g, &u, now);
    log_info("api", g->id, "generation", LOG_STR("endpoint", g->api.endpoint == API_CHAT ? "chat" : "completions"),
             LOG_STR("outcome", outcome), LOG_I64("status", g->status), LOG_BOOL("stream", g->api.stream),
             LOG_U64("choices", g->n_choices), LOG_U64("prompt_tokens", u.prompt), LOG_U64("cached_tokens", u.cached),
             LOG_U64("completion_tokens", u.completion),
             LOG_F64("queue_ms", g->started_ns ? ms_between(g->submitted_ns, g->started_ns) : 0),
             LOG_F64("ttft_ms", g->first_token_ns ? ms_between(g->received_ns, g->first_token_ns) : 0),
             LOG_F64("total_ms", ms_between(g->received_ns, now)));
}

void generation_fail(struct generation *g, const struct err *e) {
    if (!g->reply) return;
    cancel_open(g);
    g->status = err_info(e->code)->http_status;
    if (g->began) {
        strbuf_clear(&g->out);
        strbuf_add_str(&g->out, "data: ");
        json_add_err(&g->out, e);
        strbuf_add_str(&g->out, "\n\n");
        if (!g->out.failed) http_reply_write(g->reply, g->out.data, g->out.count);
        http_reply_abort(g->reply);
    } else {
        http_reply_err(g->reply, e);
    }
    answered(g, err_info(e->code)->name);
}

void generation_drop(struct generation *g) {
    if (!g->reply) return;
    cancel_open(g);
    g->status = 499; /* as others log it: the client closed the request */
    http_reply_abort(g->reply);
    answered(g, "GONE");
}

/* Prompts are kept only where the reply shows them; the engine has its own copy. */
static void prompts_release(struct generation *g) {
    if (g->api.return_token_ids || g->api.echo || g->api.prompt_logprobs >= 0) return;
    for (uint32_t i = 0; i < g->api.n_prompts; i++) {
        free(g->prompts[i].tokens.ids);
        g->prompts[i].tokens.ids = NULL;
    }
}

void generation_submit(struct generation *g) {
    struct err e;
    g->submitted_ns = time_now_ns();
    for (uint32_t i = 0; i < g->n_choices; i++) {
        struct choice *c = &g->choices[i];
        if (!engine_submit(g->server->engine, &c->request, &e)) {
            generation_fail(g, &e);
            break;
        }
        c->open = true;
        g->n_open++;
    }
    prompts_release(g);
}

static void no_memory(struct generation *g) {
    struct err e;
    api_no_memory(&e);
    generation_fail(g, &e);
}

static void finish_event(struct generation *g, struct choice *c, const struct engine_event *ev) {
    struct err e;
    if (ev->finish == FINISH_CANCEL) {
        err_set(&e, ERR_OVERLOADED, "The server is stopping; the request can be sent again.");
        generation_fail(g, &e);
    } else if (c->prompt->waits && c->index % (uint32_t)g->api.n == 0) {
        err_set(&e, ERR_INTERNAL, "The log-probabilities of the prompt are incomplete.");
        generation_fail(g, &e);
    } else {
        choice_finish(c, ev->finish, ev->stop_token);
    }
}

void generation_event(struct generation *g, struct choice *c, struct engine_event *ev) {
    bool last = ev->kind == EVENT_FINISH || ev->kind == EVENT_FAIL;
    bool first_of_prompt = c->index % (uint32_t)g->api.n == 0;
    bool counts = g->reply && !c->finish_reason; /* else an event that was on its way when the choice ended */
    struct err e;
    if (last) {
        ASSERT(c->open);
        c->open = false;
        g->n_open--;
    }
    if (!counts) return;
    switch (ev->kind) {
    case EVENT_STARTED:
        if (first_of_prompt) c->prompt->n_cached = ev->n_cached;
        if (!g->started_ns) g->started_ns = ev->time_ns;
        stats_choice_started(g->server, g, ev);
        break;
    case EVENT_PROMPT_LOGPROBS:
        if (first_of_prompt && ev->logprobs) prompt_part_scored(c->prompt, g, ev);
        break;
    case EVENT_TOKEN:
        stats_choice_token(g->server, g, c, ev);
        if (!g->first_token_ns) g->first_token_ns = ev->time_ns;
        c->token_ns = ev->time_ns;
        choice_token(c, ev);
        break;
    case EVENT_FINISH:
        finish_event(g, c, ev);
        break;
    case EVENT_FAIL:
        err_set(&e, ev->fail, "%s", err_info(ev->fail)->text);
        generation_fail(g, &e);
        break;
    }
}

static bool memory_failed(const struct generation *g) {
    bool failed = g->out.failed;
    for (uint32_t i = 0; i < g->n_choices; i++) {
        const struct choice *c = &g->choices[i];
        failed |= c->text.failed || c->token_ids.failed || c->chat_logprobs.failed;
        failed |= logprobs_legacy_failed(&c->legacy);
    }
    for (uint32_t i = 0; i < g->api.n_prompts; i++) {
        const struct prompt_part *p = &g->prompts[i];
        failed |= p->echo.failed || p->logprobs.failed || logprobs_legacy_failed(&p->legacy);
    }
    return failed;
}

static void stream_flush(struct generation *g) {
    bool complete = g->n_incomplete == 0;
    for (uint32_t i = 0; i < g->n_choices; i++) reply_chunk_write(g, &g->choices[i]);
    if (complete) reply_stream_end_write(g);
    if (memory_failed(g)) {
        no_memory(g);
        return;
    }
    if (g->out.count > 0 && !http_reply_write(g->reply, g->out.data, g->out.count)) {
        generation_drop(g);
        return;
    }
    strbuf_clear(&g->out);
    if (!complete) return;
    http_reply_end(g->reply);
    answered(g, "OK");
}

void generation_flush(struct generation *g) {
    if (!g->reply || !g->started_ns) return;
    if (g->api.stream) {
        if (!g->began && !http_reply_begin(g->reply, 200, HTTP_SSE, HTTP_KEEPALIVE_COMMENTS)) {
            generation_drop(g);
            return;
        }
        g->began = true;
        stream_flush(g);
    } else if (memory_failed(g)) {
        no_memory(g);
    } else if (g->n_incomplete == 0) {
        reply_body_write(g);
        http_reply_send_buf(g->reply, 200, HTTP_JSON, &g->out);
        answered(g, "OK");
    }
}
