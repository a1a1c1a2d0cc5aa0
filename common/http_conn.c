/* http_conn.c - libmicrohttpd's callbacks: one request from its first line to its completion (http_int.h).
 *
 * In the order in which the library calls for a request:
 *   on_target    the request line was read           -> a reply object; the raw target is copied before it is cut
 *   on_access    first call: the header is complete  -> check, route, decide                      STAGE_HEAD -> BODY
 *   on_access    per piece of the body               -> collect within the limits
 *   on_access    final call: the request is complete -> handler; then answer or suspend           -> WAIT or SEND
 *   on_access    again after a resume                -> answer                                    WAIT -> SEND
 *   on_completed the request is over, in whatever way
 *   on_log       the library is about to send an error page of its own (HTML): ours goes out instead
 *
 * An error before the handler takes one of two ways. If the request's framing is sound and its body small, the body
 * is swallowed and the error sent as an ordinary reply, so that the connection lives on. Otherwise the error is sent
 * past the library (http_conn_refuse), whose only other offer in that state is to close without a word.
 * Loop thread only.
 */
#include "common/http_int.h"
#include "common/json.h"
#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- errors past the library ---- */

static void add_line(void *arg, const char *name, const char *value) {
    strbuf_printf(arg, "%s: %s\r\n", name, value);
}

/* A complete reply: status line, headers, JSON body. r may be NULL. */
size_t http_error_bytes(struct http_server *s, struct http_reply *r, const struct err *e, struct strbuf *out) {
    const int status = err_info(e->code)->http_status;
    struct strbuf body = {0};
    char date[48];
    const time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc);
    json_add_err(&body, e);
    strbuf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n", status,
                  MHD_get_reason_phrase_for((unsigned)status), date, HTTP_JSON, body.count);
    if (r) {
        http_reply_headers(r, status, add_line, out);
    } else {
        add_line(out, "Server", s->o.server_name);
        if (status == 503) add_line(out, "Retry-After", "1");
    }
    strbuf_add_str(out, "Connection: close\r\n\r\n");
    if (!r || strcmp(r->method, "HEAD") != 0) strbuf_add(out, strbuf_cstr(&body), body.count);
    strbuf_free(&body);
    return out->failed ? 0 : out->count;
}

/* ---- on_target ---- */

static void *on_target(void *cls, const char *uri, struct MHD_Connection *mhd) {
    struct http_conn *c = cls;
    (void)mhd;
    c->calls++;
    if (c->doomed) return NULL;
    c->request = http_reply_new(c, uri ? uri : "");
    return c->request;
}

/* The target stays as it was sent: paths are matched raw. */
static size_t on_unescape(void *cls, struct MHD_Connection *mhd, char *s) {
    (void)cls;
    (void)mhd;
    return strlen(s);
}

/* ---- first call: the header ---- */

static enum MHD_Result add_field(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_bytes,
                                 const char *value, size_t value_bytes) {
    struct http_header_list *l = cls;
    (void)kind;
    l->fields[l->count++] = (struct http_field){name, value ? value : "", name_bytes, value ? value_bytes : 0};
    return MHD_YES;
}

static bool read_head(struct http_reply *r, const char *method, const char *version, struct err *e) {
    struct MHD_Connection *mhd = r->conn->mhd;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    const int count = MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, NULL, NULL);
    ASSERT(info && count >= 0);
    if (count > HTTP_FIELDS_MAX)
        return err_set(e, ERR_HEADER_TOO_BIG, "The request has more than %d header fields.", HTTP_FIELDS_MAX);
    r->headers.fields = calloc((size_t)count + 1, sizeof *r->headers.fields);
    /* decoded parameters are no longer than the target, plus a NUL each */
    r->params = malloc(strlen(r->target) + HTTP_PARAMS_MAX + 1);
    if (!r->headers.fields || !r->params) return err_set(e, ERR_OVERLOADED, "The server is out of memory.");
    MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, add_field, &r->headers);
    const struct http_head head = {.block = method,
                                   .block_bytes = info->header_size,
                                   .target = r->target,
                                   .method = method,
                                   .version = version,
                                   .headers = r->headers};
    return http_head_check(&head, &r->facts, e);
}

