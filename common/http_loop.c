/* http_loop.c - the thread under the HTTP server: sockets, wake-ups, deadlines (http_int.h).
 *
 * One epoll set holds: the shared listening socket, a wake descriptor, and two entries per connection. The first is
 * the descriptor of the connection's own libmicrohttpd daemon: when it is readable, the daemon is run. The second is
 * the client's socket itself, edge-triggered: it says that bytes arrived (which starts the header deadline) and that
 * the client went away, also while the connection is suspended, when libmicrohttpd looks away.
 *
 *   FRESH --bytes--> HEAD --header--> BODY --request--> HANDLE --answer--> SEND --completed--> IDLE --bytes--> HEAD
 *                      `--------- deadline: 408 and close ---'  (no deadline)  `- no byte taken: cut
 *
 * Deadlines are looked at when the earliest may have passed, never more than every SCAN_NS; an idle server with no
 * connection sleeps without a timeout.
 * Owner: the loop thread, but for http_loop_push and http_loop_wake.
 * Invariants: 1. a connection is freed only between two rounds of events (conn_bury), so no event points to freed
 * memory.  2. MHD_run is not entered twice for a connection (`running`).  3. a socket leaves the epoll set before it
 * is closed: a lingering duplicate would keep it alive there.
 */
#include "common/http_int.h"
#include "common/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX 128
#define ACCEPTS_MAX 64           /* per event: others of the loop wait meanwhile */
#define ROUNDS_MAX 16            /* of one connection in a row: pipelined requests must not starve others */
#define SCAN_NS 20000000u        /* at most this often */
#define PROGRESS_NS 1000000000u  /* how often a sending connection is asked for progress */
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

/* ---- connections ---- */

static void scan_by(struct http_loop *loop, uint64_t ns) {
    if (ns < loop->scan_ns) loop->scan_ns = ns;
}

static uint64_t phase_limit_ns(const struct http_conn *c) {
    const struct http_server_options *o = &c->loop->server->o;
    switch (c->phase) {
    case PHASE_FRESH:
    case PHASE_HEAD: return (uint64_t)(c->over ? size_min(HTTP_OVER_MS, o->header_timeout_ms) : o->header_timeout_ms);
    case PHASE_IDLE: return o->idle_timeout_ms;
    case PHASE_BODY: return o->body_timeout_ms;
    case PHASE_HANDLE:
    case PHASE_SEND: break;
    }
    return 0;
}

void http_conn_phase(struct http_conn *c, enum http_phase phase) {
    c->phase = phase;
    c->phase_ns = time_now_ns();
    c->progress_ns = c->phase_ns;
    const uint64_t limit_ms = phase_limit_ns(c);
    if (limit_ms > 0) scan_by(c->loop, c->phase_ns + limit_ms * NS_PER_MS);
    if (phase == PHASE_SEND || phase == PHASE_HANDLE) scan_by(c->loop, c->phase_ns + PROGRESS_NS);
}

/* Out of the live list, into the list to be freed after this round. */
static void conn_bury(struct http_conn *c) {
    struct http_loop *loop = c->loop;
    if (c->dead) return;
    c->dead = true;
    if (c->prev) {
        c->prev->next = c->next;
    } else {
        loop->conns = c->next;
    }
    if (c->next) c->next->prev = c->prev;
    c->next = loop->dead;
    loop->dead = c;
    atomic_fetch_sub(&loop->server->connections, 1);
}

static void conns_free(struct http_loop *loop) {
    while (loop->dead) {
        struct http_conn *c = loop->dead;
        loop->dead = c->next;
        free(c);
    }
}

/* Closes at once, whatever state it is in; the request, if any, is completed as lost. */
static void conn_close(struct http_conn *c) {
    if (c->dead || c->running) return;
    c->running = true;
    if (!c->closed) {
        epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        struct http_reply *r = c->request;
        if (r) {
            http_reply_lose(r);
            pthread_mutex_lock(&r->lock);
            const bool suspended = r->suspended;
            r->suspended = false;
            pthread_mutex_unlock(&r->lock);
            if (suspended) MHD_resume_connection(c->mhd); /* the library aborts on stopping suspended ones */
        }
    }
    epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, MHD_get_daemon_info(c->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd, NULL);
    MHD_stop_daemon(c->daemon);
    c->running = false;
    conn_bury(c);
}

/* ---- refusing ---- */

static void linger_free(struct http_loop *loop, struct http_linger *l) {
    struct http_linger **at = &loop->lingers;
    while (*at != l) at = &(*at)->next;
    *at = l->next;
    loop->n_lingers--;
    close(l->fd);
    free(l);
}

