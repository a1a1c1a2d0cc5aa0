/* http_test_server.c - a server of nothing but test routes, for the Python clients beside it.
 *
 * Prints "port N" when it listens. SIGTERM drains (as a program would) and exits 0; SIGINT closes at once.
 * One worker thread answers whatever is not answered in place, at the pace that the query string asks for.
 */
#include "common/http_server.h"
#include "common/json.h"
#include "common/log.h"
#include "common/options.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct test_options {
#define OPTION_GROUP(title, help)
#define OPTION OPTION_FIELD
#include "http_test_options.def"
#undef OPTION
#undef OPTION_GROUP
};
static const struct option_row rows[] = {
#define OPTION_GROUP OPTION_GROUP_ROW
#define OPTION(...) OPTION_ROW(struct test_options, __VA_ARGS__)
#include "http_test_options.def"
#undef OPTION
#undef OPTION_GROUP
};

struct job {
    struct job *next;
    struct http_reply *reply;
    unsigned long left, gap_ms, bytes;
    char how[16]; /* send, end, abort, hang */
    uint64_t due_ns;
    bool begun, stream;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards jobs, quit */
static struct job *jobs;
static bool quit;
static atomic_uint gone_count, open_count;
static atomic_uint_fast64_t done_complete, done_cut;

static unsigned long query_number(const struct http_request *q, const char *name, unsigned long otherwise) {
    const char *at = q->query ? strstr(q->query, name) : NULL;
    return at && at[strlen(name)] == '=' ? strtoul(at + strlen(name) + 1, NULL, 10) : otherwise;
}

static void on_gone(void *arg) {
    atomic_fetch_add(&gone_count, 1);
    atomic_store((atomic_bool *)arg, true);
}

static void job_free(struct job *j) {
    atomic_fetch_sub(&open_count, 1);
    free(j);
}

/* Does what is due; true when the job is over. */
static bool job_step(struct job *j, uint64_t now) {
    if (http_reply_is_gone(j->reply)) {
        http_reply_abort(j->reply);
        return true;
    }
    if (now < j->due_ns) return false;
    j->due_ns = now + j->gap_ms * 1000000u;
    if (!j->stream) {
        if (j->left-- > 0) return false;
        http_reply_send(j->reply, 200, HTTP_JSON, "{\"late\":true}", 13);
        return true;
    }
    if (!j->begun) {
        http_reply_header(j->reply, "X-Test", "stream");
        j->begun = true;
        http_reply_begin(j->reply, 200, HTTP_SSE, HTTP_KEEPALIVE_COMMENTS);
        return false;
    }
    if (j->left > 0) {
        struct strbuf b = {0};
        strbuf_printf(&b, "data: %lu ", j->left--);
        for (unsigned long i = 0; i < j->bytes; i++) strbuf_add_char(&b, 'x');
        strbuf_add_str(&b, "\n\n");
        http_reply_write(j->reply, b.data, b.count);
        strbuf_free(&b);
        return false;
    }
    if (strcmp(j->how, "hang") == 0) return false;
    if (strcmp(j->how, "abort") == 0) {
        http_reply_abort(j->reply);
    } else {
        http_reply_write(j->reply, "data: [DONE]\n\n", 14);
        http_reply_end(j->reply);
    }
    return true;
}

static void *worker(void *arg) {
    (void)arg;
    for (;;) {
        const struct timespec pause = {.tv_nsec = 2000000};
        pthread_mutex_lock(&lock);
        struct job *mine = jobs, *keep = NULL;
        jobs = NULL;
        const bool stop = quit;
        pthread_mutex_unlock(&lock);
        const uint64_t now = time_now_ns();
        while (mine) {
            struct job *j = mine;
            mine = j->next;
            if (job_step(j, now)) {
                job_free(j);
            } else {
                j->next = keep;
                keep = j;
            }
        }
        pthread_mutex_lock(&lock);
        const bool idle = !keep && !jobs;
        while (keep) {
            struct job *j = keep;
            keep = j->next;
            j->next = jobs;
            jobs = j;
        }
        pthread_mutex_unlock(&lock);
        if (stop && idle) return NULL;
        nanosleep(&pause, NULL);
    }
}

static void job_start(struct http_reply *r, const struct http_request *q, bool stream) {
    static atomic_bool last_gone;
    struct job *j = calloc(1, sizeof *j);
    *j = (struct job){.reply = r, .stream = stream};
    j->left = query_number(q, "n", 3);
    j->gap_ms = query_number(q, "gap", 1);
    j->bytes = query_number(q, "bytes", 1);
    const char *how = http_request_header(q, "X-How");
    snprintf(j->how, sizeof j->how, "%s", how ? how : "end");
    atomic_fetch_add(&open_count, 1);
    http_reply_on_gone(r, on_gone, &last_gone);
    pthread_mutex_lock(&lock);
    j->next = jobs;
    jobs = j;
    pthread_mutex_unlock(&lock);
}

static void on_stream(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)arg;
    job_start(r, q, true);
}

