/* lifecycle.c - listening, loading, and stopping on signals.
 *
 * The main thread owns the state and waits for signals in a signalfd; loading has its own thread, so that a signal
 * during it is answered at once. SIGTERM, SIGINT and SIGHUP: the first one drains, the second one ends the drain.
 *
 *   open: HTTP listens -> loading thread: engine, output thread, READY -> first signal: DRAINING, running
 *   requests finish -> output thread answers what is left -> replies are flushed -> HTTP closes -> engine closes
 */
#include "server/server.h"

#include "common/log.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_LOOK_MS = 20, ABORT_MS = 3000, FLUSH_MS = 2000 };

struct loading {
    struct server *server;
    pthread_t thread;
    int fd;  /* eventfd: written when done */
    bool ok; /* read after fd */
    struct err err;
};

static void *load_main(void *arg) {
    struct loading *l = arg;
    struct server *s = l->server;
    struct engine_options o;
    server_engine_options(s, &o);
    s->engine = engine_open(&o, &l->err);
    if (s->engine) {
        s->model.n_vocab = engine_info(s->engine)->n_vocab;
        s->model.tokenizer = engine_tokenizer(s->engine);
        stats_loaded(s);
        l->ok = output_open(&s->output, &l->err);
    }
    if (l->ok) {
        atomic_store_explicit(&s->state, SERVER_READY, memory_order_release);
        progress_ready(s);
    }
    uint64_t one = 1;
    while (write(l->fd, &one, sizeof one) < 0) {
    } /* an eventfd takes it; only a signal can interrupt */
    return NULL;
}

static void error_print(const struct err *e) {
    fprintf(stderr, "choird: %s\n", e->message);
}

/* Threads inherit the mask, so that only the signalfd sees these signals. */
static int signals_open(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static bool signal_taken(int fd) {
    struct signalfd_siginfo info;
    return read(fd, &info, sizeof info) == (ssize_t)sizeof info;
}

/* Until a signal comes or loading is over: true for a signal. */
static bool wait_either(int signal_fd, int load_fd) {
    for (;;) {
        struct pollfd fds[2] = {{.fd = signal_fd, .events = POLLIN}, {.fd = load_fd, .events = POLLIN}};
        poll(fds, 2, -1);
        if (signal_taken(signal_fd)) return true;
        if (fds[1].revents) return false;
    }
}

static void drain_wait(struct server *s, int signal_fd) {
    uint64_t until = time_now_ns() + s->options.shutdown_timeout;
    log_info("server", NULL, "draining", LOG_U64("requests", output_count(&s->output)),
             LOG_F64("timeout_seconds", (double)s->options.shutdown_timeout / 1e9));
    while (output_count(&s->output) > 0 && time_now_ns() < until) {
        struct pollfd fd = {.fd = signal_fd, .events = POLLIN};
        poll(&fd, 1, DRAIN_LOOK_MS);
        if (signal_taken(signal_fd)) break;
    }
}

static int stop(struct server *s, int signal_fd) {
    atomic_store_explicit(&s->state, SERVER_DRAINING, memory_order_release);
    drain_wait(s, signal_fd);
    uint32_t n_cut = output_count(&s->output);
    if (!output_close(&s->output, ABORT_MS)) {
        log_error("server", NULL, "the engine does not end its requests; exiting without it");
        _exit(1);
    }
    http_server_drain(s->http, FLUSH_MS);
    http_server_close(s->http);
    output_free(&s->output);
    engine_close(s->engine);
    log_info("server", NULL, "stopped", LOG_U64("requests_cut", n_cut));
    return 0;
}

static int load_failed(struct server *s, const struct err *e) {
    if (s->on_terminal) fputc('\n', stderr);
    error_print(e);
    http_server_close(s->http);
    if (s->engine) engine_close(s->engine);
    return 1;
}

static bool http_open(struct server *s, struct err *e) {
    struct http_server_options o;
    server_http_options(s, &o);
    s->http = http_server_open(&o, e);
    return s->http != NULL;
}

int server_run(struct server *s) {
    struct err e;
    int signal_fd = signals_open();
    struct loading l = {.server = s, .fd = eventfd(0, EFD_CLOEXEC)};
    ASSERT(signal_fd >= 0 && l.fd >= 0);
    s->created = (int64_t)time(NULL);
    output_init(&s->output, s);
    if (!http_open(s, &e)) {
        error_print(&e);
        return 1;
    }
    progress_open(s);
    if (pthread_create(&l.thread, NULL, load_main, &l) != 0) abort();
    if (wait_either(signal_fd, l.fd)) {
        /* Reading a model cannot be interrupted; nothing is being served, so nothing is lost. */
        http_server_close(s->http);
        log_info("server", NULL, "stopped while loading");
        _exit(0);
    }
    pthread_join(l.thread, NULL);
    if (!l.ok) return load_failed(s, &l.err);
    while (!signal_taken(signal_fd)) {
        struct pollfd fd = {.fd = signal_fd, .events = POLLIN};
        poll(&fd, 1, -1);
    }
    int status = stop(s, signal_fd);
    close(signal_fd);
    close(l.fd);
    return status;
}
