/* http_sock.c - sockets of the HTTP server: accepting, running, refusing, closing a connection (http_int.h).
 *
 * A connection is its socket and its own libmicrohttpd daemon. Running it means letting the daemon do what there is
 * to do, within bounds; closing it means stopping the daemon, in whatever state the request is. A refused client gets
 * its error straight through the socket; a duplicate of the descriptor then goes on reading for a moment ("linger"),
 * because closing a socket with unread bytes sends a reset, which would destroy the reply on its way.
 * Owner: the loop thread.
 * Invariants: 1. a closed connection is only put on the loop's list of the dead: events of the same round may still
 * point to it.  2. MHD_run is not entered twice for a connection (`running`).  3. a socket leaves the epoll set before
 * it is closed: a lingering duplicate would keep it alive there.
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
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_MAX 64 /* per event: others of the loop wait meanwhile */
#define ROUNDS_MAX 16  /* of one connection in a row: pipelined requests must not starve others */

/* ---- connections ---- */

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

/* Closes at once, whatever state it is in; the request, if any, is completed as lost. */
void http_conn_close(struct http_conn *c) {
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
    epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, MHD_get_daemon_info(c->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd,
              NULL);
    MHD_stop_daemon(c->daemon);
    c->running = false;
    conn_bury(c);
}

/* ---- refusing ---- */

void http_linger_free(struct http_loop *loop, struct http_linger *l) {
    struct http_linger **at = &loop->lingers;
    while (*at != l) at = &(*at)->next;
    *at = l->next;
    loop->n_lingers--;
    close(l->fd);
    free(l);
}

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
        http_linger_free(loop, l);
        return;
    }
    http_loop_scan_by(loop, l->deadline_ns);
}

void http_linger_read(struct http_loop *loop, struct http_linger *l) {
    static _Thread_local char sink[64 << 10];
    const ssize_t n = recv(l->fd, sink, sizeof sink, MSG_DONTWAIT);
    if (n > 0) l->bytes += (uint64_t)n;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || l->bytes > HTTP_LINGER_BYTES_MAX)
        http_linger_free(loop, l);
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

bool http_conn_has_unread(const struct http_conn *c) {
    int waiting = 0;
    return ioctl(c->fd, SIOCINQ, &waiting) != 0 || waiting > 0;
}

/* The peer has closed its side, all it sent has been read, and no complete request came of it. (The library, told by
 * edges, can miss a FIN that came with the last bytes.) */
static bool conn_is_over(const struct http_conn *c) {
    return c->half_closed && !c->again && c->phase < PHASE_HANDLE && !http_conn_has_unread(c);
}

/* Lets the connection's daemon do what there is to do. */
void http_conn_run(struct http_conn *c) {
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
    if (c->closed || c->doomed || conn_is_over(c)) http_conn_close(c);
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
    if (c->closed || !conn_watch(c)) http_conn_close(c);
}

/* Room among the connections above the limit: the one of them that has waited longest without a request goes. */
static bool evict_over(struct http_loop *loop) {
    struct http_conn *oldest = NULL;
    for (struct http_conn *c = loop->conns; c; c = c->next)
        if (c->over && !c->request && (!oldest || c->phase_ns < oldest->phase_ns)) oldest = c;
    if (!oldest) return false;
    http_conn_close(oldest);
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

void http_accept_all(struct http_loop *loop) {
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
