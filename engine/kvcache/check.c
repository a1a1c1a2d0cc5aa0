/* check.c - the integrity walk: counts everything anew from the tables and compares with the books.
 *
 * Three passes: sequences (every table entry, which gives users per part and references per node), nodes (index,
 * identity, parts), then the free stack and the LRU list. A page that is met twice, or never, is reported; loops end
 * because a page or node may be met once only. The first violation is returned as an INTERNAL error that names the
 * place.
 *
 * Owner: the thread that owns the struct kv; it writes only to the recount arrays.
 */
#include "engine/kvcache/kv_int.h"

#include <string.h>

#define BROKEN(...) err_set(e, ERR_INTERNAL, "KV check: " __VA_ARGS__)

static bool page_meet(const struct kv *kv, uint32_t page, const char *where, struct err *e) {
    if (page >= kv->o.n_pages) return BROKEN("page %u in %s does not exist", page, where);
    if (kv->recount.page_seen[page]) return BROKEN("page %u in %s has a second owner", page, where);
    kv->recount.page_seen[page] = 1;
    return true;
}

/* One block of one kind in the table of a sequence. */
static bool entry_check(const struct kv *kv, uint32_t seq, uint32_t k, uint32_t b, struct err *e) {
    const struct kv_seq *q = &kv->seqs[seq];
    const uint32_t *pages = table_at(kv, seq, k, b);
    if (b < q->first_live[k]) {
        for (uint32_t u = 0; u < kv->o.units[k]; u++)
            if (pages[u] != KV_PAGE_NONE)
                return BROKEN("sequence %u kind %u block %u: released, but has a page", seq, k, b);
        return true;
    }
    if (b >= q->n_named) {
        for (uint32_t u = 0; u < kv->o.units[k]; u++)
            if (!page_meet(kv, pages[u], "a private block", e)) return false;
        return true;
    }
    uint32_t node = *seq_node_at(kv, seq, b);
    uint32_t page = kv->nodes[node].parts[k].first_page;
    for (uint32_t u = 0; u < kv->o.units[k]; u++) {
        if (page >= kv->o.n_pages || page != pages[u])
            return BROKEN("sequence %u kind %u block %u: table differs from the named block", seq, k, b);
        page = kv->page_next[page];
    }
    kv->recount.users[node * KV_KINDS_MAX + k]++;
    return true;
}

static bool seq_check(const struct kv *kv, uint32_t seq, struct err *e) {
    const struct kv_seq *q = &kv->seqs[seq];
    if (q->n_blocks > kv->o.max_blocks_per_seq || q->n_named > q->n_computed / KV_BLOCK_TOKENS ||
        blocks_of(q->n_computed) > q->n_blocks)
        return BROKEN("sequence %u: %u blocks, %u named, %u tokens do not fit together", seq, q->n_blocks, q->n_named,
                      q->n_computed);
    if (kv->o.prefix_cache && !q->nameless && q->n_named != q->n_computed / KV_BLOCK_TOKENS)
        return BROKEN("sequence %u: a computed block has no name", seq);
    for (uint32_t b = 0; b < q->n_named; b++) {
        uint32_t node = *seq_node_at(kv, seq, b);
        if (node >= kv->n_nodes || !kv->nodes[node].live)
            return BROKEN("sequence %u block %u: its node is gone", seq, b);
        if (kv->nodes[node].parent != (b > 0 ? *seq_node_at(kv, seq, b - 1) : NONE))
            return BROKEN("sequence %u block %u: the chain of names is broken", seq, b);
        if (kv->nodes[node].salt != q->salt) return BROKEN("sequence %u block %u: shared across salts", seq, b);
    }
    if (q->n_named > 0) kv->recount.refs[*seq_node_at(kv, seq, q->n_named - 1)]++;
    for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
        if (q->first_live[k] != first_visible(kv, k, q->n_computed))
            return BROKEN("sequence %u kind %u: live from block %u, the next row sees from %u", seq, k,
                          q->first_live[k], first_visible(kv, k, q->n_computed));
        for (uint32_t b = 0; b < q->n_blocks; b++)
            if (!entry_check(kv, seq, k, b, e)) return false;
    }
    return true;
}

static bool part_check(const struct kv *kv, uint32_t node, uint32_t k, uint32_t *n_cached_pages, struct err *e) {
    const struct part *p = &kv->nodes[node].parts[k];
    uint32_t users = kv->recount.users[node * KV_KINDS_MAX + k], n = 0;
    if (p->first_page == NONE) return users == 0 || BROKEN("node %u kind %u: in tables without pages", node, k);
    if (p->users != users) return BROKEN("node %u kind %u: %u users, %u counted", node, k, p->users, users);
    for (uint32_t page = p->first_page; page != NONE; page = kv->page_next[page], n++)
        if (!page_meet(kv, page, "a named block", e)) return false;
    if (n != kv->o.units[k]) return BROKEN("node %u kind %u: %u pages instead of %u", node, k, n, kv->o.units[k]);
    if (k != kv->primary) {
        const struct part *primary = &kv->nodes[node].parts[kv->primary];
        if (primary->first_page == NONE || primary->users < users)
            return BROKEN("node %u: its window block outlives the one that leads to it", node);
    }
    if (users == 0) *n_cached_pages += n;
    return true;
}

