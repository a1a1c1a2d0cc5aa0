/* http_reply.c - answers: the part of the server that any thread may enter (http_server.h).
 *
 * A reply is a byte string that grows under its lock, and a few flags. The loop thread takes bytes out of it when the
 * client can have more (stream_read) and suspends the connection when there are none; the answering thread puts bytes
 * in and, if the connection is suspended, pushes the reply to the loop, which resumes it. Both look at `suspended`
 * under the lock, so no wake-up is lost and none is sent without need.
 *
 *   handler returns: nothing yet -> WAIT (suspended) --send/err--> whole reply queued -> completed
 *                    |                               --begin--> stream queued: read.. suspend.. read.. end -> completed
 *                    `- answered in place -> queued
 *   at any time: the client goes -> gone, on_gone once -> completed; the handle lives until its ending call
 *
 * Invariants: 1. refs counts the loop (until detach) and the handle (until an ending call).  2. on_gone runs under the
 * lock, at most once, and never after an ending call.  3. after `gone` nothing is added to `out`.  4. held_bytes is the
 * capacity of `out`, or of the whole reply that libmicrohttpd has taken over, until the request is completed.
 */
#include "common/http_int.h"
#include "common/json.h"
#include "common/log.h"
#include "common/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define BLOCK_BYTES ((size_t)16 << 10) /* libmicrohttpd's read-ahead from a stream; bounded by its pool anyway */
#define COMPACT_BYTES ((size_t)64 << 10)

/* ---- life ---- */

struct http_reply *http_reply_new(struct http_conn *conn, const char *target) {
    struct http_reply *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->target = strdup(target);
    if (!r->target) {
        free(r);
        return NULL;
    }
    r->server = conn->loop->server;
    r->loop = conn->loop;
    r->conn = conn;
    atomic_init(&r->refs, 1);
    pthread_mutex_init(&r->lock, NULL);
    random_id(r->id, sizeof r->id, "req-", 16);
    r->request.server = r->server;
    r->request.id = r->id;
    r->request.key_index = -1;
    r->request.body = "";
    r->request.route = "";
    r->request.headers = &r->headers;
    r->request.received_ns = time_now_ns();
    atomic_fetch_add(&r->server->requests, 1);
    return r;
}

void http_reply_body_free(struct http_reply *r) {
    free(r->body);
    atomic_fetch_sub_explicit(&r->server->body_bytes, r->body_capacity, memory_order_relaxed);
    r->body = NULL;
    r->body_capacity = 0;
    r->request.body = "";
    r->request.body_bytes = 0;
}

bool http_reply_hold(struct http_reply *r, uint64_t bytes) {
    const uint64_t more = bytes - r->held_bytes; /* wraps when it shrinks, and so does the sum: both come out right */
    const uint64_t total = atomic_fetch_add_explicit(&r->server->reply_bytes, more, memory_order_relaxed) + more;
    r->held_bytes = bytes;
    return bytes <= HTTP_REPLY_SMALL_BYTES || total <= r->server->o.reply_bytes_total_max;
}

