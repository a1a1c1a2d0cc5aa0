/* merge.c - the merge loop that both tokenizers share: always the neighbour pair of lowest priority, leftmost first.
 *
 * Design: symbols are a doubly linked list in an array; candidates wait in a 4-ary heap. A candidate is not taken
 * out when one of its symbols changes: symbols only grow, so one whose total length no longer fits is stale and is
 * dropped when it comes up. Each of at most n - 1 merges adds at most two candidates: O(n log n), no recursion.
 * Memory is the encoder's and is reused from word to word.
 *
 * Invariants
 *  1. Live symbols (n_bytes > 0) linked by `next` cover the text in order without gaps.
 *  2. A node's key is not above its children's; keys are unique per live pair, so the order is total.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>

bool encoder_reserve_symbols(struct encoder *c, size_t n) {
    if (n <= c->n_symbols_alloc) return true;
    size_t n_alloc = size_max(n, size_max(2 * c->n_symbols_alloc, 64));
    struct symbol *symbols = realloc(c->symbols, n_alloc * sizeof *symbols);
    if (!symbols) return encoder_no_memory(c);
    c->symbols = symbols;
    c->n_symbols_alloc = n_alloc;
    return true;
}

enum { HEAP_WIDTH = 4 }; /* children of a node: four candidates are a cache line */

static bool heap_push(struct encoder *c, struct candidate item) {
    if (c->n_heap == c->n_heap_alloc) {
        size_t n_alloc = size_max(2 * c->n_heap_alloc, 64);
        struct candidate *heap = realloc(c->heap, n_alloc * sizeof *heap);
        if (!heap) return encoder_no_memory(c);
        c->heap = heap;
        c->n_heap_alloc = n_alloc;
    }
    size_t at = c->n_heap++;
    for (size_t parent; at > 0 && c->heap[parent = (at - 1) / HEAP_WIDTH].key > item.key; at = parent) {
        c->heap[at] = c->heap[parent];
        text_work++;
    }
    c->heap[at] = item;
    return true;
}

static struct candidate heap_pop(struct encoder *c) {
    struct candidate top = c->heap[0], last = c->heap[--c->n_heap];
    size_t at = 0, n = c->n_heap;
    for (size_t child; (child = HEAP_WIDTH * at + 1) < n; at = child) {
        size_t end = size_min(child + HEAP_WIDTH, n);
        for (size_t other = child + 1; other < end; other++) {
            if (c->heap[other].key < c->heap[child].key) child = other;
        }
        if (c->heap[child].key >= last.key) break;
        c->heap[at] = c->heap[child];
        text_work++;
    }
    c->heap[at] = last;
    return top;
}

static bool consider(struct encoder *c, const char *text, int32_t left, int32_t right, merge_find *find) {
    if (left < 0 || right < 0) return true;
    const struct symbol *a = &c->symbols[left], *b = &c->symbols[right];
    uint32_t prio;
    struct candidate item = {.n_bytes = a->n_bytes + b->n_bytes};
    if (!find(c->t, text, a, b, &prio, &item.id)) return true;
    item.key = (uint64_t)prio << 32 | (uint32_t)left;
    return heap_push(c, item);
}

bool merge_symbols(struct encoder *c, const char *text, size_t n, merge_find *find) {
    c->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        if (!consider(c, text, (int32_t)i, (int32_t)i + 1, find)) return false;
    }
    while (c->n_heap > 0) {
        struct candidate best = heap_pop(c);
        int32_t left = (int32_t)(best.key & UINT32_MAX);
        struct symbol *a = &c->symbols[left];
        if (a->n_bytes == 0 || a->next < 0) continue;
        struct symbol *b = &c->symbols[a->next];
        if (a->n_bytes + b->n_bytes != best.n_bytes) continue;
        a->n_bytes = best.n_bytes;
        a->id = best.id;
        a->next = b->next;
        b->n_bytes = 0;
        if (a->next >= 0) c->symbols[a->next].prev = left;
        if (!consider(c, text, a->prev, left, find) || !consider(c, text, left, a->next, find)) return false;
    }
    return true;
}