/* Goes on reading from a refused client for a moment: closing a socket with unread bytes sends a reset, which would
 * destroy the reply on its way. */
static void linger_begin(struct http_loop *loop, int socket_fd) {
    if (loop->n_lingers >= HTTP_LINGERS_MAX) return;
    struct http_linger *l = calloc(1, sizeof *l);
    const int fd = fcntl(socket_fd, F_DUPFD_CLOEXEC, 0);
    if (!l || fd < 0) {
        free(l);
        if (fd >= 0) close(fd);
        return;
    }
    *l = (struct http_linger){.source = {SOURCE_LINGER, l}, .fd = fd, .deadline_ns = time_now_ns() + HTTP_LINGER_NS};
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = &l->source};
    l->next = loop->lingers;
    loop->lingers = l;
    loop->n_lingers++;
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        linger_free(loop, l);
        return;
    }
    scan_by(loop, l->deadline_ns);
}

static void linger_read(struct http_loop *loop, struct http_linger *l) {
    static _Thread_local char sink[64 << 10];
    const ssize_t n = recv(l->fd, sink, sizeof sink, MSG_DONTWAIT);
    if (n > 0) l->bytes += (uint64_t)n;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || l->bytes > HTTP_LINGER_BYTES_MAX)
        linger_free(loop, l);
}

static void send_error(struct http_loop *loop, int fd, struct http_reply *r, const struct err *e) {
    struct strbuf out = {0};
    const size_t n = http_error_bytes(loop->server, r, e, &out);
    /* a few hundred bytes into a socket whose replies have all been taken: it fits, or the client is not reading */
    const ssize_t sent = n > 0 ? send(fd, out.data, n, MSG_NOSIGNAL | MSG_DONTWAIT) : -1;
    if (r && sent == (ssize_t)n) {
        r->status_sent = err_info(e->code)->http_status;
        r->bytes_out = n;
    }
    strbuf_free(&out);
    shutdown(fd, SHUT_WR);
    linger_begin(loop, fd);
}

void http_conn_refuse(struct http_conn *c, struct http_reply *r, const struct err *e) {
    struct http_server *s = c->loop->server;
    if (c->doomed || c->closed) return;
    c->doomed = true;
    if (e->code == ERR_OVERLOADED) {
        atomic_fetch_add_explicit(&s->refused, 1, memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(&s->bad_requests, 1, memory_order_relaxed);
    }
    log_debug("http", r ? r->id : NULL, "request refused", LOG_STR("peer", c->peer),
              LOG_I64("status", err_info(e->code)->http_status), LOG_STR("cause", e->message));
    epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    send_error(c->loop, c->fd, r, e);
}

/* ---- running ---- */

/* Without internal threads libmicrohttpd spins when its buffer is full and it can make nothing of it (a chunk size
 * line that does not end): it says that there is more to do, but neither reads nor calls back. */
static bool conn_is_stuck(struct http_conn *c) {
    struct tcp_info info;
    socklen_t n = sizeof info;
    int waiting = 0;
    memset(&info, 0, sizeof info);
    if ((c->phase != PHASE_BODY && c->phase != PHASE_HEAD) || c->closed ||
        getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0 || ioctl(c->fd, SIOCINQ, &waiting) != 0)
        return false;
    const uint64_t taken = info.tcpi_bytes_received - (uint64_t)waiting;
    const bool stuck = taken == c->taken_bytes && c->calls == c->calls_checked;
    c->taken_bytes = taken;
    c->calls_checked = c->calls;
    return stuck;
}

static bool has_unread(const struct http_conn *c) {
    int waiting = 0;
    return ioctl(c->fd, SIOCINQ, &waiting) != 0 || waiting > 0;
}

/* The peer has closed its side, all it sent has been read, and no complete request came of it. (The library, told by
 * edges, can miss a FIN that came with the last bytes.) */
static bool conn_is_over(const struct http_conn *c) {
    return c->half_closed && !c->again && c->phase < PHASE_HANDLE && !has_unread(c);
}

/* Lets the connection's daemon do what there is to do. */
static void conn_run(struct http_conn *c) {
    if (c->dead || c->running) return;
    MHD_UNSIGNED_LONG_LONG timeout;
    int rounds = 0;
    c->running = true;
    c->again = false;
    do {
        MHD_run(c->daemon);
        /* A doomed connection is closed by the library itself if it can: it leaves the reading side of the socket
         * open, which lingering needs and MHD_stop_daemon does not. */
        c->again = !c->closed && MHD_get_timeout(c->daemon, &timeout) == MHD_YES && timeout == 0;
    } while (c->again && ++rounds < ROUNDS_MAX);
    c->running = false;
    if (c->again) c->loop->again = true;
    if (c->again && !c->doomed && conn_is_stuck(c)) {
        struct err e;
        err_set(&e, ERR_BAD_HTTP, "The request is not valid HTTP: a chunk size line is too long.");
        http_conn_refuse(c, c->request, &e);
    }
    if (c->closed || c->doomed || conn_is_over(c)) conn_close(c);
}

/* ---- accepting ---- */

static void peer_text(const struct sockaddr_storage *addr, char *out, size_t out_bytes) {
    char ip[INET6_ADDRSTRLEN] = "?";
    if (addr->ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)addr;
        const bool mapped = IN6_IS_ADDR_V4MAPPED(&six->sin6_addr);
        inet_ntop(mapped ? AF_INET : AF_INET6, six->sin6_addr.s6_addr + (mapped ? 12 : 0), ip, sizeof ip);
        snprintf(out, out_bytes, mapped ? "%s:%u" : "[%s]:%u", ip, ntohs(six->sin6_port));
    } else {
        const struct sockaddr_in *four = (const struct sockaddr_in *)addr;
        inet_ntop(AF_INET, &four->sin_addr, ip, sizeof ip);
        snprintf(out, out_bytes, "%s:%u", ip, ntohs(four->sin_port));
    }
}