void http_reply_unref(struct http_reply *r) {
    if (atomic_fetch_sub(&r->refs, 1) != 1) return;
    http_reply_hold(r, 0);
    for (size_t i = 0; i < r->n_extra; i++) {
        free(r->extra[i].name);
        free(r->extra[i].value);
    }
    strbuf_free(&r->out);
    free(r->target);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* The memory of the request, which late replies still look at (their CORS headers depend on it). */
static void request_free(struct http_reply *r) {
    http_reply_body_free(r);
    free(r->headers.fields);
    free(r->params);
    r->headers = (struct http_header_list){0};
    r->params = NULL;
}

static void lose_locked(struct http_reply *r) {
    if (r->gone) return;
    r->gone = true;
    strbuf_free(&r->out);
    http_reply_hold(r, 0);
    r->out_sent = 0;
    if (r->on_gone && r->handle_out) r->on_gone(r->on_gone_arg);
    r->on_gone = NULL;
}

void http_reply_lose(struct http_reply *r) {
    pthread_mutex_lock(&r->lock);
    lose_locked(r);
    pthread_mutex_unlock(&r->lock);
}

void http_reply_detach(struct http_reply *r) {
    struct http_server *s = r->server;
    pthread_mutex_lock(&r->lock);
    r->detached = true;
    http_reply_hold(r, 0);
    http_loop_unpush(r);
    pthread_mutex_unlock(&r->lock);
    request_free(r);
    http_reply_unref(r);
    if (atomic_fetch_sub(&s->requests, 1) == 1) http_server_notify(s);
}

/* ---- headers ---- */

void http_reply_headers(struct http_reply *r, int status, void (*add)(void *arg, const char *name, const char *value),
                        void *arg) {
    const char *origin = http_cors_origin(r);
    bool retry_after = false;
    for (size_t i = 0; i < r->n_extra; i++) {
        add(arg, r->extra[i].name, r->extra[i].value);
        if (strcasecmp(r->extra[i].name, "Retry-After") == 0) retry_after = true;
    }
    add(arg, "Server", r->server->o.server_name);
    add(arg, "X-Request-Id", r->id);
    if (r->client_id[0]) add(arg, "X-Client-Request-Id", r->client_id);
    add(arg, "X-Content-Type-Options", "nosniff");
    if (r->server->o.n_cors_origins > 0) add(arg, "Vary", "Origin");
    if (origin) {
        add(arg, "Access-Control-Allow-Origin", origin);
        add(arg, "Access-Control-Expose-Headers", "X-Request-Id, X-Client-Request-Id, Retry-After");
    }
    if (status == 401) add(arg, "WWW-Authenticate", "Bearer");
    if (status == 405 && r->match.allow[0]) add(arg, "Allow", r->match.allow);
    if ((status == 429 || status == 503) && !retry_after) add(arg, "Retry-After", "1");
    if (status == 500) add(arg, "x-should-retry", "false");
    if (r->conn && (r->conn->over || atomic_load_explicit(&r->server->draining, memory_order_relaxed)))
        add(arg, "Connection", "close");
}

static void add_response_header(void *arg, const char *name, const char *value) {
    MHD_add_response_header(arg, name, value);
}

/* ---- loop thread: handing the answer to libmicrohttpd ---- */

/* Takes up to max waiting bytes; what is left when there are none: END.., or 0 and `suspended` is set. */
static ssize_t take_locked(struct http_reply *r, char *buf, size_t max) {
    const size_t n = size_min(r->out.count - r->out_sent, max);
    if (r->gone || r->overflow) return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0) {
        if (r->aborted) return MHD_CONTENT_READER_END_WITH_ERROR;
        if (r->ended) return MHD_CONTENT_READER_END_OF_STREAM;
        r->suspended = true;
        return 0;
    }
    memcpy(buf, r->out.data + r->out_sent, n);
    r->out_sent += n;
    r->bytes_out += n;
    if (r->out_sent == r->out.count) {
        strbuf_clear(&r->out);
        if (r->out.capacity > COMPACT_BYTES) strbuf_free(&r->out); /* the backlog of a moment is not kept */
        r->out_sent = 0;
        http_reply_hold(r, r->out.capacity);
    }
    return (ssize_t)n;
}

static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t max) {
    struct http_reply *r = cls;
    (void)pos;
    pthread_mutex_lock(&r->lock);
    const ssize_t n = take_locked(r, buf, max);
    pthread_mutex_unlock(&r->lock);
    if (n == 0) {
        /* 0 without suspending would make the library ask again at once, for ever */
        MHD_suspend_connection(r->conn->mhd);
    } else if (n == MHD_CONTENT_READER_END_WITH_ERROR && r->facts.http_1_0) {
        /* no chunks to break: a reset is the only sign left, and this sends one */
        const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
        if (connect(r->conn->fd, &nowhere, sizeof nowhere) != 0) log_debug("http", r->id, "no reset");
    }
    return n;
}

static struct MHD_Response *response_stream(struct http_reply *r) {
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, stream_read, r, NULL);
    if (response) {
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* nginx in front must not hold events back */
    }
    return response;
}