/* A client's own id is only ever echoed, and only when it can do no harm in a header or a log. */
static void take_client_id(struct http_reply *r) {
    const struct http_field *f = http_field_find(&r->headers, "X-Request-Id");
    if (!f || f->value_bytes == 0 || f->value_bytes > HTTP_CLIENT_ID_MAX) return;
    for (size_t i = 0; i < f->value_bytes; i++)
        if (f->value[i] <= ' ' || f->value[i] >= 0x7f) return;
    memcpy(r->client_id, f->value, f->value_bytes + 1);
    r->request.client_id = r->client_id;
}

static void fill_request(struct http_reply *r, const char *method) {
    struct http_request *q = &r->request;
    snprintf(r->method, sizeof r->method, "%s", method);
    char *mark = strchr(r->target, '?');
    if (mark) *mark = '\0';
    q->method = r->method;
    q->path = r->target;
    q->query = mark ? mark + 1 : NULL;
    q->peer = r->conn->peer;
    take_client_id(r);
}

static bool check_load(struct http_reply *r, struct err *e) {
    const struct http_server *s = r->server;
    if (r->match.route && (r->match.route->flags & HTTP_VITAL)) return true;
    if (atomic_load_explicit(&s->draining, memory_order_relaxed))
        return err_set(e, ERR_OVERLOADED, "The server is stopping; try again elsewhere or later.");
    if (r->conn->over)
        return err_set(e, ERR_OVERLOADED, "The server has as many connections as it takes (%u); try again later.",
                       s->o.connections_max);
    return true;
}

static enum MHD_Result refuse(struct http_reply *r, const struct err *e) {
    http_conn_refuse(r->conn, r, e);
    return MHD_NO;
}

static enum MHD_Result first_call(struct http_reply *r, const char *method, const char *version) {
    const struct http_server_options *o = &r->server->o;
    struct err e = {0};
    if (!read_head(r, method, version, &e)) return refuse(r, &e);
    fill_request(r, method);
    if (strlen(method) >= sizeof r->method) {
        err_set(&e, ERR_BAD_METHOD, "That method is not known.");
        return refuse(r, &e);
    }
    r->stage = STAGE_BODY;
    http_conn_phase(r->conn, PHASE_BODY);
    if (!http_route_request(r, &r->match, &e) || !check_load(r, &e)) {
        if (r->facts.chunked || r->facts.expects_continue || r->facts.content_length > HTTP_SWALLOW_BYTES_MAX)
            return refuse(r, &e);
        r->refusal = e;
        return MHD_YES;
    }
    if (r->facts.content_length > o->body_bytes_max) {
        err_set(&e, ERR_BODY_TOO_BIG, "The request body has %llu bytes; this server takes at most %llu.",
                (unsigned long long)r->facts.content_length, (unsigned long long)o->body_bytes_max);
        return refuse(r, &e);
    }
    return MHD_YES;
}

/* ---- the body ---- */

static bool body_grow(struct http_reply *r, size_t need, struct err *e) {
    struct http_server *s = r->server;
    size_t capacity = size_max(r->body_capacity * 2, 1024);
    if (r->facts.content_length > 0) capacity = size_min(capacity, (size_t)r->facts.content_length + 1);
    capacity = size_max(capacity, need);
    const size_t more = capacity - r->body_capacity;
    if (atomic_fetch_add_explicit(&s->body_bytes, more, memory_order_relaxed) + more > s->o.body_bytes_total_max) {
        atomic_fetch_sub_explicit(&s->body_bytes, more, memory_order_relaxed);
        return err_set(e, ERR_OVERLOADED, "The server holds as many request bodies as it takes; try again later.");
    }
    char *body = realloc(r->body, capacity);
    if (!body) {
        atomic_fetch_sub_explicit(&s->body_bytes, more, memory_order_relaxed);
        return err_set(e, ERR_OVERLOADED, "The server is out of memory for request bodies; try again later.");
    }
    r->body = body;
    r->body_capacity = capacity;
    return true;
}

