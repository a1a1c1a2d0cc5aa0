/* routes.c - the table of paths, and the small answers: models, health, readiness, version, metrics.
 *
 * Handlers run on the HTTP threads. Without a key only /health and /ready are open: all else may tell about a tenant.
 */
#include "server/server.h"

#include "common/json.h"

#include <string.h>

const struct http_route server_routes[] = {
    {"POST", "/v1/completions", route_completions, 0},
    {"POST", "/v1/chat/completions", route_chat, 0},
    {"GET", "/v1/models", route_models, 0},
    {"GET", "/v1/models/{*}", route_model, 0},
    {"POST", "/tokenize", route_tokenize, 0},
    {"POST", "/detokenize", route_detokenize, 0},
    {"GET", "/version", route_version, 0},
    {"GET", "/metrics", route_metrics, HTTP_QUIET},
    {"GET", "/health", route_health, HTTP_OPEN | HTTP_VITAL | HTTP_QUIET},
    {"GET", "/ready", route_ready, HTTP_OPEN | HTTP_VITAL | HTTP_QUIET},
};
const size_t server_n_routes = ARRAY_COUNT(server_routes);

bool server_is_stalled(struct server *s) {
    struct engine_stats es;
    engine_stats_get(s->engine, &es);
    uint64_t now = time_now_ns();
    return !es.idle && now > es.heartbeat_ns && now - es.heartbeat_ns > s->options.stall_timeout;
}

bool server_takes_requests(struct server *s, struct err *e) {
    switch (server_state(s)) {
    case SERVER_LOADING:
        return err_set(e, ERR_OVERLOADED, "The model is being loaded; try again in a moment.");
    case SERVER_DRAINING:
        return err_set(e, ERR_OVERLOADED, "The server is stopping; send the request to another one.");
    case SERVER_READY:
        break;
    }
    if (server_is_stalled(s))
        return err_set(e, ERR_OVERLOADED, "The engine does not answer; send the request to another server.");
    return true;
}

/* ---- health: is the process able to make progress? readiness: should requests be sent here? ---- */

static void status_send(struct http_reply *r, int status, const char *text) {
    struct strbuf b = {0};
    strbuf_add_str(&b, "{\"status\":");
    strbuf_add_json_str(&b, text);
    strbuf_add_char(&b, '}');
    if (status == 503) http_reply_header(r, "Retry-After", "1");
    http_reply_send_buf(r, status, HTTP_JSON, &b);
}

void route_health(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)q;
    struct server *s = arg;
    if (server_state(s) == SERVER_LOADING) {
        status_send(r, 503, "loading");
    } else if (server_is_stalled(s)) {
        status_send(r, 503, "stalled");
    } else {
        status_send(r, 200, "ok");
    }
}

void route_ready(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)q;
    struct server *s = arg;
    switch (server_state(s)) {
    case SERVER_LOADING:
        status_send(r, 503, atomic_load(&s->load_stage));
        break;
    case SERVER_DRAINING:
        status_send(r, 503, "draining");
        break;
    case SERVER_READY:
        if (server_is_stalled(s)) {
            status_send(r, 503, "stalled");
        } else {
            status_send(r, 200, "ready");
        }
        break;
    }
}

/* ---- what is served ---- */

static void model_write(struct server *s, struct strbuf *b, const char *name) {
    strbuf_add_str(b, "{\"id\":");
    strbuf_add_json_str(b, name);
    strbuf_printf(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"choir\",\"root\":", (long long)s->created);
    strbuf_add_json_str(b, s->model.names[0]);
    strbuf_add_str(b, ",\"parent\":null,\"max_model_len\":");
    if (server_state(s) == SERVER_LOADING) {
        strbuf_add_str(b, "null");
    } else {
        strbuf_add_u64(b, engine_info(s->engine)->max_model_len);
    }
    strbuf_add_char(b, '}');
}

void route_models(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)q;
    struct server *s = arg;
    struct strbuf b = {0};
    strbuf_add_str(&b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < s->model.n_names; i++) {
        if (i > 0) strbuf_add_char(&b, ',');
        model_write(s, &b, s->model.names[i]);
    }
    strbuf_add_str(&b, "]}");
    http_reply_send_buf(r, 200, HTTP_JSON, &b);
}

void route_model(struct http_reply *r, const struct http_request *q, void *arg) {
    struct server *s = arg;
    struct strbuf b = {0};
    struct err e;
    for (size_t i = 0; i < s->model.n_names; i++) {
        if (strcmp(s->model.names[i], q->params[0]) != 0) continue;
        model_write(s, &b, s->model.names[i]);
        http_reply_send_buf(r, 200, HTTP_JSON, &b);
        return;
    }
    err_set_param(&e, ERR_NO_MODEL, "model", "The model '%.128s' does not exist here.", q->params[0]);
    http_reply_err(r, &e);
}

void route_version(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)q;
    struct server *s = arg;
    struct strbuf b = {0};
    strbuf_add_str(&b, "{\"version\":\"" CHOIR_VERSION "\"");
    if (server_state(s) != SERVER_LOADING) {
        const struct engine_info *i = engine_info(s->engine);
        strbuf_add_str(&b, ",\"system_fingerprint\":");
        strbuf_add_json_str(&b, i->numerics_id);
        strbuf_add_str(&b, ",\"isa\":");
        strbuf_add_json_str(&b, i->isa);
    }
    strbuf_add_char(&b, '}');
    http_reply_send_buf(r, 200, HTTP_JSON, &b);
}

void route_metrics(struct http_reply *r, const struct http_request *q, void *arg) {
    struct strbuf b = {0};
    stats_render(arg, q->server, &b);
    http_reply_send_buf(r, 200, METRICS_CONTENT_TYPE, &b);
}