static struct MHD_Response *response_whole(struct http_reply *r, char *bytes, size_t n) {
    if (!bytes) return NULL;
    r->bytes_out = n;
    struct MHD_Response *response = MHD_create_response_from_buffer(n, bytes, MHD_RESPMEM_MUST_FREE);
    if (!response) free(bytes);
    return response;
}

/* Status, type and extra headers are not written any more once an answer has begun: no lock. */
static enum http_start queue_response(struct http_reply *r, struct MHD_Response *response) {
    if (!response) return START_CLOSE;
    http_reply_headers(r, r->status, add_response_header, response);
    if (r->content_type[0]) MHD_add_response_header(response, "Content-Type", r->content_type);
    r->stage = STAGE_SEND;
    r->status_sent = r->status;
    const enum MHD_Result queued = MHD_queue_response(r->conn->mhd, (unsigned)r->status, response);
    MHD_destroy_response(response);
    http_conn_phase(r->conn, PHASE_SEND);
    return queued == MHD_YES ? START_QUEUED : START_CLOSE;
}

/* libmicrohttpd has locks of its own and calls stream_read with one held: it is never called with r->lock held. */
enum http_start http_reply_start(struct http_reply *r) {
    size_t n = 0;
    pthread_mutex_lock(&r->lock);
    r->in_handler = false;
    const bool close = r->gone || (r->aborted && !r->begun), streams = r->begun, answered = r->begun || r->ended;
    char *bytes = !close && answered && !streams ? strbuf_take(&r->out, &n) : NULL;
    r->suspended = !close && !answered;
    pthread_mutex_unlock(&r->lock);
    if (close) return START_CLOSE;
    if (answered) return queue_response(r, streams ? response_stream(r) : response_whole(r, bytes, n));
    r->stage = STAGE_WAIT;
    MHD_suspend_connection(r->conn->mhd);
    http_conn_phase(r->conn, PHASE_HANDLE);
    return START_WAIT;
}

/* ---- any thread ---- */

static void wake_locked(struct http_reply *r) {
    if (!r->detached && !r->in_handler) http_loop_push(r);
}

/* Gives the handle back; the lock is held and released here. */
static void finish_locked(struct http_reply *r) {
    struct http_server *s = r->server;
    ASSERT(r->handle_out); /* two ending calls on one handle */
    r->handle_out = false;
    r->on_gone = NULL;
    wake_locked(r);
    pthread_mutex_unlock(&r->lock);
    http_reply_unref(r);
    http_server_handle_done(s);
}

void http_reply_on_gone(struct http_reply *r, void (*on_gone)(void *arg), void *arg) {
    pthread_mutex_lock(&r->lock);
    ASSERT(!r->on_gone && r->handle_out);
    if (r->gone) {
        on_gone(arg);
    } else {
        r->on_gone = on_gone;
        r->on_gone_arg = arg;
    }
    pthread_mutex_unlock(&r->lock);
}

bool http_reply_is_gone(struct http_reply *r) {
    pthread_mutex_lock(&r->lock);
    const bool gone = r->gone || r->overflow;
    pthread_mutex_unlock(&r->lock);
    return gone;
}

const char *http_reply_id(const struct http_reply *r) {
    return r->id;
}

static void check_header_text(const char *s) {
    for (; *s; s++) ASSERT((unsigned char)*s >= ' ' && *s != 0x7f);
}

void http_reply_header(struct http_reply *r, const char *name, const char *value) {
    check_header_text(name);
    check_header_text(value);
    pthread_mutex_lock(&r->lock);
    ASSERT(!r->begun && !r->ended && r->n_extra < HTTP_HEADERS_MAX);
    char *name_copy = strdup(name), *value_copy = strdup(value);
    if (name_copy && value_copy) {
        r->extra[r->n_extra].name = name_copy;
        r->extra[r->n_extra++].value = value_copy;
    } else { /* out of memory: the reply goes without */
        free(name_copy);
        free(value_copy);
    }
    pthread_mutex_unlock(&r->lock);
}

