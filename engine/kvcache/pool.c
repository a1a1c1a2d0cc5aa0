/* pool.c - the pages: free stack, parts of nodes, least-recently-used list, eviction.
 *
 * A page is free (in the stack), private (in the table of one sequence, in a block without a name), or in a part. A
 * part with users is in their tables; one without is cached and stands in the LRU list, and its pages count as
 * available. So available = free + cached, whatever the order of eviction.
 *
 * Order of eviction. A sequence gives its blocks back last block first, so that of a chain the leaf is evicted
 * before its parent: every user of a child uses the parent's primary part too and gives it back later. What is left
 * of a chain is therefore always a prefix, which is what can be hit.
 *
 * Owner: the thread that owns the struct kv.
 *
 * Invariants
 *  1. n_free = length of the free stack; n_cached = pages of the parts in the LRU list.
 *  2. A part is in the LRU list if and only if it has no users.
 *  3. Where a full kind exists, a node without the primary part has no other part either.
 */
#include "engine/kvcache/kv_int.h"

void pool_page_push(struct kv *kv, uint32_t page) {
    kv->page_next[page] = kv->free_page;
    kv->free_page = page;
    kv->n_free++;
    kv->epoch++;
}

uint32_t pool_page_pop(struct kv *kv) {
    if (kv->n_free == 0) pool_evict(kv);
    ASSERT(kv->n_free > 0);
    uint32_t page = kv->free_page;
    kv->free_page = kv->page_next[page];
    kv->n_free--;
    return page;
}

static struct part *part_of_entry(const struct kv *kv, uint32_t entry) {
    return &kv->nodes[entry / KV_KINDS_MAX].parts[entry % KV_KINDS_MAX];
}

static void lru_append(struct kv *kv, uint32_t node, uint32_t kind) {
    uint32_t entry = node * KV_KINDS_MAX + kind;
    struct part *p = part_of_entry(kv, entry);
    p->lru_prev = kv->lru_last;
    p->lru_next = NONE;
    if (kv->lru_last != NONE)
        part_of_entry(kv, kv->lru_last)->lru_next = entry;
    else
        kv->lru_first = entry;
    kv->lru_last = entry;
    kv->n_cached += kv->o.units[kind];
    kv->epoch++;
}

static void lru_remove(struct kv *kv, uint32_t node, uint32_t kind) {
    struct part *p = &kv->nodes[node].parts[kind];
    if (p->lru_prev != NONE)
        part_of_entry(kv, p->lru_prev)->lru_next = p->lru_next;
    else
        kv->lru_first = p->lru_next;
    if (p->lru_next != NONE)
        part_of_entry(kv, p->lru_next)->lru_prev = p->lru_prev;
    else
        kv->lru_last = p->lru_prev;
    kv->n_cached -= kv->o.units[kind];
}

/* Frees the pages of a part without users. */
static void part_drop(struct kv *kv, uint32_t node, uint32_t kind) {
    struct part *p = &kv->nodes[node].parts[kind];
    ASSERT(p->users == 0);
    lru_remove(kv, node, kind);
    for (uint32_t page = p->first_page; page != NONE;) {
        uint32_t next = kv->page_next[page];
        pool_page_push(kv, page);
        page = next;
    }
    p->first_page = NONE;
    if (kind == kv->primary) {
        kv->n_primary--;
        names_event(kv, node, KV_EVENT_REMOVED);
    }
}

bool pool_evict(struct kv *kv) {
    if (kv->lru_first == NONE) return false;
    uint32_t node = kv->lru_first / KV_KINDS_MAX, kind = kv->lru_first % KV_KINDS_MAX;
    part_drop(kv, node, kind);
    /* Without the primary part no prefix can reach the others. */
    if (kind == kv->primary)
        for (uint32_t k = 0; k < kv->o.n_kinds; k++)
            if (kv->nodes[node].parts[k].first_page != NONE) part_drop(kv, node, k);
    names_drop_unused(kv, node);
    kv->evictions++;
    return true;
}

void part_attach(struct kv *kv, uint32_t node, uint32_t kind, const uint32_t *pages) {
    struct part *p = &kv->nodes[node].parts[kind];
    ASSERT(p->first_page == NONE);
    uint32_t n = kv->o.units[kind];
    for (uint32_t u = 0; u < n; u++) kv->page_next[pages[u]] = u + 1 < n ? pages[u + 1] : NONE;
    p->first_page = pages[0];
    p->users = 1;
    kv->epoch++;
    if (kind == kv->primary) {
        kv->n_primary++;
        names_event(kv, node, KV_EVENT_STORED);
    }
}

void part_ref(struct kv *kv, uint32_t node, uint32_t kind, uint32_t *pages) {
    struct part *p = &kv->nodes[node].parts[kind];
    ASSERT(p->first_page != NONE);
    if (p->users == 0) lru_remove(kv, node, kind);
    p->users++;
    for (uint32_t page = p->first_page; page != NONE; page = kv->page_next[page]) *pages++ = page;
}

void part_unref(struct kv *kv, uint32_t node, uint32_t kind) {
    struct part *p = &kv->nodes[node].parts[kind];
    ASSERT(p->users > 0);
    if (--p->users == 0) lru_append(kv, node, kind);
}