static enum MHD_Result body_add(struct http_reply *r, const char *bytes, size_t n) {
    struct err e;
    if (r->refusal.code != ERR_NONE) return MHD_YES; /* swallowed */
    if (n > r->server->o.body_bytes_max - r->body_bytes) {
        err_set(&e, ERR_BODY_TOO_BIG, "The request body is larger than the %llu bytes that this server takes.",
                (unsigned long long)r->server->o.body_bytes_max);
        return refuse(r, &e);
    }
    if (r->body_bytes + n + 1 > r->body_capacity && !body_grow(r, r->body_bytes + n + 1, &e)) return refuse(r, &e);
    memcpy(r->body + r->body_bytes, bytes, n);
    r->body_bytes += n;
    r->body[r->body_bytes] = '\0';
    return MHD_YES;
}

/* ---- the complete request ---- */

static void take_handle(struct http_reply *r) {
    atomic_fetch_add(&r->refs, 1);
    pthread_mutex_lock(&r->server->idle_lock);
    r->server->handles++;
    pthread_mutex_unlock(&r->server->idle_lock);
    pthread_mutex_lock(&r->lock);
    r->handle_out = true;
    r->in_handler = true;
    pthread_mutex_unlock(&r->lock);
}

/* What a browser asks before it sends a request to another origin. The headers it wants to send are allowed if their
 * names are clean: the API reads none that a page must not set. */
static void reply_preflight(struct http_reply *r) {
    const char *wanted = http_request_header(&r->request, "Access-Control-Request-Headers");
    const char *clean =
        wanted && strlen(wanted) <= 1024 &&
                strspn(wanted, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_, ") == strlen(wanted)
            ? wanted
            : "authorization, content-type";
    http_reply_header(r, "Access-Control-Allow-Methods", r->match.allow);
    http_reply_header(r, "Access-Control-Allow-Headers", clean);
    http_reply_header(r, "Access-Control-Max-Age", "86400");
    http_reply_send(r, 204, "", "", 0);
}

static enum MHD_Result answer(struct http_reply *r) {
    const enum http_start start = http_reply_start(r);
    if (start == START_WAIT && r->conn->half_closed) { /* the FIN came with the request: nobody waits for the answer */
        r->conn->doomed = true;
        return MHD_YES;
    }
    return start == START_CLOSE ? MHD_NO : MHD_YES;
}

static enum MHD_Result dispatch(struct http_reply *r) {
    r->stage = STAGE_HANDLER;
    r->request.body = r->body ? r->body : "";
    r->request.body_bytes = r->body_bytes;
    take_handle(r);
    if (r->refusal.code != ERR_NONE) {
        http_reply_err(r, &r->refusal);
    } else if (r->match.preflight) {
        reply_preflight(r);
    } else {
        r->match.route->handler(r, &r->request, r->server->o.arg);
    }
    http_reply_body_free(r);
    return answer(r);
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_bytes, void **context) {
    struct http_conn *c = cls;
    struct http_reply *r = *context;
    (void)mhd;
    (void)url;
    c->calls++;
    if (c->doomed || !r) return MHD_NO;
    switch (r->stage) {
    case STAGE_HEAD:
        return first_call(r, method, version);
    case STAGE_BODY: {
        const size_t n = *upload_bytes;
        *upload_bytes = 0;
        return n > 0 ? body_add(r, upload, n) : dispatch(r);
    }
    case STAGE_WAIT:
        return answer(r);
    case STAGE_HANDLER:
    case STAGE_SEND:
        break;
    }
    return MHD_NO;
}

/* ---- the end ---- */

static void log_done(const struct http_reply *r, const struct http_done *d) {
    const bool quiet = r->match.route && (r->match.route->flags & HTTP_QUIET);
    const enum log_level level = quiet ? LOG_DEBUG : LOG_INFO;
    if (!log_enabled(level)) return;
    log_line(level, "http", r->id, d->complete ? "request" : "request cut",
             LOG_PAIRS(LOG_STR("method", r->method[0] ? r->method : NULL), LOG_STR("path", r->target),
                       LOG_I64("status", d->status), LOG_U64("in", d->bytes_in), LOG_U64("out", d->bytes_out),
                       LOG_F64("ms", (double)d->duration_ns / 1e6), LOG_STR("peer", r->conn->peer)));
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode how) {
    struct http_conn *c = cls;
    struct http_reply *r = *context;
    (void)mhd;
    if (!r) return;
    *context = NULL;
    c->request = NULL;
    const bool complete =
        (r->stage == STAGE_SEND && how == MHD_REQUEST_TERMINATED_COMPLETED_OK) || (c->doomed && r->status_sent > 0);
    if (!complete) {
        atomic_fetch_add_explicit(&r->server->gone, 1, memory_order_relaxed);
        http_reply_lose(r);
    }
    const struct http_done d = {.method = r->method,
                                .route = r->request.route,
                                .id = r->id,
                                .status = r->status_sent,
                                .complete = complete,
                                .bytes_in = r->body_bytes,
                                .bytes_out = r->bytes_out,
                                .duration_ns = time_now_ns() - r->request.received_ns};
    log_done(r, &d);
    if (r->server->o.on_done) r->server->o.on_done(r->server->o.arg, &d);
    http_conn_phase(c, PHASE_IDLE);
    http_reply_detach(r);
}

static void on_notify(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode what) {
    struct http_conn *c = cls;
    (void)context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        c->mhd = mhd;
    } else {
        c->closed = true; /* the socket is closed right after this returns */
        c->mhd = NULL;
    }
}

