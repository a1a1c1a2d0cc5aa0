/* kvcache.c - opening and closing, the holds of sequences, growth and the questions before it.
 *
 * A sequence's tables grow block by block, every kind alike, so that one count (n_blocks) and one price per block
 * (block_pages) serve all kinds; a window kind gives blocks back at its lower end. See pool.c for the pages, names.c
 * for the names, prefix.c for hits and commits, check.c for the integrity walk.
 *
 * Owner: one thread, the engine's.
 *
 * Invariants
 *  1. Of a sequence, blocks [0, n_named) have a node (seq_nodes), each the parent of the next; the rest are private.
 *  2. A table entry of block b of kind k is KV_PAGE_NONE if b < first_live[k], else a page of that node's part or a
 *     private page. first_live is 0 for a kind without a window.
 *  3. n_named * KV_BLOCK_TOKENS <= n_computed <= n_blocks * KV_BLOCK_TOKENS.
 *  4. Every page is free, private to one sequence, or in one part: pages_total = free + cached + used.
 */
#include "engine/kvcache/kv_int.h"

#include <stdlib.h>

static bool options_check(const struct kv_options *o, struct err *e) {
    if (o->n_kinds < 1 || o->n_kinds > KV_KINDS_MAX)
        return err_set(e, ERR_LOAD, "KV cache: %u kinds of layers; 1 to %d are possible", o->n_kinds, KV_KINDS_MAX);
    uint32_t sum = 0;
    for (uint32_t k = 0; k < o->n_kinds; k++) {
        if (o->units[k] < 1 || o->units[k] > KV_UNITS_MAX)
            return err_set(e, ERR_LOAD, "KV cache: %u pages per block; 1 to %d are possible", o->units[k],
                           KV_UNITS_MAX);
        sum += o->units[k];
    }
    if (o->n_pages < sum || o->n_pages > KV_PAGES_MAX)
        return err_set(e, ERR_LOAD, "KV cache: memory for %u pages; %u (one block) to %d are possible", o->n_pages, sum,
                       KV_PAGES_MAX);
    if (o->max_seqs < 1 || o->max_seqs > KV_SEQS_MAX)
        return err_set(e, ERR_LOAD, "KV cache: %u sequences; 1 to %d are possible", o->max_seqs, KV_SEQS_MAX);
    if (o->max_blocks_per_seq < 1 || o->max_blocks_per_seq > KV_SEQ_BLOCKS_MAX)
        return err_set(e, ERR_LOAD, "KV cache: %u blocks per sequence; 1 to %d are possible", o->max_blocks_per_seq,
                       KV_SEQ_BLOCKS_MAX);
    return true;
}

/* Which kind sees farthest. */
static uint32_t primary_of(const struct kv_options *o) {
    if (o->n_kinds == 1 || o->window[0] == 0) return 0;
    return o->window[1] == 0 || o->window[1] > o->window[0] ? 1 : 0;
}

/* A node exists for every named block of the primary kind; where that one is released too (no full kind), names of
 * released blocks stay as the ancestors of later ones, hence the second half. */
static uint32_t nodes_of(const struct kv_options *o, uint32_t primary) {
    uint32_t n_blocks = o->n_pages / o->units[primary];
    return o->window[primary] == 0 ? n_blocks : 2 * n_blocks + 1;
}

/* The limits of kvcache.h keep every product below within 2^48 entries; calloc refuses what memory cannot hold and
 * leaves untouched parts of the tables to the operating system. */
static bool arrays_alloc(struct kv *kv) {
    const struct kv_options *o = &kv->o;
    size_t n_rows = (size_t)o->max_seqs * o->max_blocks_per_seq;
    kv->page_next = calloc(o->n_pages, sizeof *kv->page_next);
    kv->nodes = calloc(kv->n_nodes, sizeof *kv->nodes);
    kv->buckets = calloc((size_t)kv->bucket_mask + 1, sizeof *kv->buckets);
    kv->seqs = calloc(o->max_seqs, sizeof *kv->seqs);
    kv->seq_nodes = calloc(n_rows, sizeof *kv->seq_nodes);
    kv->recount.page_seen = calloc(o->n_pages, sizeof *kv->recount.page_seen);
    kv->recount.users = calloc(kv->n_nodes, KV_KINDS_MAX * sizeof *kv->recount.users);
    kv->recount.refs = calloc(kv->n_nodes, sizeof *kv->recount.refs);
    bool ok = kv->page_next && kv->nodes && kv->buckets && kv->seqs && kv->seq_nodes && kv->recount.page_seen &&
              kv->recount.users && kv->recount.refs;
    for (uint32_t k = 0; k < o->n_kinds; k++) {
        kv->tables[k] = calloc(n_rows, o->units[k] * sizeof *kv->tables[k]);
        ok = ok && kv->tables[k];
    }
    return ok;
}