/* A peer whose machine died says nothing: let the kernel ask, so that its requests do not run on for ever. */
static void set_keepalive(int fd) {
    const int on = 1, idle_s = 30, interval_s = 10, count = 3;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

static bool conn_watch(struct http_conn *c) {
    struct epoll_event socket_event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = &c->socket_source};
    struct epoll_event daemon_event = {.events = EPOLLIN, .data.ptr = &c->daemon_source};
    const int daemon_fd = MHD_get_daemon_info(c->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    return epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_ADD, daemon_fd, &daemon_event) == 0 &&
           epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_ADD, c->fd, &socket_event) == 0;
}

static void conn_open(struct http_loop *loop, int fd, const struct sockaddr_storage *addr, socklen_t addr_bytes,
                      bool over) {
    struct http_conn *c = calloc(1, sizeof *c);
    if (c) {
        *c = (struct http_conn){.socket_source = {SOURCE_SOCKET, c},
                                .daemon_source = {SOURCE_DAEMON, c},
                                .loop = loop,
                                .fd = fd,
                                .over = over};
        c->daemon = http_conn_daemon(c);
    }
    if (!c || !c->daemon) {
        log_warn("http", NULL, "no resources for a connection", LOG_STR("error", strerror(errno)));
        close(fd);
        free(c);
        atomic_fetch_sub(&loop->server->connections, 1);
        return;
    }
    peer_text(addr, c->peer, sizeof c->peer);
    set_keepalive(fd);
    c->next = loop->conns;
    if (c->next) c->next->prev = c;
    loop->conns = c;
    http_conn_phase(c, PHASE_FRESH);
    /* MHD_add_connection closes the socket when it fails */
    if (MHD_add_connection(c->daemon, fd, (const struct sockaddr *)addr, addr_bytes) != MHD_YES) c->closed = true;
    if (c->closed || !conn_watch(c)) conn_close(c);
}

/* Room among the connections above the limit: the one of them that has waited longest without a request goes. */
static bool evict_over(struct http_loop *loop) {
    struct http_conn *oldest = NULL;
    for (struct http_conn *c = loop->conns; c; c = c->next)
        if (c->over && !c->request && (!oldest || c->phase_ns < oldest->phase_ns)) oldest = c;
    if (!oldest) return false;
    conn_close(oldest);
    return true;
}

static void accept_one(struct http_loop *loop, int fd, const struct sockaddr_storage *addr, socklen_t addr_bytes) {
    struct http_server *s = loop->server;
    const unsigned count = atomic_fetch_add(&s->connections, 1) + 1;
    atomic_fetch_add_explicit(&s->accepted, 1, memory_order_relaxed);
    const bool over = count > s->o.connections_max;
    if (count > s->o.connections_max + s->reserve && !evict_over(loop)) {
        struct err e;
        err_set(&e, ERR_OVERLOADED, "The server has as many connections as it takes; try again later.");
        send_error(loop, fd, NULL, &e);
        close(fd);
        atomic_fetch_sub(&s->connections, 1);
        atomic_fetch_add_explicit(&s->refused, 1, memory_order_relaxed);
        return;
    }
    conn_open(loop, fd, addr, addr_bytes, over);
}

