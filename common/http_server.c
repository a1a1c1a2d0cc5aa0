/* http_server.c - opening, draining and closing the HTTP server (http_server.h, http_int.h).
 *
 * The options are copied, so that the caller's memory may go. All loops share one listening socket
 * (EPOLLEXCLUSIVE: the kernel wakes one of them per connection).
 * Threads: the caller's; the loops are started here and joined in http_server_close.
 */
#include "common/http_int.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 1024
#define FDS_PER_CONNECTION 2 /* the socket and its daemon's epoll set */
#define FDS_OTHER 256        /* model files, logs, rank sockets, libraries */

/* ---- options ---- */

static const char *keep_string(struct http_server *s, const char *text) {
    char *copy = strdup(text);
    char **strings = realloc(s->strings, (s->n_strings + 1) * sizeof *strings);
    ASSERT(copy && strings); /* at start */
    s->strings = strings;
    return s->strings[s->n_strings++] = copy;
}

static const char *const *keep_list(struct http_server *s, const char *const *list, size_t n) {
    const char **copy = calloc(n ? n : 1, sizeof *copy);
    ASSERT(copy);
    for (size_t i = 0; i < n; i++) copy[i] = keep_string(s, list[i]);
    return copy;
}

static uint32_t or_default(uint32_t v, uint32_t otherwise) {
    return v ? v : otherwise;
}

static void fill_options(struct http_server *s, const struct http_server_options *o) {
    s->o = *o;
    s->o.host = keep_string(s, o->host ? o->host : "127.0.0.1");
    s->o.server_name = keep_string(s, o->server_name ? o->server_name : "choir");
    s->o.n_threads = or_default(o->n_threads, 1);
    s->o.connections_max = or_default(o->connections_max, 1024);
    s->o.header_timeout_ms = or_default(o->header_timeout_ms, 10000);
    s->o.body_timeout_ms = or_default(o->body_timeout_ms, 30000);
    s->o.idle_timeout_ms = or_default(o->idle_timeout_ms, 75000);
    s->o.write_stall_ms = or_default(o->write_stall_ms, 30000);
    s->o.keepalive_comment_ms = or_default(o->keepalive_comment_ms, 15000);
    s->o.drain_bytes_per_s_min = or_default(o->drain_bytes_per_s_min, 1024);
    s->o.body_bytes_max = o->body_bytes_max ? o->body_bytes_max : (uint64_t)8 << 20;
    s->o.body_bytes_total_max = o->body_bytes_total_max ? o->body_bytes_total_max : (uint64_t)256 << 20;
    s->o.stream_buffer_bytes_max = o->stream_buffer_bytes_max ? o->stream_buffer_bytes_max : (uint64_t)1 << 20;
    s->o.reply_bytes_total_max = o->reply_bytes_total_max ? o->reply_bytes_total_max : (uint64_t)256 << 20;
    s->o.api_keys = keep_list(s, o->api_keys, o->n_api_keys);
    s->o.cors_origins = keep_list(s, o->cors_origins, o->n_cors_origins);
    s->o.allowed_hosts = keep_list(s, o->allowed_hosts, o->n_allowed_hosts);
    s->key_bytes = calloc(o->n_api_keys + 1, sizeof *s->key_bytes);
    ASSERT(s->key_bytes);
    for (size_t i = 0; i < o->n_api_keys; i++) s->key_bytes[i] = strlen(o->api_keys[i]);
    s->reserve = (uint32_t)size_max(HTTP_RESERVE_MIN, s->o.connections_max / 8);
}

/* Two descriptors a connection must fit into the process's limit; it is raised as far as it goes. */
static bool check_descriptors(struct http_server *s, struct err *e) {
    struct rlimit limit;
    const uint64_t need = (uint64_t)FDS_PER_CONNECTION * (s->o.connections_max + s->reserve) + FDS_OTHER;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= need) return true;
    const rlim_t before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= need) return true;
    return err_set(e, ERR_BAD_VALUE,
                   "%u connections need %llu file descriptors, but this process may open only %llu.\nTake fewer "
                   "connections, or raise the limit (ulimit -n).",
                   s->o.connections_max, (unsigned long long)need,
                   (unsigned long long)(limit.rlim_max < need ? limit.rlim_max : before));
}

