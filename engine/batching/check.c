/* check.c - the scheduler's invariants (batching.c, queue.c), counted anew. Owner: the engine thread. */
#include "engine/batching/batching_int.h"

#define BROKEN(...) err_set(e, ERR_INTERNAL, "scheduler check: " __VA_ARGS__)

static bool running_check(const struct sched *s, const struct seq *q, struct err *e) {
    unsigned long long id = q->arrival;
    if (q->index >= s->n_running || s->running[q->index] != q)
        return BROKEN("sequence %llu: runs, but has no slot", id);
    if (q->index > 0 && !ranks_before(s->running[q->index - 1], q)) return BROKEN("slot %u: out of order", q->index);
    if (q->kv_seq < 0 || !q->admitted || q->awaits) return BROKEN("sequence %llu: runs, but was not admitted", id);
    if (kv_seq_tokens(s->kv, q->kv_seq) < q->n_computed) return BROKEN("sequence %llu: computed without pages", id);
    if (q->state == SEQ_PREFILL && rows_left(q) == 0) return BROKEN("sequence %llu: a prefill without rows", id);
    return true;
}

static bool waiting_check(const struct sched *s, const struct seq *q, struct err *e) {
    unsigned long long id = q->arrival;
    if (q->kv_seq != -1 || q->n_computed != 0) return BROKEN("sequence %llu: waits, but holds KV", id);
    if (!q->awaits) {
        if (q->index >= s->n_heap || s->heap[q->index] != q) return BROKEN("sequence %llu: waits nowhere", id);
        if (q->index > 0 && ranks_before(q, s->heap[(q->index - 1) / 2]))
            return BROKEN("sequence %llu: ranks before its parent in the heap", id);
        return true;
    }
    if (q->awaits->state == SEQ_NONE) return BROKEN("sequence %llu: waits for one that has left", id);
    if (q->awaits->n_computed >= q->awaits_tokens) return BROKEN("sequence %llu: waits for what is computed", id);
    const struct seq *f = q->awaits->followers;
    for (uint32_t n = 0; f && f != q && n < s->n_followers; n++) f = f->follow_next;
    return f == q || BROKEN("sequence %llu: not among those that wait for sequence %llu", id,
                            (unsigned long long)q->awaits->arrival);
}

bool sched_check(const struct sched *s, struct err *e) {
    uint32_t n_heap = 0, n_followers = 0, n_running = 0;
    uint64_t n_tokens = 0, n_all = 0, n_max = (uint64_t)s->o.queue_max_requests + s->slots;
    for (const struct seq *q = s->all, *prev = NULL; q; prev = q, q = q->next) {
        if (q->prev != prev || ++n_all > n_max) return BROKEN("the list of sequences is broken");
        if (q->state == SEQ_NONE || q->state > SEQ_DECODE) return BROKEN("a sequence without a state");
        if (q->n_computed > q->n_tokens || q->n_tokens > q->max_tokens_total)
            return BROKEN("sequence %llu: %u of %u tokens computed", (unsigned long long)q->arrival, q->n_computed,
                          q->n_tokens);
        if (q->state != SEQ_WAITING) {
            n_running++;
            if (!running_check(s, q, e)) return false;
            continue;
        }
        n_tokens += q->n_tokens;
        if (q->awaits)
            n_followers++;
        else
            n_heap++;
        if (!waiting_check(s, q, e)) return false;
    }
    if (n_heap != s->n_heap || n_followers != s->n_followers || n_running != s->n_running)
        return BROKEN("%u wait, %u follow, %u run; counted %u, %u, %u", s->n_heap, s->n_followers, s->n_running, n_heap,
                      n_followers, n_running);
    if (n_tokens != s->waiting_tokens) return BROKEN("waiting tokens are miscounted");
    return true;
}
