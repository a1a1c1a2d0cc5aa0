/* batching_int.h - the record behind batching.h, shared by the files of this folder. */
#ifndef CHOIR_BATCHING_INT_H
#define CHOIR_BATCHING_INT_H

#include "engine/batching/batching.h"

struct sched {
    struct sched_options o;
    struct kv *kv;
    uint32_t slots; /* sequences that may run at once: each decode must find a token in the budget */

    struct seq **heap; /* [queue_max_requests + slots]: waiting, best rank at 0 */
    uint32_t n_heap;
    uint32_t n_followers; /* waiting for another sequence, not in the heap */
    uint64_t waiting_tokens;
    struct seq **running; /* [slots]: best rank first */
    uint32_t n_running;
    struct seq *all; /* every sequence, newest first */

    uint64_t n_arrivals;
    uint64_t n_preemptions;
    struct step_plan plan;
    bool in_step; /* between a plan with work and its commit */

    /* The last head that pages were too short for: not asked again until something changed. */
    uint64_t refused_arrival, refused_epoch;
    uint32_t refused_running;
};

/* Total order over sequences, constant for each of them: priority, then arrival. */
static inline bool ranks_before(const struct seq *a, const struct seq *b) {
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

/* Rows that are known and not computed. */
static inline uint32_t rows_left(const struct seq *q) {
    return q->n_tokens - q->n_computed;
}

static inline bool is_decode(const struct seq *q) {
    return q->state == SEQ_DECODE && rows_left(q) <= 1;
}

/* ---- queue.c ---- */

void heap_push(struct sched *s, struct seq *q);
void heap_remove(struct sched *s, struct seq *q);
void running_insert(struct sched *s, struct seq *q);
void running_remove(struct sched *s, struct seq *q);
/* Whole blocks of tokens with which both begin and which q could reuse, in tokens. */
uint32_t tokens_shared(const struct seq *leader, const struct seq *q);
/* q, in no list, waits until the leader has computed n_tokens or has left. */
void follow_begin(struct sched *s, struct seq *q, struct seq *leader, uint32_t n_tokens);
void follow_end(struct sched *s, struct seq *q);
/* Those who waited for no more than n_tokens of q join the heap. */
void followers_release(struct sched *s, struct seq *q, uint32_t n_tokens);

/* ---- batching.c ---- */

/* The worst-ranked running sequence gives its blocks back and waits again. */
void preempt_worst(struct sched *s);

/* ---- admit.c ---- */

/* Moves waiting sequences to the running ones, as far as the policy there allows. */
void admit(struct sched *s);

#endif
