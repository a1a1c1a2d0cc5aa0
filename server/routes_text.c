/* routes_text.c - /tokenize and /detokenize, in vLLM's shapes. Answered in place, on the HTTP threads. */
#include "server/server.h"

#include <stdlib.h>

/* Whether the tokenizer is there, and the request's fields. */
static bool text_request(struct server *s, const struct http_request *q, enum api_endpoint endpoint,
                         struct api_request *api, struct err *e) {
    if (server_state(s) == SERVER_LOADING) return server_takes_requests(s, e);
    return api_parse(api, endpoint, &s->model, q->body, q->body_bytes, e);
}

static void tokens_write(struct strbuf *b, const struct server *s, const int32_t *ids, size_t n) {
    strbuf_printf(b, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", n, engine_info(s->engine)->max_model_len);
    for (size_t i = 0; i < n; i++) {
        if (i > 0) strbuf_add_char(b, ',');
        strbuf_add_i64(b, ids[i]);
    }
    strbuf_add_char(b, ']');
}

static void token_strs_write(struct strbuf *b, const struct tokenizer *t, const int32_t *ids, size_t n) {
    strbuf_add_str(b, ",\"token_strs\":[");
    for (size_t i = 0; i < n; i++) {
        uint32_t n_bytes = 0;
        const char *bytes = tokenizer_bytes(t, ids[i], true, &n_bytes);
        if (i > 0) strbuf_add_char(b, ',');
        strbuf_add_json(b, bytes ? bytes : "", n_bytes);
    }
    strbuf_add_char(b, ']');
}

/* The text that is to be tokenized is short enough for an HTTP thread. */
static bool text_fits(const struct api_request *api, struct err *e) {
    size_t n = api->n_prompts ? api->prompts[0].n_text : 0;
    for (uint32_t i = 0; i < api->n_messages; i++) n += api->messages[i].n_content;
    if (n <= TOKENIZE_BYTES_MAX) return true;
    return err_set_param(e, ERR_BAD_VALUE, api->n_messages ? "messages" : "prompt",
                         "The text has %zu bytes; at most %d are tokenized at once.", n, TOKENIZE_BYTES_MAX);
}

static bool text_encode(const struct tokenizer *t, const struct api_request *api, size_t n_max, int32_t **ids,
                        size_t *n, struct err *e) {
    if (!text_fits(api, e)) return false;
    if (api->n_messages)
        return chat_encode(t, api->messages, api->n_messages, api->add_generation_prompt, n_max, ids, n, e);
    const unsigned flags = api->add_special_tokens ? TOKENIZE_ADD_SPECIAL : 0;
    return tokenizer_encode(t, api->prompts[0].text, api->prompts[0].n_text, flags, n_max, ids, n, e);
}

void route_tokenize(struct http_reply *r, const struct http_request *q, void *arg) {
    struct server *s = arg;
    struct api_request api;
    struct err e;
    if (!text_request(s, q, API_TOKENIZE, &api, &e)) {
        http_reply_err(r, &e);
        return;
    }
    const struct tokenizer *t = engine_tokenizer(s->engine);
    int32_t *ids = NULL;
    size_t n = 0, n_max = q->body_bytes * 4 + 64; /* a text has no more tokens than bytes, a message few besides */
    if (text_encode(t, &api, n_max, &ids, &n, &e)) {
        struct strbuf b = {0};
        tokens_write(&b, s, ids, n);
        if (api.return_token_strs) token_strs_write(&b, t, ids, n);
        strbuf_add_char(&b, '}');
        http_reply_send_buf(r, 200, HTTP_JSON, &b);
    } else {
        http_reply_err(r, &e);
    }
    free(ids);
    api_request_free(&api);
}

void route_detokenize(struct http_reply *r, const struct http_request *q, void *arg) {
    struct server *s = arg;
    struct api_request api;
    struct err e;
    if (!text_request(s, q, API_DETOKENIZE, &api, &e)) {
        http_reply_err(r, &e);
        return;
    }
    size_t n = 0;
    char *text = tokenizer_decode(engine_tokenizer(s->engine), api.tokens, api.n_tokens, true, &n);
    if (text) {
        struct strbuf b = {0};
        strbuf_add_str(&b, "{\"prompt\":");
        strbuf_add_json(&b, text, n);
        strbuf_add_char(&b, '}');
        http_reply_send_buf(r, 200, HTTP_JSON, &b);
    } else {
        err_set(&e, ERR_OVERLOADED, "There is no memory for this request now; try again later.");
        http_reply_err(r, &e);
    }
    free(text);
    api_request_free(&api);
}
