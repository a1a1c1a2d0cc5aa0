/* batching.c - sequences come and go: the bounded queue, removal from every state, preemption.
 *
 * The policy, in the order in which a step applies it (admit.c, plan.c):
 *
 *  Rank. Sequences are ordered by (priority, arrival). Arrival is counted at sched_add and never changes, so a
 *  preempted sequence returns to the front of its class, where it came from.
 *
 *  Admission (admit.c), best rank first; the first that must wait makes all behind it wait, so that a large request is
 *  not passed for ever by small ones. A sequence is admitted when a slot is free, when its prefill would get tokens of
 *  this step, and when the pages for all of its known tokens, over and above what the running prefills have yet to
 *  take and one more block for every running sequence, are available now; a sequence just preempted therefore does not
 *  come back only to be preempted again. When nothing runs, the best-ranked is admitted unconditionally. Running
 *  sequences of strictly lower priority are preempted for it if that helps; those of its own class never.
 *
 *  Waiting for what another computes. A sequence whose next blocks a better-ranked one is computing right now waits
 *  for that one (and so does one that names a leader), then takes them from the cache: of a burst with a common
 *  prefix, that prefix is computed once.
 *
 *  Budget (plan.c). Every decode gets its token. The rest goes to prefills by rank; one yields up to half of what is
 *  left to its own class behind it, so that a long prompt does not keep short ones waiting.
 *
 *  Pages (plan.c). Running sequences grow in rank order. One that finds no page for its next token takes them from the
 *  worst-ranked running sequence, again and again; if it is the worst itself, it stalls and keeps what it has.
 *
 * Progress. The best-ranked running sequence is served first and can have every page that it does not hold itself;
 * sched_add refused it if it did not fit alone; so it computes at least one token in every step, and no other sequence
 * of its class, nor a worse one, can make it lose one. It therefore ends. While it runs, or when it has ended, the
 * head of the queue is the next to be admitted, at the latest when nothing runs. So every sequence ends, unless better
 * priorities keep arriving.
 *
 * Owner: the engine thread.
 *
 * Invariants
 *  1. Every sequence is in exactly one place: heap, follower list of another one, or running (queue.c).
 *  2. kv_seq >= 0 exactly while running; n_computed is 0 while waiting.
 *  3. heap + followers + running <= queue_max_requests + slots, so the arrays never overflow.
 *  4. Whoever is awaited is in the scheduler: leaving releases the followers.
 */
#include "engine/batching/batching_int.h"

#include <stdlib.h>

struct sched *sched_open(const struct sched_options *o, struct kv *kv, struct err *e) {
    uint32_t slots = o->max_seqs < o->max_batch_tokens ? o->max_seqs : o->max_batch_tokens;
    if (slots < 1 || o->max_seqs > SCHED_SEQS_MAX || o->queue_max_requests < 1 ||
        o->queue_max_requests > SCHED_QUEUE_MAX) {
        err_set(e, ERR_LOAD, "scheduler: %u tokens and %u sequences a step (1 to %d), a queue of %u requests (1 to %d)",
                o->max_batch_tokens, o->max_seqs, SCHED_SEQS_MAX, o->queue_max_requests, SCHED_QUEUE_MAX);
        return NULL;
    }
    if (o->max_model_len < 1 || o->max_model_len > kv_tokens_max(kv)) {
        err_set(e, ERR_LOAD, "scheduler: a context of %u tokens; 1 to %u are possible", o->max_model_len,
                kv_tokens_max(kv));
        return NULL;
    }
    if (slots > kv_seqs_max(kv)) {
        err_set(e, ERR_LOAD, "scheduler: %u sequences a step, the KV cache has room for %u", slots, kv_seqs_max(kv));
        return NULL;
    }
    struct sched *s = calloc(1, sizeof *s);
    if (s) {
        s->o = *o;
        s->kv = kv;
        s->slots = slots;
        s->heap = calloc((size_t)o->queue_max_requests + slots, sizeof *s->heap);
        s->running = calloc(slots, sizeof *s->running);
        s->plan.seqs = calloc(slots, sizeof *s->plan.seqs);
    }
    if (!s || !s->heap || !s->running || !s->plan.seqs) {
        sched_close(s);
        err_set(e, ERR_LOAD, "scheduler: not enough memory for a queue of %u requests", o->queue_max_requests);
        return NULL;
    }
    return s;
}

void sched_close(struct sched *s) {
    if (!s) return;
    ASSERT(!s->all);
    free(s->heap);
    free(s->running);
    free(s->plan.seqs);
    free(s);
}