struct kv *kv_open(const struct kv_options *o, struct err *e) {
    if (!options_check(o, e)) return NULL;
    struct kv *kv = calloc(1, sizeof *kv);
    if (kv) {
        kv->o = *o;
        kv->primary = primary_of(o);
        kv->n_nodes = nodes_of(o, kv->primary);
        for (kv->bucket_mask = 1; kv->bucket_mask < kv->n_nodes; kv->bucket_mask = kv->bucket_mask * 2 + 1) {
        }
        for (uint32_t k = 0; k < o->n_kinds; k++) kv->block_pages += o->units[k];
    }
    if (!kv || !arrays_alloc(kv)) {
        kv_close(kv);
        err_set(e, ERR_LOAD, "KV cache: not enough memory to keep account of %u pages", o->n_pages);
        return NULL;
    }
    kv->free_page = kv->lru_first = kv->lru_last = NONE;
    for (uint32_t p = o->n_pages; p-- > 0;) pool_page_push(kv, p);
    for (uint32_t i = 0; i < o->max_seqs; i++) kv->seqs[i].next_unused = i + 1 < o->max_seqs ? i + 1 : NONE;
    names_init(kv);
    return kv;
}

void kv_close(struct kv *kv) {
    if (!kv) return;
    free(kv->page_next);
    free(kv->nodes);
    free(kv->buckets);
    free(kv->seqs);
    free(kv->seq_nodes);
    for (uint32_t k = 0; k < KV_KINDS_MAX; k++) free(kv->tables[k]);
    free(kv->recount.page_seen);
    free(kv->recount.users);
    free(kv->recount.refs);
    free(kv);
}

int kv_seq_begin(struct kv *kv, uint64_t salt) {
    uint32_t i = kv->unused_seq;
    if (i == NONE) return -1;
    struct kv_seq *q = &kv->seqs[i];
    kv->unused_seq = q->next_unused;
    *q = (struct kv_seq){.open = true, .salt = salt};
    return (int)i;
}

void kv_seq_end(struct kv *kv, int seq) {
    struct kv_seq *q = seq_get(kv, seq);
    for (uint32_t b = q->n_blocks; b-- > 0;) {
        for (uint32_t k = 0; k < kv->o.n_kinds; k++)
            if (k != kv->primary && b >= q->first_live[k]) seq_block_release(kv, seq, k, b);
        if (b >= q->first_live[kv->primary]) seq_block_release(kv, seq, kv->primary, b);
    }
    if (q->n_named > 0) names_unref(kv, *seq_node_at(kv, (uint32_t)seq, q->n_named - 1));
    q->open = false;
    q->next_unused = kv->unused_seq;
    kv->unused_seq = (uint32_t)seq;
}

void seq_block_release(struct kv *kv, int seq, uint32_t kind, uint32_t block) {
    uint32_t *pages = table_at(kv, (uint32_t)seq, kind, block);
    bool named = block < kv->seqs[seq].n_named;
    if (named) part_unref(kv, *seq_node_at(kv, (uint32_t)seq, block), kind);
    for (uint32_t u = 0; u < kv->o.units[kind]; u++) {
        if (!named) pool_page_push(kv, pages[u]);
        pages[u] = KV_PAGE_NONE;
    }
}

uint32_t kv_pages_available(const struct kv *kv) {
    return kv->n_free + kv->n_cached;
}

uint32_t kv_tokens_max(const struct kv *kv) {
    return kv->o.max_blocks_per_seq * KV_BLOCK_TOKENS;
}

bool kv_prefix_enabled(const struct kv *kv) {
    return kv->o.prefix_cache;
}

