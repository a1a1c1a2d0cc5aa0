/* plan.c - one step: who computes how many rows, and what changes when they are computed.
 *
 * The rules are in batching.c ("Budget", "Pages"). Running sequences are walked once in rank order; whoever is
 * preempted on the way stands at the end of that order and was not served yet, so nothing is ever taken back.
 *
 * Owner: the engine thread.
 */
#include "engine/batching/batching_int.h"

/* Sets n_planned of each prefill to the rows that its own class behind it could use. Returns the rows of decodes. */
static uint32_t demand_count(struct sched *s) {
    uint32_t n_decodes = 0;
    uint64_t rows_behind = 0;
    for (uint32_t i = s->n_running; i-- > 0;) {
        struct seq *q = s->running[i];
        if (i + 1 < s->n_running && s->running[i + 1]->priority != q->priority) rows_behind = 0;
        if (is_decode(q)) {
            n_decodes += rows_left(q);
        } else {
            q->n_planned = (uint32_t)size_min(rows_behind, UINT32_MAX);
            rows_behind += rows_left(q);
        }
    }
    return n_decodes;
}

/* Room for up to n_rows more positions of q, at least one unless it must stall. Returns how many. */
static uint32_t grow(struct sched *s, struct seq *q, uint32_t n_rows) {
    if (n_rows == 0) return 0;
    while (!kv_can_grow(s->kv, q->kv_seq, q->n_computed + 1)) {
        if (s->running[s->n_running - 1] == q) return 0;
        preempt_worst(s);
    }
    uint32_t n_tokens = kv_grow_max(s->kv, q->kv_seq, q->n_computed + n_rows);
    kv_grow(s->kv, q->kv_seq, n_tokens);
    return n_tokens - q->n_computed;
}

static void plan_append(struct sched *s, struct seq *q) {
    if (q->n_planned == 0) return;
    s->plan.seqs[s->plan.n_seqs++] = (struct step_seq){
        .seq = q,
        .pos0 = q->n_computed,
        .n_rows = q->n_planned,
        .samples = q->n_computed + q->n_planned == q->n_tokens,
    };
    s->plan.n_tokens += q->n_planned;
}

const struct step_plan *sched_plan(struct sched *s) {
    ASSERT(!s->in_step);
    s->plan.n_seqs = s->plan.n_tokens = s->plan.n_preempted = 0;
    admit(s);
    uint32_t left = s->o.max_batch_tokens - demand_count(s);
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct seq *q = s->running[i];
        if (is_decode(q)) {
            q->n_planned = grow(s, q, rows_left(q));
            continue;
        }
        uint32_t yield = q->n_planned < left / 2 ? q->n_planned : left / 2;
        uint32_t n_rows = rows_left(q) < left - yield ? rows_left(q) : left - yield;
        if (q->rows_max && n_rows > q->rows_max) n_rows = q->rows_max;
        q->n_planned = grow(s, q, n_rows);
        left -= q->n_planned;
    }
    for (uint32_t i = 0; i < s->n_running; i++)
        if (is_decode(s->running[i])) plan_append(s, s->running[i]);
    for (uint32_t i = 0; i < s->n_running; i++)
        if (!is_decode(s->running[i])) plan_append(s, s->running[i]);
    s->in_step = s->plan.n_seqs > 0;
    return &s->plan;
}

void sched_commit(struct sched *s) {
    if (!s->in_step) return;
    for (uint32_t i = 0; i < s->plan.n_seqs; i++) {
        struct seq *q = s->plan.seqs[i].seq;
        q->n_computed += s->plan.seqs[i].n_rows;
        kv_commit(s->kv, q->kv_seq, q->tokens, q->n_computed);
        if (q->n_computed == q->n_tokens) q->state = SEQ_DECODE;
        if (q->followers) followers_release(s, q, q->n_computed);
    }
    s->in_step = false;
}
