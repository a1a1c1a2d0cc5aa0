/* output.h - the output thread: the one consumer of the engine's events.
 *
 * It owns every generation from the hand-over to the end, so none of them has a lock. HTTP threads hand them over
 * through the inbox and wake it; it sleeps in engine_poll when there is nothing to do.
 */
#ifndef CHOIR_SERVER_OUTPUT_H
#define CHOIR_SERVER_OUTPUT_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/err.h"

struct server;
struct generation;

struct output {
    struct server *server;
    pthread_t thread;
    bool running;
    pthread_mutex_t mutex; /* guards inbox_first, inbox_last, closed */
    struct generation *inbox_first, *inbox_last;
    bool closed;              /* the thread takes nothing more, and ends */
    pthread_cond_t is_closed; /* CLOCK_MONOTONIC */
    atomic_uint n_live;       /* generations handed over and not closed: what a drain waits for */
    atomic_uint n_gone;       /* times that a client left; a change makes the thread look for it */
    atomic_bool stop;         /* fail what is left, and return when all is closed */
    /* the thread's own */
    struct generation *all;
    unsigned n_gone_seen;
    uint64_t stall_check_ns;
};

void output_init(struct output *o, struct server *s);
/* After the engine is open. */
bool output_open(struct output *o, struct err *e);
/* From HTTP threads, once output_open has returned. False: the thread has ended, the generation is still the caller's.
 */
bool output_push(struct output *o, struct generation *g);
void output_notice_gone(struct output *o);
uint32_t output_count(struct output *o);
/* Answers what is left with 503 and waits for the thread, at most timeout_ms; false: the engine does not end its
 * requests. */
bool output_close(struct output *o, uint32_t timeout_ms);
void output_free(struct output *o); /* once nobody can push any more */

#endif