uint32_t kv_seqs_max(const struct kv *kv) {
    return kv->o.max_seqs;
}

uint32_t kv_block_pages(const struct kv *kv) {
    return kv->block_pages;
}

uint64_t kv_epoch(const struct kv *kv) {
    return kv->epoch;
}

uint64_t kv_pages_needed(const struct kv *kv, int seq, uint32_t n_tokens) {
    uint32_t have = seq_get(kv, seq)->n_blocks, want = blocks_of(n_tokens);
    return want > have ? (uint64_t)(want - have) * kv->block_pages : 0;
}

uint64_t kv_pages_span(const struct kv *kv, uint32_t from, uint32_t n_tokens, uint32_t chunk) {
    if (n_tokens <= from) return 0;
    uint64_t n_pages = 0;
    for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
        uint64_t n_blocks = blocks_of(n_tokens) - blocks_of(from);
        if (kv->o.window[k] > 0) {
            /* A step holds `span` positions in a row, which touch most blocks when they begin at the end of one. */
            uint64_t span = (uint64_t)kv->o.window[k] - 1 + chunk;
            uint64_t most = (span + KV_BLOCK_TOKENS - 2) / KV_BLOCK_TOKENS + 1;
            if (n_blocks > most) n_blocks = most;
        }
        n_pages += n_blocks * kv->o.units[k];
    }
    return n_pages;
}

uint32_t kv_seq_pages(const struct kv *kv, int seq) {
    const struct kv_seq *q = seq_get(kv, seq);
    uint32_t n_pages = 0;
    for (uint32_t k = 0; k < kv->o.n_kinds; k++) n_pages += (q->n_blocks - q->first_live[k]) * kv->o.units[k];
    return n_pages;
}

uint32_t kv_seq_tokens(const struct kv *kv, int seq) {
    return seq_get(kv, seq)->n_blocks * KV_BLOCK_TOKENS;
}

bool kv_can_grow(const struct kv *kv, int seq, uint32_t n_tokens) {
    return blocks_of(n_tokens) <= kv->o.max_blocks_per_seq &&
           kv_pages_needed(kv, seq, n_tokens) <= kv_pages_available(kv);
}

uint32_t kv_grow_max(const struct kv *kv, int seq, uint32_t n_tokens) {
    uint32_t n_blocks = seq_get(kv, seq)->n_blocks + kv_pages_available(kv) / kv->block_pages;
    if (n_blocks > kv->o.max_blocks_per_seq) n_blocks = kv->o.max_blocks_per_seq;
    return blocks_of(n_tokens) <= n_blocks ? n_tokens : n_blocks * KV_BLOCK_TOKENS;
}

void kv_grow(struct kv *kv, int seq, uint32_t n_tokens) {
    ASSERT(kv_can_grow(kv, seq, n_tokens));
    struct kv_seq *q = seq_get(kv, seq);
    for (uint32_t want = blocks_of(n_tokens); q->n_blocks < want; q->n_blocks++)
        for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
            uint32_t *pages = table_at(kv, (uint32_t)seq, k, q->n_blocks);
            for (uint32_t u = 0; u < kv->o.units[k]; u++) pages[u] = pool_page_pop(kv);
        }
}

const uint32_t *kv_table(const struct kv *kv, int seq, uint32_t kind) {
    ASSERT(kind < kv->o.n_kinds && seq_get(kv, seq)->open);
    return table_at(kv, (uint32_t)seq, kind, 0);
}

void kv_stats_get(const struct kv *kv, struct kv_stats *s) {
    *s = (struct kv_stats){
        .pages_total = kv->o.n_pages,
        .pages_free = kv->n_free,
        .pages_cached = kv->n_cached,
        .pages_used = kv->o.n_pages - kv->n_free - kv->n_cached,
        .blocks_named = kv->n_primary,
        .prefix_queries_tokens = kv->queries_tokens,
        .prefix_hits_tokens = kv->hits_tokens,
        .evictions = kv->evictions,
    };
}

void kv_on_event(struct kv *kv, void (*fn)(void *arg, const struct kv_event *ev), void *arg) {
    kv->on_event = fn;
    kv->event_arg = arg;
}
