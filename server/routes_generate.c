/* routes_generate.c - /v1/completions and /v1/chat/completions: body -> checked request -> tokens -> output thread. */
#include "server/generation.h"
#include "server/server.h"

static bool choices_fit(const struct server *s, const struct api_request *api, struct err *e) {
    if (api->n_prompts * (uint32_t)api->n <= s->options.queue_requests) return true;
    return err_set_param(e, ERR_BAD_VALUE, "n", "The request has more choices than this server lets wait (%u).",
                         s->options.queue_requests);
}

/* The engine's queue takes any one prompt when it is empty, and several only together; choices share their prompt. */
static bool prompts_fit(const struct server *s, const struct api_request *api, const struct prompt_tokens *prompts,
                        struct err *e) {
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < api->n_prompts; i++) n_tokens += prompts[i].n;
    if (api->n_prompts == 1 || n_tokens <= s->options.queue_tokens) return true;
    return err_set_param(e, ERR_BAD_VALUE, "prompt",
                         "The prompts have %llu tokens together, more than this server lets wait (%llu).",
                         (unsigned long long)n_tokens, (unsigned long long)s->options.queue_tokens);
}

/* The generation, with the reply registered; NULL: *e. */
static struct generation *request_open(struct server *s, struct http_reply *r, const struct http_request *q,
                                       enum api_endpoint endpoint, struct err *e) {
    struct api_request api;
    struct prompt_tokens prompts[PROMPTS_MAX];
    if (!server_takes_requests(s, e)) return NULL;
    if (!api_parse(&api, endpoint, &s->model, q->body, q->body_bytes, e)) return NULL;
    uint32_t max_model_len = engine_info(s->engine)->max_model_len;
    if (!choices_fit(s, &api, e) || !prompts_encode(&api, engine_tokenizer(s->engine), max_model_len, prompts, e)) {
        api_request_free(&api);
        return NULL;
    }
    if (!prompts_fit(s, &api, prompts, e)) {
        prompts_free(prompts, api.n_prompts);
        api_request_free(&api);
        return NULL;
    }
    return generation_open(s, r, q, &api, prompts, e);
}

static void generate(struct server *s, struct http_reply *r, const struct http_request *q, enum api_endpoint endpoint) {
    struct err e;
    struct generation *g = request_open(s, r, q, endpoint, &e);
    if (!g) {
        http_reply_err(r, &e);
    } else if (!output_push(&s->output, g)) {
        err_set(&e, ERR_OVERLOADED, "The server is stopping; send the request to another one.");
        generation_fail(g, &e);
        generation_close(g);
    }
}

void route_completions(struct http_reply *r, const struct http_request *q, void *arg) {
    generate(arg, r, q, API_COMPLETIONS);
}

void route_chat(struct http_reply *r, const struct http_request *q, void *arg) {
    generate(arg, r, q, API_CHAT);
}