/* The library announces an error page of its own in its log, before it queues it; `status` is the announced code. */
static void refuse_as_library(struct http_conn *c, unsigned status) {
    struct err e;
    if (c->doomed || (c->request && c->request->stage > STAGE_BODY)) return;
    switch (status) {
    case 413:
        err_set(&e, ERR_BODY_TOO_BIG, "The request is not valid HTTP: a length is too large.");
        break;
    case 414:
        err_set(&e, ERR_URI_TOO_LONG, "The request line is too long.");
        break;
    case 431:
        err_set(&e, ERR_HEADER_TOO_BIG, "The request header is too large.");
        break;
    case 505:
        err_set(&e, ERR_BAD_HTTP_VERSION, "This server speaks HTTP/1.1 and HTTP/1.0.");
        break;
    default:
        err_set(&e, ERR_BAD_HTTP, "The request is not valid HTTP.");
        break;
    }
    http_conn_refuse(c, c->request, &e);
}

static void on_log(void *cls, const char *format, va_list args) __attribute__((format(printf, 2, 0)));
static void on_log(void *cls, const char *format, va_list args) {
    static const char announced[] = "Error processing request (HTTP response code is %u";
    if (strncmp(format, announced, sizeof announced - 1) == 0) {
        refuse_as_library(cls, va_arg(args, unsigned));
    } else if (log_enabled(LOG_DEBUG)) {
        char text[256];
        const int n = vsnprintf(text, sizeof text, format, args);
        for (size_t i = size_min((size_t)(n > 0 ? n : 0), sizeof text - 1); i > 0 && text[i - 1] == '\n'; i--)
            text[i - 1] = '\0';
        log_debug("http", NULL, "libmicrohttpd", LOG_STR("text", text));
    }
}

struct MHD_Daemon *http_conn_daemon(struct http_conn *c) {
    return MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0,
                            NULL, NULL, on_access, c,                                        //
                            MHD_OPTION_EXTERNAL_LOGGER, on_log, c,                           //
                            MHD_OPTION_URI_LOG_CALLBACK, on_target, c,                       //
                            MHD_OPTION_UNESCAPE_CALLBACK, on_unescape, c,                    //
                            MHD_OPTION_NOTIFY_COMPLETED, on_completed, c,                    //
                            MHD_OPTION_NOTIFY_CONNECTION, on_notify, c,                      //
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, HTTP_POOL_BYTES,             //
                            MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_NONCE_NC_SIZE, 0u, //
                            MHD_OPTION_END);
}
