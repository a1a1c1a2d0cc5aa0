/* http_loop.c - the thread under the HTTP server: events, wake-ups, deadlines (http_int.h).
 *
 * One epoll set holds: the shared listening socket, a wake descriptor, and two entries per connection. The first is
 * the descriptor of the connection's own libmicrohttpd daemon: when it is readable, the daemon is run. The second is
 * the client's socket itself, edge-triggered: it says that bytes arrived (which starts the header deadline) and that
 * the client went away, also while the connection is suspended, when libmicrohttpd looks away.
 *
 *   FRESH --bytes--> HEAD --header--> BODY --request--> HANDLE --answer--> SEND --completed--> IDLE --bytes--> HEAD
 *                      `--------- deadline: 408 and close ---'  (no deadline)  `- too little taken: cut
 *
 * Deadlines are looked at when the earliest may have passed, never more than every SCAN_NS; an idle server with no
 * connection sleeps without a timeout.
 * Owner: the loop thread, but for http_loop_push and http_loop_wake.
 * Invariants: 1. a connection is freed only between two rounds of events, so no event points to freed memory.
 * 2. scan_ns is never later than the earliest deadline.
 */
#include "common/http_int.h"
#include "common/log.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX 128
#define SCAN_NS 20000000u       /* at most this often */
#define PROGRESS_NS 1000000000u /* how often a sending connection is asked for progress */
#define NS_PER_MS 1000000u

/* ---- waking, from any thread ---- */

void http_loop_wake(struct http_loop *loop) {
    const uint64_t one = 1;
    ssize_t n;
    do {
        n = write(loop->wake_fd, &one, sizeof one);
    } while (n < 0 && errno == EINTR); /* EAGAIN: the counter is full, so it is readable anyway */
}

void http_loop_push(struct http_reply *r) {
    struct http_loop *loop = r->loop;
    pthread_mutex_lock(&loop->lock);
    const bool wake = !loop->pushed;
    if (!r->pushed) {
        r->pushed = true;
        r->next_pushed = loop->pushed;
        loop->pushed = r;
    }
    pthread_mutex_unlock(&loop->lock);
    if (wake) http_loop_wake(loop);
}

void http_loop_unpush(struct http_reply *r) {
    struct http_loop *loop = r->loop;
    pthread_mutex_lock(&loop->lock);
    if (r->pushed) {
        struct http_reply **at = &loop->pushed;
        while (*at != r) at = &(*at)->next_pushed;
        *at = r->next_pushed;
        r->pushed = false;
    }
    pthread_mutex_unlock(&loop->lock);
}

/* ---- phases and their limits ---- */

void http_loop_scan_by(struct http_loop *loop, uint64_t ns) {
    if (ns < loop->scan_ns) loop->scan_ns = ns;
}

static uint64_t phase_limit_ns(const struct http_conn *c) {
    const struct http_server_options *o = &c->loop->server->o;
    switch (c->phase) {
    case PHASE_FRESH:
    case PHASE_HEAD:
        return (uint64_t)(c->over ? size_min(HTTP_OVER_MS, o->header_timeout_ms) : o->header_timeout_ms);
    case PHASE_IDLE:
        return o->idle_timeout_ms;
    case PHASE_BODY:
        return o->body_timeout_ms;
    case PHASE_HANDLE:
    case PHASE_SEND:
        break;
    }
    return 0;
}

void http_conn_phase(struct http_conn *c, enum http_phase phase) {
    c->phase = phase;
    c->phase_ns = time_now_ns();
    c->progress_ns = c->phase_ns;
    c->window_ns = 0;
    const uint64_t limit_ms = phase_limit_ns(c);
    if (limit_ms > 0) http_loop_scan_by(c->loop, c->phase_ns + limit_ms * NS_PER_MS);
    if (phase == PHASE_SEND || phase == PHASE_HANDLE) http_loop_scan_by(c->loop, c->phase_ns + PROGRESS_NS);
}

/* ---- events ---- */

/* Does anybody still wait for the client to be there? A complete reply on its way out needs no open reading side. */
static bool request_waits(struct http_reply *r) {
    if (!r || r->stage < STAGE_WAIT) return false;
    pthread_mutex_lock(&r->lock);
    const bool waits = !r->ended && !r->aborted;
    pthread_mutex_unlock(&r->lock);
    return waits;
}

static void socket_event(struct http_conn *c, uint32_t events) {
    if (c->dead) return;
    /* bytes that libmicrohttpd has taken already belong to a request that may even be over */
    if ((events & EPOLLIN) && (c->phase == PHASE_FRESH || c->phase == PHASE_IDLE) && http_conn_has_unread(c))
        http_conn_phase(c, PHASE_HEAD);
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        c->half_closed = true;
        const bool broken = events & (EPOLLHUP | EPOLLERR);
        if (request_waits(c->request) || (broken && c->request && c->request->stage >= STAGE_WAIT)) http_conn_close(c);
    }
}

