/* engine_int.h - state shared by engine.c (life, memory plan, mailboxes) and step.c (the engine thread). */
#ifndef CHOIR_ENGINE_INT_H
#define CHOIR_ENGINE_INT_H

#include "engine/engine.h"
#include "engine/batching/batching.h"
#include "engine/model/model.h"

#include <pthread.h>
#include <stdatomic.h>

/* The engine's side of one request, from submit to its last event. */
struct job {
    struct engine_request *r;
    struct seq seq;
    int32_t *barred;          /* ids that cannot be drawn while under min_tokens: end tokens and stop ids */
    uint32_t n_barred;
    uint32_t n_prompt_logprobs_done; /* prompt positions reported, so that a recomputation does not repeat them */
    uint32_t n_queued;        /* tokens it counts for in the bounded queue: a follower shares its leader's */
    bool started;
    struct job *next, *prev;  /* live.c: bucket */
    uint32_t heap_at;         /* live.c: place among the deadlines */
};

/* What other threads ask of the engine thread, in order. */
struct message {
    enum { MESSAGE_SUBMIT, MESSAGE_CANCEL } kind;
    struct engine_request *r;
    struct job *job; /* SUBMIT */
};

/* One row of logits of the current step and who wants it. */
struct row_use {
    struct job *job;
    uint32_t row;
    uint32_t position; /* of the row in its sequence */
    bool samples;      /* else: log-probability of the prompt token that follows */
};

enum { LIVE_BUCKET_BITS = 14, LIVE_BUCKETS = 1 << LIVE_BUCKET_BITS };

/* Every job between its submit message and its last event (live.c). */
struct live {
    struct job **buckets; /* [LIVE_BUCKETS] by address of the request */
    uint32_t n;
    struct job **heap;    /* [n_heap] those with a deadline, earliest first */
    uint32_t n_heap, heap_cap;
};

struct engine {
    struct engine_options o;
    struct engine_info info;
    struct kernels *k;
    struct tp *tp;
    struct model *model;
    struct tokenizer *tokenizer;
    struct kv *kv;
    struct sched *sched;
    int32_t *eog; /* end tokens of the vocabulary */
    uint32_t n_eog;

    pthread_t thread;
    bool thread_started;

    pthread_mutex_t inbox_mu; /* guards inbox, n_inbox, inbox_cap, queued_*, stopping */
    pthread_cond_t inbox_cond;
    struct message *inbox;
    size_t n_inbox, inbox_cap;
    uint32_t queued_requests; /* waiting in the scheduler or in the inbox */
    uint64_t queued_tokens;
    bool stopping;

    pthread_mutex_t out_mu; /* guards out, out_at, n_out, out_cap, woken, stats */
    pthread_cond_t out_cond;
    struct engine_event *out;
    size_t out_at, n_out, out_cap; /* out[out_at .. n_out) wait */
    bool woken;
    struct engine_stats stats;

    /* ---- the engine thread's ---- */
    struct live live;
    struct message *taken; /* [taken_cap] the inbox of this round */
    size_t taken_cap;
    struct engine_event *pending; /* events of this step */
    size_t n_pending, pending_cap;
    struct engine_stats now; /* published once a step */
    struct model_batch batch;
    int32_t *ids;
    uint32_t *positions;
    struct model_batch_seq *batch_seqs;
    struct row_use *uses; /* [max_batch_tokens] */
    uint32_t n_uses;
    uint32_t *rows;                 /* [n_logit_rows_max] */
    struct sample_output *samples;  /* [max_batch_tokens] */
    uint32_t n_logit_rows_max;
    struct sampler **samplers;      /* [n_samplers], taken by index */
    atomic_flag *sampler_busy;      /* [n_samplers] acquire on take pairs with release on give */
    uint32_t n_samplers;
    uint64_t kernel_ns;
    uint64_t checked_ns;            /* of the last integrity walk */
};

/* live.c */
bool live_open(struct live *l);
void live_close(struct live *l);
void live_add(struct live *l, struct job *j);
void live_remove(struct live *l, struct job *j);
struct job *live_find(const struct live *l, const struct engine_request *r); /* NULL: ended, or r is NULL */
struct job *live_any(const struct live *l);
struct job *live_overdue(const struct live *l); /* the earliest deadline, if it has passed */

/* step.c */
void *engine_thread(void *engine);
/* Memory for one step; false when there is none. */
bool engine_step_alloc(struct engine *g);
void engine_step_free(struct engine *g);

#endif
