/* progress.c - loading as a person sees it, on stderr: a bar on a terminal, then the memory plan and one ready line.
 *
 * Without a terminal the bar is left out; the plan is a log line. Called by the loading thread only.
 */
#include "server/server.h"

#include "common/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void progress_open(struct server *s) {
    s->on_terminal = isatty(STDERR_FILENO) == 1;
    if (s->on_terminal) fprintf(stderr, "choird %s: loading %s\n", CHOIR_VERSION, s->model.names[0]);
}

void progress_step(void *server, const char *stage, double fraction) {
    enum { WIDTH = 30 };
    struct server *s = server;
    atomic_store(&s->load_stage, stage);
    if (!s->on_terminal) return;
    char bar[WIDTH + 1];
    double f = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction;
    int percent = (int)(f * 100), full = (int)(f * WIDTH);
    if (percent == s->shown_percent && stage == s->shown_stage) return;
    s->shown_percent = percent;
    s->shown_stage = stage;
    memset(bar, '#', (size_t)full);
    memset(bar + full, '.', (size_t)(WIDTH - full));
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r\033[K  [%s] %3d%% %s", bar, percent, stage);
    fflush(stderr);
}

static void bytes_text(char *out, size_t out_bytes, uint64_t n) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)n;
    size_t u = 0;
    while (x >= 1024 && u + 1 < ARRAY_COUNT(units)) x /= 1024, u++;
    snprintf(out, out_bytes, u ? "%.1f %s" : "%.0f %s", x, units[u]);
}

static void plan_print(const struct engine_info *i) {
    char weights[24], kv[24], work[24], sum[24];
    bytes_text(weights, sizeof weights, i->weight_bytes);
    bytes_text(kv, sizeof kv, i->kv_bytes);
    bytes_text(work, sizeof work, i->work_bytes);
    bytes_text(sum, sizeof sum, i->weight_bytes + i->kv_bytes + i->work_bytes);
    fprintf(stderr, "\r\033[K  model    %s, %.0f M parameters, %u layers, vocabulary %u, context %u\n", i->arch,
            (double)i->n_params / 1e6, i->n_layers, i->n_vocab, i->max_model_len);
    fprintf(stderr, "  memory   weights %s + KV %s (%llu tokens) + work %s = %s\n", weights, kv,
            (unsigned long long)i->kv_tokens_max, work, sum);
    fprintf(stderr, "  compute  %u threads, %s, steps of up to %u tokens and %u sequences\n", i->n_threads, i->isa,
            i->max_batch_tokens, i->max_seqs);
}

void progress_ready(struct server *s) {
    const struct engine_info *i = engine_info(s->engine);
    const char *host = s->options.host;
    bool v6 = strchr(host, ':') != NULL;
    char url[320];
    snprintf(url, sizeof url, v6 ? "http://[%s]:%u" : "http://%s:%u", host, http_server_port(s->http));
    double load_s = i->load_s[0] + i->load_s[1] + i->load_s[2] + i->load_s[3];
    if (s->on_terminal) {
        plan_print(i);
        fprintf(stderr, "ready: %s serves %s (loaded in %.2f s)\n", url, s->model.names[0], load_s);
        return;
    }
    log_info("server", NULL, "memory plan", LOG_U64("weight_bytes", i->weight_bytes), LOG_U64("kv_bytes", i->kv_bytes),
             LOG_U64("work_bytes", i->work_bytes), LOG_U64("kv_tokens", i->kv_tokens_max),
             LOG_U64("max_model_len", i->max_model_len), LOG_U64("threads", i->n_threads), LOG_STR("isa", i->isa));
    log_info("server", NULL, "ready", LOG_STR("url", url), LOG_STR("model", s->model.names[0]),
             LOG_STR("numerics_id", i->numerics_id), LOG_F64("load_seconds", load_s));
}