/* ---- listening ---- */

static int listen_on(const struct addrinfo *a, bool both_families) {
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1, off = 0;
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, both_families ? &off : &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    const int cause = errno;
    close(fd);
    errno = cause;
    return -1;
}

static bool open_listener(struct http_server *s, struct err *e) {
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    char port[8];
    snprintf(port, sizeof port, "%u", s->o.port);
    const int failed = getaddrinfo(s->o.host, port, &hints, &found);
    if (failed)
        return err_set(e, ERR_BAD_VALUE,
                       "The host '%.200s' is not an address of this machine: %s.\nUse 127.0.0.1, "
                       "0.0.0.0 or ::, or one of the machine's addresses.",
                       s->o.host, gai_strerror(failed));
    for (int family = 0; family < 2; family++) /* a name such as localhost means its IPv4 address, if it has one */
        for (const struct addrinfo *a = found; a && s->listen_fd < 0; a = a->ai_next)
            if ((a->ai_family == AF_INET) == (family == 0)) s->listen_fd = listen_on(a, strcmp(s->o.host, "::") == 0);
    const int cause = errno;
    freeaddrinfo(found);
    if (s->listen_fd < 0)
        return err_set(e, ERR_BAD_VALUE, "Cannot listen on %.200s port %u: %s.\n%s", s->o.host, s->o.port,
                       strerror(cause),
                       cause == EADDRINUSE ? "Another program has that port: stop it, or choose another port."
                                           : "Choose another host or port.");
    struct sockaddr_storage addr;
    socklen_t n = sizeof addr;
    ASSERT(getsockname(s->listen_fd, (struct sockaddr *)&addr, &n) == 0);
    s->port = ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                               : ((struct sockaddr_in *)&addr)->sin_port);
    return true;
}

/* ---- loops ---- */

static bool loop_open(struct http_server *s, struct http_loop *loop) {
    loop->server = s;
    loop->scan_ns = UINT64_MAX;
    loop->wake_source.kind = SOURCE_WAKE;
    loop->listen_source.kind = SOURCE_LISTEN;
    pthread_mutex_init(&loop->lock, NULL);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = &loop->wake_source};
    struct epoll_event listener = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = &loop->listen_source};
    loop->listening = true;
    return loop->epoll_fd >= 0 && loop->wake_fd >= 0 &&
           epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &wake) == 0 &&
           epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, s->listen_fd, &listener) == 0;
}

static bool start_loops(struct http_server *s, struct err *e) {
    sigset_t all, before;
    bool ok = true;
    s->loops = calloc(s->o.n_threads, sizeof *s->loops);
    ASSERT(s->loops);
    for (uint32_t i = 0; i < s->o.n_threads; i++) {
        s->loops[i].epoll_fd = s->loops[i].wake_fd = -1;
        ok = loop_open(s, &s->loops[i]) && ok;
    }
    if (!ok) return err_set(e, ERR_BAD_VALUE, "Cannot set up the HTTP threads: %s.\nRaise ulimit -n.", strerror(errno));
    atomic_store(&s->loops_listening, s->o.n_threads);
    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < s->o.n_threads; i++) {
        ASSERT(pthread_create(&s->loops[i].thread, NULL, http_loop_main, &s->loops[i]) == 0);
        pthread_setname_np(s->loops[i].thread, "http");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return true;
}

static void server_free(struct http_server *s) {
    for (uint32_t i = 0; s->loops && i < s->o.n_threads; i++) {
        if (s->loops[i].epoll_fd >= 0) close(s->loops[i].epoll_fd);
        if (s->loops[i].wake_fd >= 0) close(s->loops[i].wake_fd);
        pthread_mutex_destroy(&s->loops[i].lock);
    }
    free(s->loops);
    if (s->listen_fd >= 0) close(s->listen_fd);
    if (s->spare_fd >= 0) close(s->spare_fd);
    for (size_t i = 0; i < s->n_strings; i++) free(s->strings[i]);
    free(s->strings);
    free((void *)(uintptr_t)s->o.api_keys);
    free((void *)(uintptr_t)s->o.cors_origins);
    free((void *)(uintptr_t)s->o.allowed_hosts);
    free(s->key_bytes);
    pthread_mutex_destroy(&s->idle_lock);
    pthread_cond_destroy(&s->idle);
    free(s);
}

