/* admit.c - which waiting sequences begin to run in this step.
 *
 * The rules are in batching.c ("Admission", "Waiting for what another computes"). All of this looks only at the head
 * of the heap; a step without waiting sequences costs nothing here, and a head that was short of pages is not asked
 * again before kv_epoch or the set of running sequences changed, because finding its prefix costs time in proportion
 * to its prompt.
 *
 * Owner: the engine thread.
 */
#include "engine/batching/batching_int.h"

/* As many prefills may share a step that cannot hold them all. More would only hold pages, and would miss what those
 * before them bring into the prefix cache. */
enum { PREFILLS_SHARED_MAX = 4 };

/* Would its prefill get tokens of this step? If every slot is taken, it would have that of the worst. */
static bool budget_reaches(const struct sched *s, const struct seq *q) {
    uint64_t budget = s->o.max_batch_tokens, rows_ahead = 0, rows_above = 0;
    uint32_t n_ahead = 0, n_stay = s->n_running < s->slots ? s->n_running : s->slots - 1;
    for (uint32_t i = 0; i < n_stay; i++) {
        const struct seq *r = s->running[i];
        if (is_decode(r)) {
            budget -= rows_left(r);
        } else if (ranks_before(r, q)) {
            n_ahead++;
            rows_ahead += rows_left(r);
            if (r->priority < q->priority) rows_above += rows_left(r);
        }
    }
    return rows_above < budget && (n_ahead < PREFILLS_SHARED_MAX || rows_ahead < budget);
}

/* The running sequence that is computing blocks which q could take from the cache a little later. */
static struct seq *find_leader(const struct sched *s, const struct seq *q, uint32_t n_hit, uint32_t *n_shared) {
    struct seq *best = NULL;
    *n_shared = n_hit;
    if (!kv_prefix_enabled(s->kv)) return NULL;
    for (uint32_t i = 0; i < s->n_running && ranks_before(s->running[i], q); i++) {
        struct seq *r = s->running[i];
        if (r->state != SEQ_PREFILL) continue;
        uint32_t n = tokens_shared(r, q);
        if (n <= *n_shared || n <= r->n_computed) continue;
        *n_shared = n;
        best = r;
    }
    return best;
}

/* Pages that running prefills have yet to take, and one block each for all that run and for one more. Counts the
 * first n running sequences. */
static uint64_t pages_spoken_for(const struct sched *s, uint32_t n) {
    uint64_t pages = (uint64_t)kv_block_pages(s->kv) * (n + 1);
    for (uint32_t i = 0; i < n; i++) {
        const struct seq *r = s->running[i];
        if (r->state == SEQ_PREFILL)
            pages += kv_pages_span(s->kv, kv_seq_tokens(s->kv, r->kv_seq), r->n_tokens, s->o.max_batch_tokens);
    }
    return pages;
}

/* Could q, which needs these pages, be admitted if all running sequences of lower priority were preempted? */
static bool preempting_helps(const struct sched *s, const struct seq *q, uint64_t pages_needed) {
    uint32_t n_keep = s->n_running;
    uint64_t pages = kv_pages_available(s->kv);
    while (n_keep > 0 && s->running[n_keep - 1]->priority > q->priority)
        pages += kv_seq_pages(s->kv, s->running[--n_keep]->kv_seq);
    if (n_keep == s->n_running) return false;
    return n_keep == 0 || pages_needed + pages_spoken_for(s, n_keep) <= pages;
}

static void begin(struct sched *s, struct seq *q) {
    heap_remove(s, q);
    q->kv_seq = kv_seq_begin(s->kv, q->salt);
    ASSERT(q->kv_seq >= 0);
    q->n_computed = q->no_prefix_read ? 0 : kv_prefix_take(s->kv, q->kv_seq, q->tokens, q->n_tokens);
    if (!q->admitted) q->n_cached = q->n_computed;
    q->admitted = true;
    q->state = SEQ_PREFILL;
    running_insert(s, q);
    followers_release(s, q, q->n_computed);
}

/* Deals with the head of the heap; false: it must wait, and so must all behind it. */
static bool admit_head(struct sched *s) {
    struct seq *q = s->heap[0];
    if (!budget_reaches(s, q)) return false;
    if (s->n_running == s->slots) {
        if (s->running[s->n_running - 1]->priority <= q->priority) return false;
        preempt_worst(s);
    }
    if (q->arrival == s->refused_arrival && kv_epoch(s->kv) == s->refused_epoch && s->n_running == s->refused_running)
        return false;
    uint32_t pages_pinned = 0, n_shared;
    uint32_t n_hit = q->no_prefix_read ? 0 : kv_prefix_find(s->kv, q->salt, q->tokens, q->n_tokens, &pages_pinned);
    struct seq *leader = find_leader(s, q, n_hit, &n_shared);
    if (leader) {
        heap_remove(s, q);
        follow_begin(s, q, leader, n_shared);
        return true;
    }
    uint64_t pages = pages_pinned + kv_pages_span(s->kv, n_hit, q->n_tokens, s->o.max_batch_tokens);
    if (s->n_running == 0 || pages + pages_spoken_for(s, s->n_running) <= kv_pages_available(s->kv)) {
        begin(s, q);
        return true;
    }
    if (preempting_helps(s, q, pages)) {
        preempt_worst(s);
        return true;
    }
    s->refused_arrival = q->arrival;
    s->refused_epoch = kv_epoch(s->kv);
    s->refused_running = s->n_running;
    return false;
}

void admit(struct sched *s) {
    while (s->n_heap > 0 && admit_head(s)) {
    }
}