/* A reply whose other side did something: answered, wrote, ended, overflowed. */
static void reply_event(struct http_reply *r) {
    struct http_conn *c = r->conn;
    pthread_mutex_lock(&r->lock);
    const bool overflow = r->overflow;
    const bool resume = r->suspended && !overflow;
    if (resume) r->suspended = false;
    pthread_mutex_unlock(&r->lock);
    if (overflow) {
        log_warn("http", r->id, "client reads too slowly: cut", LOG_STR("peer", c->peer));
        http_conn_close(c);
    } else if (resume) {
        http_conn_phase(c, PHASE_SEND);
        MHD_resume_connection(c->mhd);
        http_conn_run(c);
    }
}

static void take_pushed(struct http_loop *loop) {
    for (;;) {
        pthread_mutex_lock(&loop->lock);
        struct http_reply *r = loop->pushed;
        if (r) {
            loop->pushed = r->next_pushed;
            r->pushed = false;
        }
        pthread_mutex_unlock(&loop->lock);
        if (!r) return;
        reply_event(r); /* alive: only this thread drops the loop's reference */
    }
}

/* ---- deadlines ---- */

/* True when the client has taken bytes since the last look, as its kernel acknowledged them. */
static bool has_progress(struct http_conn *c) {
    struct tcp_info info;
    socklen_t n = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0) return true;
    const bool progress = info.tcpi_bytes_acked != c->acked_bytes;
    c->acked_bytes = info.tcpi_bytes_acked;
    return progress;
}

/* False when the client has taken nothing, or less than the least rate, for as long as it may. A byte now and then must
 * not hold a reply for ever. */
static bool drains(struct http_conn *c, uint64_t now) {
    const struct http_server_options *o = &c->loop->server->o;
    const uint64_t window_ns = (uint64_t)o->write_stall_ms * NS_PER_MS;
    if (has_progress(c)) c->progress_ns = now;
    if (now - c->progress_ns >= window_ns) return false;
    if (c->window_ns == 0 || now - c->window_ns >= window_ns) {
        const uint64_t least = (uint64_t)o->drain_bytes_per_s_min * o->write_stall_ms / 1000;
        const bool enough = c->window_ns == 0 || c->acked_bytes - c->window_acked >= least;
        c->window_ns = now;
        c->window_acked = c->acked_bytes;
        return enough;
    }
    return true;
}

static void add_comment(struct http_reply *r) {
    static const char comment[] = ": keep-alive\n\n";
    if (r->gone || r->overflow) return;
    strbuf_add(&r->out, comment, sizeof comment - 1);
    http_reply_hold(r, r->out.capacity); /* it was drained: a few bytes are never too much */
}

/* When the connection is to be looked at again; UINT64_MAX: its events suffice. */
static uint64_t scan_reply(struct http_conn *c, uint64_t now) {
    const struct http_server_options *o = &c->loop->server->o;
    struct http_reply *r = c->request;
    const uint64_t comment_ns = (uint64_t)o->keepalive_comment_ms * NS_PER_MS;
    if (!r) return UINT64_MAX;
    pthread_mutex_lock(&r->lock);
    const bool streams = r->comments && r->begun && !r->ended && !r->aborted && !r->gone;
    uint64_t next = streams ? r->written_ns + comment_ns : UINT64_MAX;
    bool resume = false;
    if (next <= now && r->suspended) {
        add_comment(r);
        r->written_ns = now;
        next = now + comment_ns;
        r->suspended = false;
        resume = true;
    }
    const bool suspended = r->suspended;
    pthread_mutex_unlock(&r->lock);
    if (resume) {
        http_conn_phase(c, PHASE_SEND);
        MHD_resume_connection(c->mhd);
        http_conn_run(c);
        return next;
    }
    if (c->phase != PHASE_SEND || suspended) return next == UINT64_MAX ? next : size_max(next, now + SCAN_NS);
    if (!drains(c, now)) {
        log_info("http", r->id, "client takes nothing, or too little: cut", LOG_STR("peer", c->peer));
        atomic_fetch_add_explicit(&c->loop->server->timeouts, 1, memory_order_relaxed);
        http_conn_close(c);
        return UINT64_MAX;
    }
    return now + PROGRESS_NS / 4;
}

static void timeout_conn(struct http_conn *c) {
    struct err e;
    if (c->phase == PHASE_BODY || c->phase == PHASE_HEAD) {
        atomic_fetch_add_explicit(&c->loop->server->timeouts, 1, memory_order_relaxed);
        err_set(&e, ERR_BODY_TIMEOUT, "The request %s did not arrive in time.",
                c->phase == PHASE_BODY ? "body" : "header");
        http_conn_refuse(c, c->request, &e);
    }
    http_conn_close(c);
}