static void on_late(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)arg;
    job_start(r, q, false);
}

/* Answers at once, with what was understood of the request. */
static void on_echo(struct http_reply *r, const struct http_request *q, void *arg) {
    struct strbuf b = {0};
    (void)arg;
    strbuf_add_str(&b, "{\"method\":");
    strbuf_add_json_str(&b, q->method);
    strbuf_add_str(&b, ",\"path\":");
    strbuf_add_json_str(&b, q->path);
    strbuf_add_str(&b, ",\"query\":");
    strbuf_add_json_str(&b, q->query);
    strbuf_add_str(&b, ",\"params\":[");
    for (int i = 0; i < HTTP_PARAMS_MAX && q->params[i]; i++) {
        if (i > 0) strbuf_add_char(&b, ',');
        strbuf_add_json_str(&b, q->params[i]);
    }
    strbuf_printf(&b, "],\"bytes\":%zu,\"body\":", q->body_bytes);
    strbuf_add_json(&b, q->body, size_min(q->body_bytes, 100));
    strbuf_add_str(&b, ",\"client_id\":");
    strbuf_add_json_str(&b, q->client_id);
    strbuf_printf(&b, ",\"key\":%d}", q->key_index);
    http_reply_send_buf(r, 200, HTTP_JSON, &b);
}

static void on_big(struct http_reply *r, const struct http_request *q, void *arg) {
    struct strbuf b = {0};
    (void)arg;
    for (unsigned long i = query_number(q, "bytes", 1000); i > 0; i--) strbuf_add_char(&b, 'y');
    http_reply_send_buf(r, 200, "text/plain", &b);
}

static void on_json(struct http_reply *r, const struct http_request *q, void *arg) {
    struct err e;
    (void)arg;
    json_t *doc = json_parse(q->body, q->body_bytes, NULL, &e);
    if (doc) {
        json_decref(doc);
        http_reply_send(r, 200, HTTP_JSON, "{}", 2);
    } else {
        http_reply_err(r, &e);
    }
}

static void on_stats(struct http_reply *r, const struct http_request *q, void *arg) {
    struct http_server_stats s;
    struct strbuf b = {0};
    (void)arg;
    http_server_stats(q->server, &s);
    strbuf_printf(&b,
                  "{\"gone\":%u,\"open\":%u,\"connections\":%u,\"requests\":%u,\"body_bytes\":%llu,"
                  "\"reply_bytes\":%llu,\"timeouts\":%llu,\"complete\":%llu,\"cut\":%llu}",
                  atomic_load(&gone_count), atomic_load(&open_count), s.connections, s.requests,
                  (unsigned long long)s.body_bytes, (unsigned long long)s.reply_bytes, (unsigned long long)s.timeouts,
                  (unsigned long long)atomic_load(&done_complete), (unsigned long long)atomic_load(&done_cut));
    http_reply_send_buf(r, 200, HTTP_JSON, &b);
}

static void on_health(struct http_reply *r, const struct http_request *q, void *arg) {
    (void)q;
    (void)arg;
    http_reply_send(r, 200, HTTP_JSON, "{\"status\":\"ok\"}", 15);
}

