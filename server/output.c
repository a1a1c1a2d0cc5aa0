/* output.c - the output thread's loop: engine events in, replies out.
 *
 * Owner: the output thread, but for the inbox and the atomics. Invariants
 * 1. A generation is in `all` from its taking out of the inbox until its closing, and nowhere else.
 * 2. n_live counts those in the inbox and in `all`.
 * 3. With nothing live the thread sleeps without a time-out; otherwise it looks at the engine's heartbeat every second.
 */
#include "server/output.h"
#include "server/generation.h"
#include "server/server.h"

#include <stdlib.h>
#include <time.h>

enum { EVENTS_MAX = 256, STALL_CHECK_MS = 1000 };

void output_init(struct output *o, struct server *s) {
    *o = (struct output){.server = s};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&o->is_closed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&o->mutex, NULL);
}

bool output_push(struct output *o, struct generation *g) {
    pthread_mutex_lock(&o->mutex);
    if (o->closed) {
        pthread_mutex_unlock(&o->mutex);
        return false;
    }
    atomic_fetch_add(&o->n_live, 1);
    if (o->inbox_last) {
        o->inbox_last->next_inbox = g;
    } else {
        o->inbox_first = g;
    }
    o->inbox_last = g;
    pthread_mutex_unlock(&o->mutex);
    engine_wake(o->server->engine);
    return true;
}

/* Pairs with the load in gone_check: the generation's flag is set before. */
void output_notice_gone(struct output *o) {
    atomic_fetch_add(&o->n_gone, 1);
    engine_wake(o->server->engine);
}

uint32_t output_count(struct output *o) {
    return atomic_load(&o->n_live);
}

static void list_add(struct output *o, struct generation *g) {
    g->prev = NULL;
    g->next = o->all;
    if (o->all) o->all->prev = g;
    o->all = g;
}

static void close_if_over(struct output *o, struct generation *g) {
    if (!generation_over(g)) return;
    if (g->prev) g->prev->next = g->next;
    if (g->next) g->next->prev = g->prev;
    if (o->all == g) o->all = g->next;
    generation_close(g);
    atomic_fetch_sub(&o->n_live, 1);
}

static void inbox_take(struct output *o) {
    pthread_mutex_lock(&o->mutex);
    struct generation *g = o->inbox_first;
    o->inbox_first = o->inbox_last = NULL;
    pthread_mutex_unlock(&o->mutex);
    while (g) {
        struct generation *next = g->next_inbox;
        list_add(o, g);
        if (atomic_load_explicit(&g->gone, memory_order_acquire)) {
            generation_drop(g);
        } else {
            generation_submit(g);
        }
        close_if_over(o, g);
        g = next;
    }
}

static void gone_check(struct output *o) {
    unsigned n_gone = atomic_load(&o->n_gone);
    if (n_gone == o->n_gone_seen) return;
    o->n_gone_seen = n_gone;
    for (struct generation *g = o->all; g;) {
        struct generation *next = g->next;
        if (atomic_load_explicit(&g->gone, memory_order_acquire)) generation_drop(g);
        close_if_over(o, g);
        g = next;
    }
}

static void fail_all(struct output *o, const struct err *e) {
    for (struct generation *g = o->all; g;) {
        struct generation *next = g->next;
        generation_fail(g, e);
        close_if_over(o, g);
        g = next;
    }
}

static void stall_check(struct output *o) {
    uint64_t now = time_now_ns();
    if (!o->all || now - o->stall_check_ns < (uint64_t)STALL_CHECK_MS * 1000000u) return;
    o->stall_check_ns = now;
    if (!server_is_stalled(o->server)) return;
    struct err e;
    err_set(&e, ERR_OVERLOADED, "The engine does not answer; the request can be sent to another replica.");
    fail_all(o, &e);
}

static void events_handle(struct output *o, struct engine_event *events, size_t n) {
    struct generation *to_flush = NULL;
    for (size_t i = 0; i < n; i++) {
        struct choice *c = events[i].request->user;
        struct generation *g = c->generation;
        generation_event(g, c, &events[i]);
        free(events[i].logprobs);
        if (g->queued_flush) continue;
        g->queued_flush = true;
        g->next_flush = to_flush;
        to_flush = g;
    }
    while (to_flush) {
        struct generation *g = to_flush;
        to_flush = g->next_flush;
        g->queued_flush = false;
        generation_flush(g);
        close_if_over(o, g);
    }
}

/* True when nothing is left; then nothing can come any more. */
static bool stop_check(struct output *o) {
    if (!atomic_load(&o->stop)) return false;
    struct err e;
    err_set(&e, ERR_OVERLOADED, "The server is stopping; the request can be sent again.");
    fail_all(o, &e);
    pthread_mutex_lock(&o->mutex);
    o->closed = !o->all && !o->inbox_first;
    bool closed = o->closed;
    if (closed) pthread_cond_signal(&o->is_closed);
    pthread_mutex_unlock(&o->mutex);
    return closed;
}

static void *output_main(void *arg) {
    struct output *o = arg;
    struct engine_event *events = calloc(EVENTS_MAX, sizeof *events);
    ASSERT(events); /* at start only */
    for (;;) {
        inbox_take(o);
        gone_check(o);
        if (stop_check(o)) break;
        size_t n = engine_poll(o->server->engine, events, EVENTS_MAX, o->all ? STALL_CHECK_MS : -1);
        events_handle(o, events, n);
        stall_check(o);
    }
    free(events);
    return NULL;
}

bool output_open(struct output *o, struct err *e) {
    if (pthread_create(&o->thread, NULL, output_main, o) != 0) return err_set(e, ERR_INTERNAL, "No thread for output.");
    o->running = true;
    return true;
}

bool output_close(struct output *o, uint32_t timeout_ms) {
    if (!o->running) return true;
    atomic_store(&o->stop, true);
    engine_wake(o->server->engine);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&o->mutex);
    int late = 0;
    while (!o->closed && !late) late = pthread_cond_timedwait(&o->is_closed, &o->mutex, &until);
    bool closed = o->closed;
    pthread_mutex_unlock(&o->mutex);
    if (!closed) return false;
    pthread_join(o->thread, NULL);
    o->running = false;
    return true;
}

void output_free(struct output *o) {
    pthread_cond_destroy(&o->is_closed);
    pthread_mutex_destroy(&o->mutex);
}
