/* queue.c - the three places of a sequence: the heap of those that wait, the row of those that run, and the list of
 * those that wait for another one.
 *
 * The heap is a binary heap by rank with each sequence's place in seq.index, so that a cancel from the middle costs
 * O(log n) and a million priorities cost no more than one. The running ones stand in an array sorted by rank: they are
 * few, and every step walks them in that order.
 *
 * Owner: the thread that owns the struct sched.
 *
 * Invariants
 *  1. heap[q->index] == q for those in the heap, running[q->index] == q for those that run.
 *  2. No sequence in the heap ranks before its parent; running is strictly ascending by rank.
 *  3. q->awaits is set exactly for those in the follower list of that sequence; they are in neither array.
 */
#include "engine/batching/batching_int.h"

#include <string.h>

static void heap_set(struct sched *s, uint32_t i, struct seq *q) {
    s->heap[i] = q;
    q->index = i;
}

static void heap_up(struct sched *s, uint32_t i, struct seq *q) {
    for (; i > 0 && ranks_before(q, s->heap[(i - 1) / 2]); i = (i - 1) / 2) heap_set(s, i, s->heap[(i - 1) / 2]);
    heap_set(s, i, q);
}

static void heap_down(struct sched *s, uint32_t i, struct seq *q) {
    for (uint32_t child; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && ranks_before(s->heap[child + 1], s->heap[child])) child++;
        if (!ranks_before(s->heap[child], q)) break;
        heap_set(s, i, s->heap[child]);
    }
    heap_set(s, i, q);
}

void heap_push(struct sched *s, struct seq *q) {
    ASSERT(s->n_heap < s->o.queue_max_requests + s->slots);
    s->waiting_tokens += q->n_tokens;
    heap_up(s, s->n_heap++, q);
}

void heap_remove(struct sched *s, struct seq *q) {
    uint32_t i = q->index;
    ASSERT(i < s->n_heap && s->heap[i] == q);
    s->waiting_tokens -= q->n_tokens;
    struct seq *last = s->heap[--s->n_heap];
    if (last == q) return;
    if (ranks_before(last, q))
        heap_up(s, i, last);
    else
        heap_down(s, i, last);
}

void running_insert(struct sched *s, struct seq *q) {
    ASSERT(s->n_running < s->slots);
    uint32_t i = s->n_running++;
    for (; i > 0 && ranks_before(q, s->running[i - 1]); i--) {
        s->running[i] = s->running[i - 1];
        s->running[i]->index = i;
    }
    s->running[i] = q;
    q->index = i;
}

void running_remove(struct sched *s, struct seq *q) {
    uint32_t i = q->index;
    ASSERT(i < s->n_running && s->running[i] == q);
    for (s->n_running--; i < s->n_running; i++) {
        s->running[i] = s->running[i + 1];
        s->running[i]->index = i;
    }
}

uint32_t tokens_shared(const struct seq *leader, const struct seq *q) {
    if (q->no_prefix_read || leader->salt != q->salt) return 0;
    size_t n = size_min(leader->n_tokens, q->n_tokens - 1), block = KV_BLOCK_TOKENS, i = 0;
    while (i + block <= n && memcmp(leader->tokens + i, q->tokens + i, block * sizeof *q->tokens) == 0) i += block;
    return (uint32_t)i;
}

void follow_begin(struct sched *s, struct seq *q, struct seq *leader, uint32_t n_tokens) {
    q->awaits = leader;
    q->awaits_tokens = n_tokens;
    q->follow_prev = NULL;
    q->follow_next = leader->followers;
    if (leader->followers) leader->followers->follow_prev = q;
    leader->followers = q;
    s->n_followers++;
    s->waiting_tokens += q->n_tokens;
}

void follow_end(struct sched *s, struct seq *q) {
    if (q->follow_prev)
        q->follow_prev->follow_next = q->follow_next;
    else
        q->awaits->followers = q->follow_next;
    if (q->follow_next) q->follow_next->follow_prev = q->follow_prev;
    q->awaits = q->follow_next = q->follow_prev = NULL;
    s->n_followers--;
    s->waiting_tokens -= q->n_tokens;
}

void followers_release(struct sched *s, struct seq *q, uint32_t n_tokens) {
    for (struct seq *f = q->followers, *next; f; f = next) {
        next = f->follow_next;
        if (f->awaits_tokens > n_tokens) continue;
        follow_end(s, f);
        heap_push(s, f);
    }
}
