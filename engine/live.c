/* live.c - the engine thread's jobs: found by their request, counted, and ended by their deadlines.
 *
 * A queue may hold a million requests, so nothing here walks all of them: requests are found through a hash of their
 * address (only compared, never followed: the caller may have freed it), and deadlines stand in a binary heap.
 *
 * Owner: the engine thread. Invariants:
 * 1. Every job is in exactly one bucket; in the heap exactly if it has a deadline, at heap[job->heap_at].
 * 2. The heap never needs memory when a job leaves.
 */
#include "engine/engine_int.h"

#include <stdlib.h>

bool live_open(struct live *l) {
    l->buckets = calloc(LIVE_BUCKETS, sizeof(struct job *));
    return l->buckets != NULL;
}

void live_close(struct live *l) {
    free(l->buckets);
    free(l->heap);
}

static struct job **live_bucket(const struct live *l, const struct engine_request *r) {
    return &l->buckets[((uintptr_t)r / sizeof(max_align_t)) * 0x9E3779B97F4A7C15u >> (64 - LIVE_BUCKET_BITS)];
}

struct job *live_find(const struct live *l, const struct engine_request *r) {
    struct job *j = r ? *live_bucket(l, r) : NULL;
    while (j && j->r != r) j = j->next;
    return j;
}

struct job *live_any(const struct live *l) {
    for (uint32_t i = 0; l->n && i < LIVE_BUCKETS; i++)
        if (l->buckets[i]) return l->buckets[i];
    return NULL;
}

/* ---- Deadlines ---- */

static void heap_put(struct live *l, uint32_t at, struct job *j) {
    l->heap[at] = j;
    j->heap_at = at;
}

static void heap_settle(struct live *l, uint32_t at, struct job *j) {
    while (at && l->heap[(at - 1) / 2]->r->deadline_ns > j->r->deadline_ns) {
        heap_put(l, at, l->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < l->n_heap && l->heap[child + 1]->r->deadline_ns < l->heap[child]->r->deadline_ns) child++;
        if (child >= l->n_heap || l->heap[child]->r->deadline_ns >= j->r->deadline_ns) break;
        heap_put(l, at, l->heap[child]);
        at = child;
    }
    heap_put(l, at, j);
}

struct job *live_overdue(const struct live *l) {
    return l->n_heap && l->heap[0]->r->deadline_ns <= time_now_ns() ? l->heap[0] : NULL;
}

/* ---- Coming and going ---- */

void live_add(struct live *l, struct job *j) {
    if (j->r->deadline_ns && l->n_heap == l->heap_cap) {
        uint32_t cap = l->heap_cap ? 2 * l->heap_cap : 64;
        l->heap = realloc(l->heap, cap * sizeof(struct job *));
        ASSERT(l->heap); /* 8 bytes a request that was just given memory */
        l->heap_cap = cap;
    }
    struct job **bucket = live_bucket(l, j->r);
    j->prev = NULL;
    j->next = *bucket;
    if (*bucket) (*bucket)->prev = j;
    *bucket = j;
    l->n++;
    if (j->r->deadline_ns) heap_settle(l, l->n_heap++, j);
}

void live_remove(struct live *l, struct job *j) {
    if (j->next) j->next->prev = j->prev;
    if (j->prev) j->prev->next = j->next;
    else *live_bucket(l, j->r) = j->next;
    l->n--;
    if (!j->r->deadline_ns) return;
    struct job *last = l->heap[--l->n_heap];
    if (last != j) heap_settle(l, j->heap_at, last);
}
