/* choice.c - one choice: tokens become text, log-probabilities and a finish.
 *
 * Owner: the output thread. Invariants
 * 1. Nothing is added after finish_reason is set: tokens that the engine still sends are not counted.
 * 2. The end of `text` that may begin a stop string is never sent (stop_scan_held).
 * 3. n_chars counts every decoded code point, also those that a stop string cuts off, so that offsets of the tokens
 *    before it do not depend on it.
 */
#include "server/generation.h"
#include "server/api_int.h"
#include "server/server.h"

#include <stdlib.h>

static uint32_t code_points(const char *text, size_t n) {
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

static struct logprobs_style style_of(const struct generation *g, int n_top) {
    return (struct logprobs_style){.tokenizer = engine_tokenizer(g->server->engine),
                                   .n_top = n_top < 0 ? 0 : (uint32_t)n_top,
                                   .tokens_as_ids = g->api.tokens_as_ids};
}

/* Appends decoded text; true when a stop string is complete. */
static bool text_add(struct choice *c, const char *piece, size_t n) {
    const struct api_request *api = &c->generation->api;
    bool armed = c->n_tokens >= (uint32_t)api->min_tokens;
    struct stop_hit hit = stop_scan_feed(&c->scan, &api->stop, piece, n, armed);
    strbuf_add(&c->text, piece, hit.n_kept);
    c->n_chars += code_points(piece, n);
    if (hit.index < 0) return false;
    uint32_t n_stop = api->stop.strings[hit.index].n;
    if (!api->include_stop && !c->text.failed) {
        ASSERT(c->text.count >= n_stop); /* invariant 2 */
        c->text.count -= n_stop;
        c->text.data[c->text.count] = '\0';
    }
    c->stop_index = hit.index;
    return true;
}

static void complete(struct choice *c, const char *finish_reason) {
    c->finish_reason = finish_reason;
    c->generation->n_incomplete--;
}

void choice_token(struct choice *c, const struct engine_event *ev) {
    struct generation *g = c->generation;
    uint32_t offset = c->n_chars;
    c->n_tokens++;
    size_t n = 0;
    char *piece = detok_push(&c->detok, ev->token, &n);
    if (!piece) c->text.failed = true;
    bool stopped = piece && text_add(c, piece, n);
    free(piece);
    if (g->api.return_token_ids) {
        if (c->token_ids.count > 0) strbuf_add_char(&c->token_ids, ',');
        strbuf_add_i64(&c->token_ids, ev->token);
    }
    if (g->api.n_logprobs >= 0 && ev->logprobs) {
        struct logprobs_style style = style_of(g, g->api.n_logprobs);
        if (g->api.endpoint == API_CHAT) {
            logprobs_add_chat(&c->chat_logprobs, &style, ev->logprobs);
        } else {
            logprobs_add_legacy(&c->legacy, &style, ev->token, ev->logprobs, offset);
        }
    }
    if (stopped) {
        complete(c, "stop");
        engine_cancel(g->server->engine, &c->request);
    }
}

static bool names_stop_token(const struct api_request *api, int32_t id) {
    for (uint32_t i = 0; i < api->n_stop_ids; i++)
        if (api->stop_ids[i] == id) return true;
    return false;
}

void choice_finish(struct choice *c, enum finish_reason finish, int32_t stop_token) {
    size_t n = 0;
    char *rest = detok_flush(&c->detok, &n);
    if (rest) {
        strbuf_add(&c->text, rest, n);
    } else {
        c->text.failed = true;
    }
    free(rest);
    c->scan = (struct stop_scan){0}; /* nothing more can come: nothing is held back */
    if (stop_token >= 0 && names_stop_token(&c->generation->api, stop_token)) c->stop_token = stop_token;
    complete(c, finish == FINISH_LENGTH ? "length" : "stop");
}

void choice_open(struct choice *c, struct generation *g, uint32_t index) {
    const struct api_request *api = &g->api;
    uint32_t n = (uint32_t)api->n, i = index % n;
    struct prompt_part *p = &g->prompts[index / n];
    const struct tokenizer *t = engine_tokenizer(g->server->engine);
    *c = (struct choice){.generation = g, .prompt = p, .index = index, .stop_index = -1, .stop_token = -1};
    const uint64_t timeout_ns = g->server->options.request_timeout;
    detok_init(&c->detok, t, !api->skip_special_tokens, false);
    c->n_chars = p->n_chars;
    c->request = (struct engine_request){
        .prompt = p->tokens.ids,
        .n_prompt = p->tokens.n,
        .max_tokens = prompt_max_tokens(api, p->tokens.n, engine_info(g->server->engine)->max_model_len),
        .min_tokens = (uint32_t)api->min_tokens,
        .ignore_eos = api->ignore_eos,
        .stop_ids = api->stop_ids,
        .n_stop_ids = api->n_stop_ids,
        .sampling = api->sampling,
        .n_logprobs = api->n_logprobs,
        .n_prompt_logprobs = -1,
        .priority = api->priority,
        .salt = g->salt,
        .deadline_ns = timeout_ns ? g->received_ns + timeout_ns : 0,
        .leader = i > 0 ? &c[-(ptrdiff_t)i].request : NULL,
        .user = c,
    };
    c->request.sampling.seed = api->sampling.seed + i;
    if (i == 0) {
        c->request.n_prompt_logprobs = api->prompt_logprobs;
        if (api->echo && api->n_logprobs > api->prompt_logprobs) c->request.n_prompt_logprobs = api->n_logprobs;
        /* The engine runs a request for nothing else when no token is wanted. */
        if (c->request.max_tokens == 0 && c->request.n_prompt_logprobs < 0) c->request.n_prompt_logprobs = 0;
        p->waits = c->request.n_prompt_logprobs >= 0 && p->tokens.n > 1;
    }
}

void choice_free(struct choice *c) {
    strbuf_free(&c->text);
    strbuf_free(&c->token_ids);
    strbuf_free(&c->chat_logprobs);
    logprobs_legacy_free(&c->legacy);
}

/* ---- the prompt, where the reply shows it ---- */

static bool echo_scored(const struct api_request *api) {
    return api->echo && api->n_logprobs >= 0;
}

static bool piece_add(struct strbuf *text, uint32_t *n_chars, char *piece, size_t n) {
    if (!piece) return false;
    if (text) strbuf_add(text, piece, n);
    *n_chars += code_points(piece, n);
    free(piece);
    return true;
}

/* The whole text of the echo, so that the offsets of what follows are known at once. */
static bool echo_decode(struct prompt_part *p, const struct detok *start) {
    struct detok d = *start;
    size_t n = 0;
    for (uint32_t pos = 0; pos < p->tokens.n; pos++) {
        char *piece = detok_push(&d, p->tokens.ids[pos], &n);
        if (!piece_add(&p->echo, &p->n_chars, piece, n)) return false;
    }
    char *rest = detok_flush(&d, &n);
    return piece_add(&p->echo, &p->n_chars, rest, n) && !p->echo.failed;
}

/* One position's log-probability (none at the first) and where its text begins. */
static void echo_score(struct prompt_part *p, struct generation *g, const struct sample_output *o) {
    int32_t id = p->tokens.ids[p->n_scored];
    struct logprobs_style style = style_of(g, g->api.n_logprobs);
    logprobs_add_legacy(&p->legacy, &style, id, o, p->n_scored_chars);
    size_t n = 0;
    char *piece = detok_push(&p->detok, id, &n);
    if (!piece_add(NULL, &p->n_scored_chars, piece, n)) p->echo.failed = true;
}

/* Before the choices are opened. */
bool prompt_part_open(struct prompt_part *p, struct generation *g) {
    const struct api_request *api = &g->api;
    if (api->prompt_logprobs >= 0) strbuf_add_str(&p->logprobs, "null");
    if (api->echo) {
        detok_init(&p->detok, engine_tokenizer(g->server->engine), !api->skip_special_tokens, true);
        if (!echo_decode(p, &p->detok)) return false;
        if (echo_scored(api)) echo_score(p, g, NULL);
    }
    p->n_scored = 1; /* the first position has nothing before it */
    return !p->echo.failed;
}

void prompt_part_scored(struct prompt_part *p, struct generation *g, const struct engine_event *ev) {
    struct logprobs_style style = style_of(g, g->api.prompt_logprobs);
    for (uint32_t k = 0; k < ev->n; k++) {
        if (ev->pos0 + k != p->n_scored || p->n_scored >= p->tokens.n) continue; /* seen before a preemption */
        if (g->api.prompt_logprobs >= 0) logprobs_add_prompt(&p->logprobs, &style, &ev->logprobs[k]);
        if (echo_scored(&g->api)) echo_score(p, g, &ev->logprobs[k]);
        p->n_scored++;
    }
    if (p->n_scored == p->tokens.n) p->waits = false;
}

void prompt_part_free(struct prompt_part *p) {
    free(p->tokens.ids);
    strbuf_free(&p->echo);
    strbuf_free(&p->logprobs);
    logprobs_legacy_free(&p->legacy);
}