static uint64_t scan_conn(struct http_conn *c, uint64_t now) {
    const uint64_t limit_ms = phase_limit_ns(c);
    if (limit_ms == 0) return scan_reply(c, now);
    const uint64_t deadline = c->phase_ns + limit_ms * NS_PER_MS;
    const bool drained =
        c->phase <= PHASE_IDLE && atomic_load_explicit(&c->loop->server->draining, memory_order_relaxed);
    if (now < deadline && !drained) return deadline;
    timeout_conn(c);
    return UINT64_MAX;
}

static void scan(struct http_loop *loop, uint64_t now) {
    uint64_t next = UINT64_MAX;
    struct http_conn *following;
    loop->scan_ns = UINT64_MAX;
    for (struct http_conn *c = loop->conns; c; c = following) {
        following = c->next;
        const uint64_t at = scan_conn(c, now);
        if (at < next) next = at;
    }
    struct http_linger *after;
    for (struct http_linger *l = loop->lingers; l; l = after) {
        after = l->next;
        if (l->deadline_ns <= now) {
            http_linger_free(loop, l);
        } else if (l->deadline_ns < next) {
            next = l->deadline_ns;
        }
    }
    http_loop_scan_by(loop, next);
    if (loop->scan_ns < now + SCAN_NS) loop->scan_ns = now + SCAN_NS;
}

/* ---- the thread ---- */

static void conns_free(struct http_loop *loop) {
    while (loop->dead) {
        struct http_conn *c = loop->dead;
        loop->dead = c->next;
        free(c);
    }
}

/* Sockets before daemons: what a socket's event says about bytes must be seen before the daemon takes them. */
static void handle_sockets(const struct epoll_event *events, int n) {
    for (int i = 0; i < n; i++) {
        struct http_source *source = events[i].data.ptr;
        if (source->kind == SOURCE_SOCKET) socket_event(source->owner, events[i].events);
    }
}

static void handle_event(struct http_loop *loop, const struct epoll_event *event) {
    struct http_source *source = event->data.ptr;
    uint64_t count;
    switch (source->kind) {
    case SOURCE_WAKE:
        if (read(loop->wake_fd, &count, sizeof count) < 0) return; /* taken already */
        break;
    case SOURCE_LISTEN:
        http_accept_all(loop);
        break;
    case SOURCE_SOCKET:
        break; /* before: handle_sockets */
    case SOURCE_DAEMON:
        http_conn_run(source->owner);
        break;
    case SOURCE_LINGER:
        http_linger_read(loop, source->owner);
        break;
    }
}

static void run_again(struct http_loop *loop) {
    if (!loop->again) return;
    loop->again = false;
    struct http_conn *following;
    for (struct http_conn *c = loop->conns; c; c = following) {
        following = c->next;
        if (c->again) http_conn_run(c);
    }
}

/* Leaves the listening socket; the last loop to do so lets http_server_drain close it. */
static void stop_listening(struct http_loop *loop) {
    if (!loop->listening) return;
    loop->listening = false;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->server->listen_fd, NULL);
    if (atomic_fetch_sub(&loop->server->loops_listening, 1) == 1) http_server_notify(loop->server);
    loop->scan_ns = 0; /* idle connections are closed now */
}

static int wait_ms(const struct http_loop *loop) {
    if (loop->again) return 0;
    if (loop->scan_ns == UINT64_MAX) return -1;
    const uint64_t now = time_now_ns();
    if (loop->scan_ns <= now) return 0;
    return (int)size_min((loop->scan_ns - now) / NS_PER_MS + 1, 60000);
}

void *http_loop_main(void *arg) {
    struct http_loop *loop = arg;
    struct http_server *s = loop->server;
    struct epoll_event events[EVENTS_MAX];
    while (!atomic_load_explicit(&s->stopping, memory_order_relaxed)) {
        const int n = epoll_wait(loop->epoll_fd, events, EVENTS_MAX, wait_ms(loop));
        handle_sockets(events, n);
        for (int i = 0; i < n; i++) handle_event(loop, &events[i]);
        take_pushed(loop);
        run_again(loop);
        if (atomic_load_explicit(&s->draining, memory_order_relaxed)) stop_listening(loop);
        const uint64_t now = time_now_ns();
        if (loop->scan_ns <= now) scan(loop, now);
        conns_free(loop);
    }
    stop_listening(loop);
    while (loop->conns) http_conn_close(loop->conns);
    conns_free(loop);
    while (loop->lingers) http_linger_free(loop, loop->lingers);
    return NULL;
}