static void set_kind(struct http_reply *r, int status, const char *content_type) {
    ASSERT(!r->begun && !r->ended && status >= 200 && status <= 599);
    check_header_text(content_type);
    r->status = status;
    snprintf(r->content_type, sizeof r->content_type, "%s", content_type);
}

/* Instead of a reply that there is no room for. */
static void send_no_room(struct http_reply *r) {
    struct err e;
    atomic_fetch_add_explicit(&r->server->refused, 1, memory_order_relaxed);
    log_warn("http", r->id, "clients leave too much unread: a reply became 503");
    err_set(&e, ERR_OVERLOADED, "The server holds as many unread replies as it takes; try again later.");
    http_reply_err(r, &e);
}

void http_reply_send_buf(struct http_reply *r, int status, const char *content_type, struct strbuf *b) {
    if (b->failed) {
        struct err e;
        err_set(&e, ERR_INTERNAL, "The server ran out of memory for this reply.");
        strbuf_free(b);
        http_reply_err(r, &e);
        return;
    }
    pthread_mutex_lock(&r->lock);
    if (!r->gone && !http_reply_hold(r, b->capacity)) {
        http_reply_hold(r, 0);
        pthread_mutex_unlock(&r->lock);
        strbuf_free(b);
        send_no_room(r);
        return;
    }
    if (!r->gone) {
        set_kind(r, status, content_type);
        strbuf_free(&r->out);
        r->out = *b;
        *b = (struct strbuf){0};
        r->ended = true;
    } else {
        strbuf_free(b);
    }
    finish_locked(r);
}

void http_reply_send(struct http_reply *r, int status, const char *content_type, const void *body, size_t n) {
    struct strbuf b = {0};
    strbuf_add(&b, body, n);
    http_reply_send_buf(r, status, content_type, &b);
}

void http_reply_err(struct http_reply *r, const struct err *e) {
    struct strbuf b = {0};
    json_add_err(&b, e);
    if (b.failed) { /* not even these few bytes: close without a reply */
        strbuf_free(&b);
        http_reply_abort(r);
        return;
    }
    http_reply_send_buf(r, err_info(e->code)->http_status, HTTP_JSON, &b);
}

bool http_reply_begin(struct http_reply *r, int status, const char *content_type, unsigned flags) {
    pthread_mutex_lock(&r->lock);
    const bool here = !r->gone;
    if (here) {
        set_kind(r, status, content_type);
        r->begun = true;
        r->comments = (flags & HTTP_KEEPALIVE_COMMENTS) != 0;
        r->written_ns = time_now_ns();
        wake_locked(r);
    }
    pthread_mutex_unlock(&r->lock);
    return here;
}

bool http_reply_write(struct http_reply *r, const void *bytes, size_t n) {
    pthread_mutex_lock(&r->lock);
    ASSERT(r->gone || (r->begun && !r->ended));
    if (!r->gone && !r->overflow) {
        if (r->out_sent >= COMPACT_BYTES) {
            memmove(r->out.data, r->out.data + r->out_sent, r->out.count - r->out_sent);
            r->out.count -= r->out_sent;
            r->out_sent = 0;
        }
        strbuf_add(&r->out, bytes, n);
        const bool room = http_reply_hold(r, r->out.capacity);
        r->overflow = !room || r->out.failed || r->out.count - r->out_sent > r->server->o.stream_buffer_bytes_max;
        r->written_ns = time_now_ns();
        if (r->suspended || r->overflow) wake_locked(r);
    }
    const bool here = !r->gone && !r->overflow;
    pthread_mutex_unlock(&r->lock);
    return here;
}

void http_reply_end(struct http_reply *r) {
    pthread_mutex_lock(&r->lock);
    ASSERT(r->gone || (r->begun && !r->ended));
    r->ended = true;
    finish_locked(r);
}

void http_reply_abort(struct http_reply *r) {
    pthread_mutex_lock(&r->lock);
    ASSERT(!r->ended || r->gone);
    r->aborted = true;
    finish_locked(r);
}
