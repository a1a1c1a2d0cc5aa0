/* batching.h - which sequence computes how many tokens in the next step. Policy only: it sees ids, counts and
 * the KV bookkeeping, no tensors and no clock of its own, so that the simulator runs the very same code.
 *
 * State of a sequence:
 *
 *   sched_add         sched_plan           sched_commit          sched_remove
 *   --------> WAITING ---------> PREFILL ------------> DECODE ---------------------> (gone)
 *                ^                  |                     |
 *                +------ preempt (recompute) -------------+
 *   sched_remove leaves from every state, within one step.
 *
 * A step: decodes first (one token each), then prefill chunks share the rest of the token budget in order of
 * (priority, arrival). When KV runs out the lowest-priority, latest sequence is preempted: its blocks are released
 * and it goes back to WAITING with all its tokens; it recomputes to the same bits. A sequence can always run alone
 * (checked at sched_add), so the best-ranked one always makes progress. The policy in full: batching.c, plan.c.
 *
 * The engine's loop: sched_add and sched_remove as messages ask; sched_plan; forward; sched_commit; then for each
 * entry that samples: append to tokens and n_tokens++, or sched_remove. A sequence that gets neither (n_tokens stays
 * at n_computed) is left out of plans until it has a token more. Neither sched_remove nor a second sched_plan may
 * come between a sched_plan that returned work and its sched_commit.
 *
 * Owner: the engine thread (or the simulator).
 */
#ifndef CHOIR_BATCHING_H
#define CHOIR_BATCHING_H

#include "engine/kvcache/kvcache.h"

enum { SCHED_SEQS_MAX = KV_SEQS_MAX, SCHED_QUEUE_MAX = 1 << 24 };

struct sched_options {
    uint32_t max_batch_tokens; /* budget of a step */
    uint32_t max_seqs;         /* sequences in a step; also bounded by max_batch_tokens */
    uint32_t max_model_len;
    uint32_t queue_max_requests; /* waiting sequences, followers included */
    uint64_t queue_max_tokens;   /* tokens of waiting sequences; 0: no bound. An empty queue takes any one request */
};

enum seq_state { SEQ_NONE, SEQ_WAITING, SEQ_PREFILL, SEQ_DECODE };

/* One sequence. The caller allocates it zeroed and owns tokens (capacity max_tokens_total); the scheduler owns
 * the fields below the line until sched_remove. */
struct seq {
    int32_t *tokens;           /* prompt, then output as it is sampled */
    uint32_t n_tokens;         /* known tokens; the engine appends the sampled one after sched_commit */
    uint32_t n_prompt;         /* >= 1, <= n_tokens */
    uint32_t max_tokens_total; /* n_prompt + max_tokens */
    int priority;              /* lower is sooner (vLLM's convention) */
    uint64_t salt;
    uint32_t rows_max;   /* prefill rows of a step, where each costs more than usual; 0: the budget */
    bool no_prefix_read; /* prompt log-probabilities need every position computed */
    struct seq *leader;  /* waits until the leader has computed its prompt (n > 1 shares it) or has left; NULL:
                            none. Read by sched_add only, so it cannot dangle later */
    void *user;
    /* ---- the scheduler's: read only ---- */
    enum seq_state state;
    uint64_t arrival;
    int kv_seq;          /* -1 while waiting */
    uint32_t n_computed; /* positions whose K and V are in the cache */
    uint32_t n_cached;   /* of the first admission: prompt tokens that came from the prefix cache */
    uint32_t n_preempted;
    bool admitted; /* at least once: n_cached is known */
    /* ---- the scheduler's: private ---- */
    uint32_t index;     /* in the waiting heap or the running array */
    uint32_t n_planned; /* rows in the plan being made */
    struct seq *awaits; /* a leader, chosen by the caller or found, until it has computed awaits_tokens */
    uint32_t awaits_tokens;
    struct seq *followers; /* those that await this one */
    struct seq *follow_next, *follow_prev;
    struct seq *next, *prev; /* every sequence in the scheduler */
};

struct sched;
/* kv must have room for max_seqs sequences of max_model_len. NULL with *e (LOAD) on a bad option. */
struct sched *sched_open(const struct sched_options *o, struct kv *kv, struct err *e);
void sched_close(struct sched *s); /* its sequences must have been removed */

/* ERR_CONTEXT_LENGTH: could never run here. ERR_QUEUE_FULL: the bounded queue is full. */
bool sched_add(struct sched *s, struct seq *q, struct err *e);
void sched_remove(struct sched *s, struct seq *q); /* cancel or finish, from any state; SEQ_NONE: no effect */

/* One row group of the step: positions [pos0, pos0 + n_rows) of seq. samples: its last row ends the known tokens,
 * so its logits give the next one. */
struct step_seq {
    struct seq *seq;
    uint32_t pos0, n_rows;
    bool samples;
};
struct step_plan {
    struct step_seq *seqs; /* capacity max_seqs; decodes first */
    uint32_t n_seqs;
    uint32_t n_tokens;
    uint32_t n_preempted;
};
/* Decides the next step and grows KV for it. n_seqs 0: nothing to do. The plan belongs to the scheduler and stays
 * as it is until the next sched_plan; after sched_remove its pointer to that sequence is the caller's business. */
const struct step_plan *sched_plan(struct sched *s);
/* The plan was computed (before the engine appends sampled tokens and removes finished sequences). */
void sched_commit(struct sched *s);

struct sched_stats {
    uint32_t n_waiting, n_running;
    uint64_t waiting_tokens;
    uint64_t preemptions;
};
void sched_stats_get(const struct sched *s, struct sched_stats *out);
/* Any sequence in the scheduler (to remove them all at a stop), or NULL. */
struct seq *sched_any(const struct sched *s);
/* Invariants over queues, states and the KV holds (not kv_check's own). */
bool sched_check(const struct sched *s, struct err *e);

#endif