static void on_error(struct http_reply *r, const struct http_request *q, void *arg) {
    struct err e;
    (void)arg;
    const unsigned long code = query_number(q, "code", ERR_INTERNAL);
    if (code < ERR_COUNT) {
        err_set_param(&e, (enum err_code)code, "field", "A message.");
    } else {
        err_set(&e, ERR_NO_ROUTE, "No such code.");
    }
    http_reply_err(r, &e);
}

static void on_done(void *arg, const struct http_done *d) {
    (void)arg;
    atomic_fetch_add(d->complete ? &done_complete : &done_cut, 1);
}

static const struct http_route routes[] = {
    {"GET", "/health", on_health, HTTP_OPEN | HTTP_VITAL | HTTP_QUIET},
    {"GET", "/stats", on_stats, HTTP_OPEN | HTTP_VITAL | HTTP_QUIET},
    {"GET", "/a", on_echo, 0},
    {"POST", "/a", on_echo, HTTP_ANY_TYPE},
    {"POST", "/echo", on_echo, 0},
    {"GET", "/models/{*}", on_echo, 0},
    {"GET", "/stores/{}/files/{}", on_echo, 0},
    {"POST", "/json", on_json, 0},
    {"GET", "/big", on_big, 0},
    {"GET", "/stream", on_stream, 0},
    {"POST", "/stream", on_stream, 0},
    {"GET", "/late", on_late, 0},
    {"POST", "/late", on_late, 0},
    {"GET", "/error", on_error, 0},
};

static struct http_server_options server_options(const struct test_options *o) {
    return (struct http_server_options){
        .host = o->host,
        .n_threads = o->threads,
        .connections_max = o->connections,
        .body_bytes_max = o->body,
        .body_bytes_total_max = o->body_total,
        .stream_buffer_bytes_max = o->stream_buffer,
        .header_timeout_ms = (uint32_t)(o->header_timeout / 1000000),
        .body_timeout_ms = (uint32_t)(o->body_timeout / 1000000),
        .idle_timeout_ms = (uint32_t)(o->idle_timeout / 1000000),
        .write_stall_ms = (uint32_t)(o->stall / 1000000),
        .drain_bytes_per_s_min = o->drain,
        .reply_bytes_total_max = o->reply_total,
        .keepalive_comment_ms = (uint32_t)(o->comment / 1000000),
        .api_keys = o->api_key.items,
        .n_api_keys = o->api_key.count,
        .cors_origins = o->cors.items,
        .n_cors_origins = o->cors.count,
        .allowed_hosts = o->allowed_host.items,
        .n_allowed_hosts = o->allowed_host.count,
        .routes = routes,
        .n_routes = ARRAY_COUNT(routes),
        .on_done = on_done,
    };
}

int main(int argc, char **argv) {
    static const struct options_spec spec = {.program = "http_test_server",
                                             .usage = "http_test_server [options]",
                                             .summary = "routes for tests of the HTTP server",
                                             .rows = rows,
                                             .n_rows = ARRAY_COUNT(rows)};
    struct test_options o;
    struct options_store store = {0};
    struct err e;
    pthread_t thread;
    sigset_t signals;
    int signal_number;
    const enum options_outcome outcome = options_parse(&spec, &o, &store, argc, argv);
    if (outcome != OPTIONS_RUN) {
        options_free(&store);
        return outcome == OPTIONS_WRONG;
    }
    struct log_options log = {0};
    log_level_parse(o.log_level, &log.level);
    log_open(&log);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    const struct http_server_options so = server_options(&o);
    struct http_server *server = http_server_open(&so, &e);
    if (!server) {
        fprintf(stderr, "%s\n", e.message);
        options_free(&store);
        return 1;
    }
    pthread_create(&thread, NULL, worker, NULL);
    printf("port %u\n", http_server_port(server));
    fflush(stdout);
    sigwait(&signals, &signal_number);
    const bool drained = signal_number == SIGTERM && http_server_drain(server, 5000);
    pthread_mutex_lock(&lock);
    quit = true;
    pthread_mutex_unlock(&lock);
    http_server_close(server);
    pthread_join(thread, NULL);
    options_free(&store);
    return signal_number == SIGTERM && !drained ? 3 : 0;
}