/* The node is in its bucket once, and no equal name stands behind it there. */
static bool name_check(const struct kv *kv, uint32_t id, struct err *e) {
    const struct node *n = &kv->nodes[id];
    struct kv_hash h = names_hash(kv, n->parent, n->salt, n->tokens);
    if (h.lo != n->hash.lo || h.hi != n->hash.hi) return BROKEN("node %u: its hash is not that of its tokens", id);
    uint32_t steps = 0, i = kv->buckets[h.lo & kv->bucket_mask];
    for (; i != NONE && i != id; i = kv->nodes[i].next)
        if (++steps > kv->n_nodes) return BROKEN("a bucket runs in a circle");
    if (i == NONE) return BROKEN("node %u: not in its bucket", id);
    for (i = n->next; i != NONE; i = kv->nodes[i].next) {
        const struct node *m = &kv->nodes[i];
        if (++steps > kv->n_nodes) return BROKEN("a bucket runs in a circle");
        if (!m->live) return BROKEN("node %u: in a bucket, but unused", i);
        if (m->parent == n->parent && m->salt == n->salt && memcmp(m->tokens, n->tokens, sizeof n->tokens) == 0)
            return BROKEN("nodes %u and %u have the same name", id, i);
    }
    return true;
}

static bool nodes_check(const struct kv *kv, struct err *e) {
    uint32_t n_unused = 0, n_live = 0, n_primary = 0, n_cached = 0;
    for (uint32_t i = 0; i < kv->n_nodes; i++) {
        uint32_t parent = kv->nodes[i].parent;
        if (!kv->nodes[i].live || parent == NONE) continue;
        if (parent >= kv->n_nodes || !kv->nodes[parent].live) return BROKEN("node %u: its parent is gone", i);
        if (kv->nodes[parent].salt != kv->nodes[i].salt) return BROKEN("node %u: another salt than its parent's", i);
        kv->recount.refs[parent]++;
    }
    for (uint32_t i = 0; i < kv->n_nodes; i++) {
        const struct node *n = &kv->nodes[i];
        if (!n->live) continue;
        n_live++;
        bool has_part = false, has_primary = n->parts[kv->primary].first_page != NONE;
        for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
            has_part = has_part || n->parts[k].first_page != NONE;
            if (!part_check(kv, i, k, &n_cached, e)) return false;
        }
        n_primary += has_primary;
        if (n->refs != kv->recount.refs[i])
            return BROKEN("node %u: %u references, %u counted", i, n->refs, kv->recount.refs[i]);
        if (!has_part && n->refs == 0) return BROKEN("node %u: nothing needs it", i);
        if (!has_primary && kv->o.window[kv->primary] == 0) return BROKEN("node %u: evicted before its children", i);
        if (!name_check(kv, i, e)) return false;
    }
    for (uint32_t i = kv->unused_node; i != NONE; i = kv->nodes[i].next)
        if (kv->nodes[i].live || ++n_unused > kv->n_nodes) return BROKEN("the list of unused nodes is broken");
    if (n_live + n_unused != kv->n_nodes)
        return BROKEN("%u nodes live, %u unused, of %u", n_live, n_unused, kv->n_nodes);
    if (n_primary != kv->n_primary) return BROKEN("%u named blocks, %u counted", kv->n_primary, n_primary);
    if (n_cached != kv->n_cached) return BROKEN("%u cached pages, %u counted", kv->n_cached, n_cached);
    return true;
}

static bool lists_check(const struct kv *kv, struct err *e) {
    uint32_t n_pages = 0, prev = NONE, n_free = 0;
    for (uint32_t i = kv->lru_first; i != NONE;
         prev = i, i = kv->nodes[i / KV_KINDS_MAX].parts[i % KV_KINDS_MAX].lru_next) {
        const struct node *n = &kv->nodes[i / KV_KINDS_MAX];
        const struct part *p = &n->parts[i % KV_KINDS_MAX];
        n_pages += kv->o.units[i % KV_KINDS_MAX];
        if (!n->live || p->first_page == NONE || p->users > 0 || p->lru_prev != prev || n_pages > kv->n_cached)
            return BROKEN("the list of cached blocks is broken at node %u", i / KV_KINDS_MAX);
    }
    if (kv->lru_last != prev || n_pages != kv->n_cached) return BROKEN("the list of cached blocks is short");
    for (uint32_t page = kv->free_page; page != NONE; page = kv->page_next[page], n_free++)
        if (!page_meet(kv, page, "the free stack", e)) return false;
    if (n_free != kv->n_free) return BROKEN("%u free pages, %u counted", kv->n_free, n_free);
    for (uint32_t page = 0; page < kv->o.n_pages; page++)
        if (!kv->recount.page_seen[page]) return BROKEN("page %u is lost", page);
    return true;
}

bool kv_check(const struct kv *kv, struct err *e) {
    memset(kv->recount.page_seen, 0, kv->o.n_pages);
    memset(kv->recount.users, 0, (size_t)kv->n_nodes * KV_KINDS_MAX * sizeof *kv->recount.users);
    memset(kv->recount.refs, 0, (size_t)kv->n_nodes * sizeof *kv->recount.refs);
    uint32_t n_open = 0, n_unused = 0;
    for (uint32_t i = 0; i < kv->o.max_seqs; i++) {
        if (!kv->seqs[i].open) continue;
        n_open++;
        if (!seq_check(kv, i, e)) return false;
    }
    for (uint32_t i = kv->unused_seq; i != NONE; i = kv->seqs[i].next_unused)
        if (kv->seqs[i].open || ++n_unused > kv->o.max_seqs) return BROKEN("the list of unused sequences is broken");
    if (n_open + n_unused != kv->o.max_seqs) return BROKEN("%u sequences open, %u unused", n_open, n_unused);
    return nodes_check(kv, e) && lists_check(kv, e);
}