/* http_check.c knows how this version leaves a request head in memory; where another one differs, it refuses. */
static void check_library(void) {
    if (strcmp(MHD_get_version(), "0.9.75") != 0)
        log_warn("http", NULL, "libmicrohttpd is not the version this server was tested with: run the HTTP tests",
                 LOG_STR("version", MHD_get_version()), LOG_STR("tested", "0.9.75"));
}

struct http_server *http_server_open(const struct http_server_options *o, struct err *e) {
    struct http_server *s = calloc(1, sizeof *s);
    pthread_condattr_t monotonic;
    ASSERT(s);
    s->listen_fd = s->spare_fd = -1;
    pthread_mutex_init(&s->idle_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    fill_options(s, o);
    check_library();
    signal(SIGPIPE, SIG_IGN); /* libmicrohttpd writes in our threads without asking for EPIPE everywhere */
    s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (check_descriptors(s, e) && open_listener(s, e) && start_loops(s, e)) return s;
    server_free(s);
    return NULL;
}

uint16_t http_server_port(const struct http_server *s) {
    return s->port;
}

/* ---- the end ---- */

void http_server_notify(struct http_server *s) {
    pthread_mutex_lock(&s->idle_lock);
    pthread_cond_broadcast(&s->idle);
    pthread_mutex_unlock(&s->idle_lock);
}

void http_server_handle_done(struct http_server *s) {
    pthread_mutex_lock(&s->idle_lock);
    if (--s->handles == 0) pthread_cond_broadcast(&s->idle);
    pthread_mutex_unlock(&s->idle_lock);
}

static void wake_all(struct http_server *s) {
    for (uint32_t i = 0; i < s->o.n_threads; i++) http_loop_wake(&s->loops[i]);
}

static struct timespec after_ms(uint32_t ms) {
    const uint64_t ns = time_now_ns() + (uint64_t)ms * 1000000u;
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

bool http_server_drain(struct http_server *s, uint32_t timeout_ms) {
    const struct timespec deadline = after_ms(timeout_ms);
    atomic_store(&s->draining, true);
    wake_all(s);
    pthread_mutex_lock(&s->idle_lock);
    int timed_out = 0;
    while (atomic_load(&s->loops_listening) > 0) pthread_cond_wait(&s->idle, &s->idle_lock); /* microseconds */
    if (s->listen_fd >= 0) {
        close(s->listen_fd);
        s->listen_fd = -1;
    }
    while (atomic_load(&s->requests) > 0 && timed_out == 0)
        timed_out = pthread_cond_timedwait(&s->idle, &s->idle_lock, &deadline);
    const bool done = atomic_load(&s->requests) == 0;
    pthread_mutex_unlock(&s->idle_lock);
    return done;
}

void http_server_close(struct http_server *s) {
    if (!s) return;
    atomic_store(&s->stopping, true);
    wake_all(s);
    for (uint32_t i = 0; i < s->o.n_threads; i++) pthread_join(s->loops[i].thread, NULL);
    pthread_mutex_lock(&s->idle_lock);
    while (s->handles > 0) pthread_cond_wait(&s->idle, &s->idle_lock);
    pthread_mutex_unlock(&s->idle_lock);
    server_free(s);
}

void http_server_stats(const struct http_server *s, struct http_server_stats *out) {
    *out = (struct http_server_stats){
        .connections = atomic_load(&s->connections),
        .requests = atomic_load(&s->requests),
        .body_bytes = atomic_load_explicit(&s->body_bytes, memory_order_relaxed),
        .reply_bytes = atomic_load_explicit(&s->reply_bytes, memory_order_relaxed),
        .accepted = atomic_load_explicit(&s->accepted, memory_order_relaxed),
        .refused = atomic_load_explicit(&s->refused, memory_order_relaxed),
        .bad_requests = atomic_load_explicit(&s->bad_requests, memory_order_relaxed),
        .gone = atomic_load_explicit(&s->gone, memory_order_relaxed),
        .timeouts = atomic_load_explicit(&s->timeouts, memory_order_relaxed),
    };
}
