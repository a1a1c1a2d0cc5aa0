/* kvcache.h - paged KV memory as bookkeeping: pages, block tables, prefix reuse. No tensor is touched here.
 *
 * Vocabulary. A *page* holds K and V of KV_PAGE_TOKENS tokens for `layers_per_page` layers. A *block* is the
 * pages of one run of KV_PAGE_TOKENS positions for all layers of one *kind* (full attention, sliding window):
 * units[kind] pages. All pages are equal and come from one pool. A sequence owns one block table per kind.
 *
 * Prefix reuse. A full block is named by a chained keyed hash (XXH3-128 of salt, parent hash and its tokens) and
 * verified by comparing tokens, salt and parent block, so a collision can never share. Blocks whose last user left
 * stay cached until the pool needs them (least recently used first). Different salts never share. A prefix hit
 * needs every block of the full kind and those blocks of the window kind that the next position can see.
 *
 * Window layers: blocks that every future position has passed are released as the sequence grows.
 *
 * Ask, then act: kv_can_* first, then the act, which cannot fail. One owner: the engine thread (or the simulator).
 * All memory is allocated by kv_open; every operation is O(1) per block that it touches.
 */
#ifndef CHOIR_KVCACHE_H
#define CHOIR_KVCACHE_H

#include "common/err.h"

enum {
    KV_KINDS_MAX = 2,
    KV_BLOCK_TOKENS = 32, /* = KV_PAGE_TOKENS of kernels.h, asserted in model/ */
    KV_PAGES_MAX = 1 << 28,
    KV_UNITS_MAX = 1 << 12,
    KV_SEQS_MAX = 1 << 16,
    KV_SEQ_BLOCKS_MAX = 1 << 20,
};

/* An entry of a block table that no longer has a page: the window has passed it. */
#define KV_PAGE_NONE UINT32_MAX

struct kv_hash {
    uint64_t lo, hi;
};

struct kv_options {
    uint32_t n_pages;
    uint32_t n_kinds;
    uint32_t units[KV_KINDS_MAX];  /* pages per block of this kind */
    uint32_t window[KV_KINDS_MAX]; /* positions a layer of this kind sees, its own included; 0: all */
    bool prefix_cache;
    uint64_t hash_key[2]; /* random per deployment: hashes cannot be forged from outside */
    struct kv_hash (*hash)(const uint64_t key[2], const void *data, size_t n_bytes); /* NULL: XXH3-128 */
    uint32_t max_seqs, max_blocks_per_seq; /* sizes of the block tables, allocated once */
};

struct kv;
/* NULL with *e (LOAD) when a size is zero, over its limit, or memory is short. */
struct kv *kv_open(const struct kv_options *o, struct err *e);
void kv_close(struct kv *kv);

/* A sequence's hold on the cache: an index 0..max_seqs-1. */
int kv_seq_begin(struct kv *kv, uint64_t salt); /* -1: all in use (the scheduler keeps count, so: a bug) */
void kv_seq_end(struct kv *kv, int seq);        /* releases all its blocks (named ones stay cached) */

bool kv_prefix_enabled(const struct kv *kv);
/* Longest usable cached prefix of tokens[0..n), in tokens: a multiple of KV_BLOCK_TOKENS, at most n - 1.
 * *pages_pinned (may be NULL): how many of its pages have no user now, so that taking it makes them unavailable. */
uint32_t kv_prefix_find(const struct kv *kv, uint64_t salt, const int32_t *tokens, uint32_t n, uint32_t *pages_pinned);
/* Finds and takes it: the sequence now holds those blocks. Only on a sequence that holds nothing yet. Returns tokens.
 */
uint32_t kv_prefix_take(struct kv *kv, int seq, const int32_t *tokens, uint32_t n);

/* Pages that can be had now: free ones and cached ones. */
uint32_t kv_pages_available(const struct kv *kv);
/* Pages that growing the sequence to n_tokens positions would take from the available ones. */
uint64_t kv_pages_needed(const struct kv *kv, int seq, uint32_t n_tokens);
/* Upper bound on the pages that computing positions [from, n_tokens) takes beyond those held for [0, from), when no
 * step computes more than `chunk` of them. With from 0 and chunk 1 it is exact: what a sequence needs to run alone. */
uint64_t kv_pages_span(const struct kv *kv, uint32_t from, uint32_t n_tokens, uint32_t chunk);
uint32_t kv_seq_pages(const struct kv *kv, int seq);  /* pages in its tables, shared ones included */
uint32_t kv_seq_tokens(const struct kv *kv, int seq); /* positions that have room: a multiple of KV_BLOCK_TOKENS */
uint32_t kv_tokens_max(const struct kv *kv);          /* positions that a block table has room for */
uint32_t kv_seqs_max(const struct kv *kv);
uint32_t kv_block_pages(const struct kv *kv); /* pages that one more block takes, all kinds together */

bool kv_can_grow(const struct kv *kv, int seq, uint32_t n_tokens);
/* The largest n <= n_tokens to which the sequence can grow now (at least what it has room for, or n_tokens). */
uint32_t kv_grow_max(const struct kv *kv, int seq, uint32_t n_tokens);
void kv_grow(struct kv *kv, int seq, uint32_t n_tokens);
/* Positions [0, n_tokens) of the sequence are now computed: names full blocks for reuse, releases blocks the
 * window has passed. tokens: the sequence's ids from position 0. Where an equal block has a name already, the
 * sequence moves to that one (the contents are equal bit for bit) and its own pages go back; read kv_table anew. */
void kv_commit(struct kv *kv, int seq, const int32_t *tokens, uint32_t n_tokens);

/* Block table of a kind: entry [block * units + unit] is a page index; KV_PAGE_NONE where released. */
const uint32_t *kv_table(const struct kv *kv, int seq, uint32_t kind);

/* Changes whenever pages become available or a block gets a name: only then can a refused request fit. */
uint64_t kv_epoch(const struct kv *kv);

struct kv_stats {
    uint32_t pages_total, pages_free, pages_cached, pages_used; /* cached: reusable, no user */
    uint32_t blocks_named;                                      /* of the widest kind; what routers know of */
    uint64_t prefix_queries_tokens, prefix_hits_tokens, evictions;
};
void kv_stats_get(const struct kv *kv, struct kv_stats *s);

/* Walks everything: counts, references, hash chains, tables, no page twice, no block shared across salts.
 * False with the first violation in *e. Runs when the engine goes idle and after every simulated step. */
bool kv_check(const struct kv *kv, struct err *e);

/* A block event for routers: the block of the widest kind (full attention where the model has it) got its name or
 * lost its pages. tokens: KV_BLOCK_TOKENS ids, only during the call. parent: 0 for a first block. */
struct kv_event {
    enum { KV_EVENT_STORED, KV_EVENT_REMOVED } kind;
    uint64_t hash, parent;
    uint64_t salt;
    const int32_t *tokens;
};
void kv_on_event(struct kv *kv, void (*fn)(void *arg, const struct kv_event *ev), void *arg);

#endif
