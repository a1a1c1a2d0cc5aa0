/* server.h - the state of one choird: its options, engine, names, metrics, and what its HTTP surface may say.
 *
 * The HTTP server listens before the model is loaded, so that probes get a true answer from the first moment:
 *
 *   LOADING --server_load--> READY --SIGTERM--> DRAINING --> (end)
 *
 * engine, model and output are set before READY is published and do not change after; who saw READY or
 * DRAINING (an acquire load) may use them.
 */
#ifndef CHOIR_SERVER_H
#define CHOIR_SERVER_H

#include <stdatomic.h>

#include "common/http_server.h"
#include "common/metrics.h"
#include "common/options.h"
#include "engine/engine.h"
#include "server/api.h"
#include "server/output.h"
#include "server/salt.h"

struct server_options {
#define OPTION_GROUP(title, help)
#define OPTION OPTION_FIELD
#include "server/options.def"
#undef OPTION
#undef OPTION_GROUP
};

enum {
#define METRIC METRIC_ENUM
#include "server/metrics.def"
#undef METRIC
    METRIC_COUNT
};

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

struct server {
    struct server_options options;
    struct api_model model;
    const char *names[MODEL_ALIASES_MAX];
    char name_default[MODEL_NAME_BYTES_MAX + 1];
    const char *api_keys[API_KEYS_MAX];
    size_t n_api_keys;
    char *api_key_text; /* of the key file */
    _Atomic(enum server_state) state;
    _Atomic(const char *) load_stage; /* for /ready while loading */
    struct engine *engine;
    struct output output;
    struct metrics *metrics;
    struct salt_key salt;
    struct http_server *http;
    int64_t created; /* seconds since 1970 */
    /* The loading thread's: what stderr shows. */
    bool on_terminal;
    int shown_percent;
    const char *shown_stage;
};

static inline enum server_state server_state(struct server *s) {
    return atomic_load_explicit(&s->state, memory_order_acquire);
}
/* The engine has been in one step for longer than --stall-timeout. */
bool server_is_stalled(struct server *s);
/* Why a request cannot be taken now (ERR_OVERLOADED); true: it can. */
bool server_takes_requests(struct server *s, struct err *e);

/* ---- routes.c ---- */
extern const struct http_route server_routes[];
extern const size_t server_n_routes;

/* ---- handlers by file ---- */
http_handler route_completions, route_chat;                                                      /* routes_generate.c */
http_handler route_tokenize, route_detokenize;                                                   /* routes_text.c */
http_handler route_models, route_model, route_health, route_ready, route_version, route_metrics; /* routes.c */

/* ---- stats.c: metrics ---- */
struct generation;
struct generation_usage;
struct choice;
void stats_open(struct server *s);
void stats_close(struct server *s);
void stats_loaded(struct server *s);
void stats_choice_started(struct server *s, const struct generation *g, const struct engine_event *ev);
void stats_choice_token(struct server *s, const struct generation *g, const struct choice *c,
                        const struct engine_event *ev);
void stats_request_done(struct server *s, const struct generation *g, const struct generation_usage *u,
                        uint64_t now_ns);
void stats_http_done(void *server, const struct http_done *d);
/* http: the request's, because handlers may run before s->http is set. */
void stats_render(struct server *s, const struct http_server *http, struct strbuf *out);

/* ---- lifecycle.c: load, run, drain ---- */
/* Listens, loads, serves until told to stop. The exit status. */
int server_run(struct server *s);

/* ---- config.c: options ---- */
extern const struct options_spec server_options_spec;
/* Names, keys and limits from the options; false with *e (cause and hint). */
bool server_configure(struct server *s, struct err *e);
void server_engine_options(const struct server *s, struct engine_options *o);
void server_http_options(struct server *s, struct http_server_options *o);

/* ---- progress.c: what a person at the terminal sees ---- */
void progress_open(struct server *s);
void progress_step(void *server, const char *stage, double fraction);
void progress_ready(struct server *s);

#endif