/* Out of descriptors: the spare one is given up to take the connection and close it, so that the client learns at
 * once and the level-triggered listening socket does not spin. */
static void accept_without_descriptors(struct http_server *s) {
    pthread_mutex_lock(&s->idle_lock);
    if (s->spare_fd >= 0) close(s->spare_fd);
    const int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) close(fd);
    s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&s->idle_lock);
    log_warn("http", NULL, "out of file descriptors: a connection was closed");
}

static void accept_all(struct http_loop *loop) {
    for (int i = 0; i < ACCEPTS_MAX && loop->listening; i++) {
        struct sockaddr_storage addr = {0};
        socklen_t addr_bytes = sizeof addr;
        const int fd =
            accept4(loop->server->listen_fd, (struct sockaddr *)&addr, &addr_bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_one(loop, fd, &addr, addr_bytes);
        } else if (errno == EMFILE || errno == ENFILE) {
            accept_without_descriptors(loop->server);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
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
    if ((events & EPOLLIN) && (c->phase == PHASE_FRESH || c->phase == PHASE_IDLE) && has_unread(c))
        http_conn_phase(c, PHASE_HEAD);
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        c->half_closed = true;
        const bool broken = events & (EPOLLHUP | EPOLLERR);
        if (request_waits(c->request) || (broken && c->request && c->request->stage >= STAGE_WAIT)) conn_close(c);
    }
}

/* A reply whose other side did something: answered, wrote, ended, overflowed. */
static void reply_event(struct http_reply *r) {
    struct http_conn *c = r->conn;
    pthread_mutex_lock(&r->lock);
    const bool overflow = r->overflow && !r->ended;
    const bool resume = r->suspended && !overflow;
    if (resume) r->suspended = false;
    pthread_mutex_unlock(&r->lock);
    if (overflow) {
        log_warn("http", r->id, "client reads too slowly: cut", LOG_STR("peer", c->peer));
        conn_close(c);
    } else if (resume) {
        http_conn_phase(c, PHASE_SEND);
        MHD_resume_connection(c->mhd);
        conn_run(c);
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

static void add_comment(struct http_reply *r) {
    static const char comment[] = ": keep-alive\n\n";
    if (!r->gone && !r->overflow) strbuf_add(&r->out, comment, sizeof comment - 1);
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
        conn_run(c);
        return next;
    }
    if (c->phase != PHASE_SEND || suspended) return next == UINT64_MAX ? next : size_max(next, now + SCAN_NS);
    if (has_progress(c)) c->progress_ns = now;
    if (now - c->progress_ns >= (uint64_t)o->write_stall_ms * NS_PER_MS) {
        log_info("http", r->id, "client takes nothing: cut", LOG_STR("peer", c->peer));
        atomic_fetch_add_explicit(&c->loop->server->timeouts, 1, memory_order_relaxed);
        conn_close(c);
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
    conn_close(c);
}

static uint64_t scan_conn(struct http_conn *c, uint64_t now) {
    const uint64_t limit_ms = phase_limit_ns(c);
    if (limit_ms == 0) return scan_reply(c, now);
    const uint64_t deadline = c->phase_ns + limit_ms * NS_PER_MS;
    const bool drained = c->phase == PHASE_IDLE && atomic_load_explicit(&c->loop->server->draining, memory_order_relaxed);
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
            linger_free(loop, l);
        } else if (l->deadline_ns < next) {
            next = l->deadline_ns;
        }
    }
    scan_by(loop, next);
    if (loop->scan_ns < now + SCAN_NS) loop->scan_ns = now + SCAN_NS;
}

/* ---- the thread ---- */

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
    case SOURCE_LISTEN: accept_all(loop); break;
    case SOURCE_SOCKET: break; /* before: handle_sockets */
    case SOURCE_DAEMON: conn_run(source->owner); break;
    case SOURCE_LINGER: linger_read(loop, source->owner); break;
    }
}

static void run_again(struct http_loop *loop) {
    if (!loop->again) return;
    loop->again = false;
    struct http_conn *following;
    for (struct http_conn *c = loop->conns; c; c = following) {
        following = c->next;
        if (c->again) conn_run(c);
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
    while (loop->conns) conn_close(loop->conns);
    conns_free(loop);
    while (loop->lingers) linger_free(loop, loop->lingers);
    return NULL;
}
