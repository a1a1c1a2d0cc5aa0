/* stats.c - what /metrics reports: request histograms as they happen, engine totals when they are read. */
#include "server/generation.h"
#include "server/server.h"

#include <stdio.h>

static const struct metric_info infos[] = {
#define METRIC METRIC_INFO
#include "server/metrics.def"
#undef METRIC
};

static double seconds(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

void stats_open(struct server *s) {
    struct metric_label label = {.name = "model_name", .value = s->model.names[0]};
    s->metrics = metrics_open(infos, ARRAY_COUNT(infos), &label, 1);
    ASSERT(s->metrics); /* at start only */
}

void stats_close(struct server *s) {
    metrics_close(s->metrics);
}

void stats_loaded(struct server *s) {
    static const char *const phases[] = {"open", "tokenizer", "weights", "memory"};
    const struct engine_info *info = engine_info(s->engine);
    for (size_t i = 0; i < ARRAY_COUNT(phases); i++)
        metrics_set_labels(s->metrics, METRIC_load_seconds, METRIC_VALUES(phases[i]), info->load_s[i]);
    char block[24], blocks[24];
    snprintf(block, sizeof block, "%d", KV_PAGE_TOKENS);
    snprintf(blocks, sizeof blocks, "%llu", (unsigned long long)(info->kv_tokens_max / KV_PAGE_TOKENS));
    const char *reuse = s->options.prefix_cache ? "True" : "False"; /* as vLLM spells them */
    metrics_set_labels(s->metrics, METRIC_cache_config, METRIC_VALUES(block, blocks, reuse, s->options.kv_type), 1);
    metrics_set_labels(s->metrics, METRIC_build_info, METRIC_VALUES(CHOIR_VERSION, info->isa, info->numerics_id), 1);
}

void stats_choice_started(struct server *s, const struct generation *g, const struct engine_event *ev) {
    metrics_observe(s->metrics, METRIC_queue_time, seconds(g->submitted_ns, ev->time_ns));
}

void stats_choice_token(struct server *s, const struct generation *g, const struct choice *c,
                        const struct engine_event *ev) {
    if (c->n_tokens == 0) {
        metrics_observe(s->metrics, METRIC_ttft, seconds(g->received_ns, ev->time_ns));
    } else {
        metrics_observe(s->metrics, METRIC_itl, seconds(c->token_ns, ev->time_ns));
    }
}

void stats_request_done(struct server *s, const struct generation *g, const struct generation_usage *u,
                        uint64_t now_ns) {
    if (g->status != 200) {
        char status[8];
        snprintf(status, sizeof status, "%d", g->status);
        metrics_add_labels(s->metrics, METRIC_request_failed, METRIC_VALUES(status), 1);
        return;
    }
    for (uint32_t i = 0; i < g->n_choices; i++)
        metrics_add_labels(s->metrics, METRIC_request_success, METRIC_VALUES(g->choices[i].finish_reason), 1);
    metrics_observe(s->metrics, METRIC_e2e, seconds(g->received_ns, now_ns));
    metrics_observe(s->metrics, METRIC_request_prompt_tokens, (double)u->prompt);
    metrics_observe(s->metrics, METRIC_request_generation_tokens, (double)u->completion);
}

void stats_http_done(void *server, const struct http_done *d) {
    struct server *s = server;
    char status[12];
    snprintf(status, sizeof status, "%d", d->status);
    metrics_add_labels(s->metrics, METRIC_http_requests, METRIC_VALUES(d->route, status), 1);
}

static void engine_totals(struct server *s) {
    struct metrics *m = s->metrics;
    struct engine_stats es;
    engine_stats_get(s->engine, &es);
    metrics_set(m, METRIC_requests_running, es.n_running);
    metrics_set(m, METRIC_requests_waiting, es.n_waiting);
    metrics_set(m, METRIC_tokens_waiting, (double)es.waiting_tokens);
    metrics_set(m, METRIC_kv_usage, es.kv_pages_total ? (double)es.kv_pages_used / es.kv_pages_total : 0);
    metrics_set_labels(m, METRIC_kv_pages, METRIC_VALUES("used"), es.kv_pages_used);
    metrics_set_labels(m, METRIC_kv_pages, METRIC_VALUES("cached"), es.kv_pages_cached);
    metrics_set_labels(m, METRIC_kv_pages, METRIC_VALUES("free"), es.kv_pages_free);
    metrics_set_labels(m, METRIC_kv_pages, METRIC_VALUES("total"), es.kv_pages_total);
    metrics_set(m, METRIC_prefix_queries, (double)es.prefix_queries_tokens);
    metrics_set(m, METRIC_prefix_hits, (double)es.prefix_hits_tokens);
    metrics_set(m, METRIC_kv_evictions, (double)es.kv_evictions);
    metrics_set(m, METRIC_preemptions, (double)es.preemptions);
    metrics_set(m, METRIC_prompt_tokens, (double)es.prompt_tokens);
    metrics_set(m, METRIC_generation_tokens, (double)es.generated_tokens);
    metrics_set(m, METRIC_steps, (double)es.steps);
    metrics_set(m, METRIC_busy_seconds, (double)es.busy_ns / 1e9);
    metrics_set(m, METRIC_host_seconds, (double)es.host_ns / 1e9);
    metrics_set(m, METRIC_step_max, (double)es.step_ns_max / 1e9);
}

void stats_render(struct server *s, const struct http_server *http, struct strbuf *out) {
    enum server_state state = server_state(s);
    metrics_set(s->metrics, METRIC_ready, state == SERVER_READY ? 1 : 0);
    if (state != SERVER_LOADING) engine_totals(s);
    struct http_server_stats hs;
    http_server_stats(http, &hs);
    metrics_set(s->metrics, METRIC_http_connections, hs.connections);
    metrics_render(s->metrics, out);
}