/* Positions that it may compute: the last token of the output is never fed back. */
static uint32_t positions_max(const struct seq *q) {
    return q->max_tokens_total > q->n_tokens ? q->max_tokens_total - 1 : q->n_tokens;
}

static bool can_ever_run(const struct sched *s, const struct seq *q, struct err *e) {
    if (q->max_tokens_total > s->o.max_model_len)
        return err_set(e, ERR_CONTEXT_LENGTH,
                       "This model's maximum context length is %u tokens. However, you requested %u tokens "
                       "(%u in the prompt, %u in the completion).",
                       s->o.max_model_len, q->max_tokens_total, q->n_prompt, q->max_tokens_total - q->n_prompt);
    struct kv_stats kv;
    kv_stats_get(s->kv, &kv);
    if (kv_pages_span(s->kv, 0, positions_max(q), 1) > kv.pages_total)
        return err_set(e, ERR_CONTEXT_LENGTH,
                       "The %u requested tokens (%u in the prompt, %u in the completion) do not fit into the "
                       "KV memory of this server.",
                       q->max_tokens_total, q->n_prompt, q->max_tokens_total - q->n_prompt);
    return true;
}

static bool queue_has_room(const struct sched *s, const struct seq *q, struct err *e) {
    uint32_t n_waiting = s->n_heap + s->n_followers;
    if (n_waiting >= s->o.queue_max_requests)
        return err_set(e, ERR_QUEUE_FULL, "%u requests are waiting already; try again later.", n_waiting);
    if (s->o.queue_max_tokens > 0 && n_waiting > 0 && s->waiting_tokens + q->n_tokens > s->o.queue_max_tokens)
        return err_set(e, ERR_QUEUE_FULL, "Requests with %llu tokens are waiting already; try again later.",
                       (unsigned long long)s->waiting_tokens);
    return true;
}

bool sched_add(struct sched *s, struct seq *q, struct err *e) {
    ASSERT(q->state == SEQ_NONE && q->n_prompt >= 1 && q->n_prompt <= q->n_tokens &&
           q->n_tokens <= q->max_tokens_total);
    if (!can_ever_run(s, q, e) || !queue_has_room(s, q, e)) return false;
    q->state = SEQ_WAITING;
    q->arrival = ++s->n_arrivals;
    q->kv_seq = -1;
    q->n_computed = q->n_cached = q->n_preempted = q->n_planned = 0;
    q->admitted = false;
    q->awaits = q->followers = q->follow_next = q->follow_prev = NULL;
    q->prev = NULL;
    q->next = s->all;
    if (s->all) s->all->prev = q;
    s->all = q;

    struct seq *leader = q->leader;
    uint32_t n_shared = leader && leader->state != SEQ_NONE && kv_prefix_enabled(s->kv) ? tokens_shared(leader, q) : 0;
    if (n_shared > 0 && leader->n_computed < n_shared)
        follow_begin(s, q, leader, n_shared);
    else
        heap_push(s, q);
    return true;
}

void sched_remove(struct sched *s, struct seq *q) {
    ASSERT(!s->in_step);
    if (q->state == SEQ_NONE) return;
    if (q->state != SEQ_WAITING) {
        running_remove(s, q);
        kv_seq_end(s->kv, q->kv_seq);
        q->kv_seq = -1;
    } else if (q->awaits) {
        follow_end(s, q);
    } else {
        heap_remove(s, q);
    }
    followers_release(s, q, UINT32_MAX);
    if (q->prev)
        q->prev->next = q->next;
    else
        s->all = q->next;
    if (q->next) q->next->prev = q->prev;
    q->state = SEQ_NONE;
}

void preempt_worst(struct sched *s) {
    struct seq *q = s->running[s->n_running - 1];
    running_remove(s, q);
    kv_seq_end(s->kv, q->kv_seq);
    q->kv_seq = -1;
    q->state = SEQ_WAITING;
    q->n_computed = q->n_planned = 0;
    q->n_preempted++;
    heap_push(s, q);
    s->n_preemptions++;
    s->plan.n_preempted++;
}

void sched_stats_get(const struct sched *s, struct sched_stats *out) {
    *out = (struct sched_stats){
        .n_waiting = s->n_heap + s->n_followers,
        .n_running = s->n_running,
        .waiting_tokens = s->waiting_tokens,
        .preemptions = s->n_preemptions,
    };
}

struct seq *sched_any(const struct sched *s) {
    return s->all;
}
