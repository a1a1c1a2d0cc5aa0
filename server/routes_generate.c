/* routes_generate.c - /v1/completions and /v1/chat/completions: body -> checked request -> tokens -> output thread. */
#include "server/generation.h"
#include "server/server.h"

static bool choices_fit(const struct server *s, const struct api_request *api, struct err *e) {
    if (api->n_prompts * (uint32_t)api->n <= s->options.queue_requests) return true;
    return err_set_param(e, ERR_BAD_VALUE, "n", "The request has more choices than this server lets wait (%u).",
                         s->options.queue_requests);
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
