/* kvcache.h - paged KV memory as bookkeeping: pages, block tables, prefix reuse. No tensor is touched here.
 *
 * Vocabulary. A *page* holds K and V of KV_PAGE_TOKENS tokens for `layers_per_page` layers. A *block* is the
 * pages of one run of KV_PAGE_TOKENS positions for all layers of one *kind* (full attention, sliding window):
 * units[kind] pages. All pages are equal and come from one pool. A sequence owns one block table per kind.
 *
 * Prefix reuse. A full block is named by a chained keyed hash (XXH3-128 of salt, parent hash and its tokens) and
 * verified by comparing tokens and parent, so a collision can never share. Blocks whose last user left stay cached
 * until the pool needs them (least recently used first). Different salts never share. A prefix hit needs every
 * block of the full kind and the blocks of the window kind that the next position can see.
 *
 * Window layers: blocks that every future position has passed are released as the sequence grows.
 *
 * Ask, then act: kv_can_* first, then the act, which cannot fail. One owner: the engine thread (or the simulator).
 */
#ifndef CHOIR_KVCACHE_H
#define CHOIR_KVCACHE_H

#include "common/err.h"

enum { KV_KINDS_MAX = 2, KV_BLOCK_TOKENS = 32 /* = KV_PAGE_TOKENS of kernels.h, asserted in model/ */ };

struct kv_options {
    uint32_t n_pages;
    uint32_t n_kinds;
    uint32_t units[KV_KINDS_MAX];  /* pages per block of this kind */
    uint32_t window[KV_KINDS_MAX]; /* positions a layer of this kind sees; 0: all */
    bool prefix_cache;
    uint64_t hash_key[2];          /* random per deployment: hashes cannot be forged from outside */
    uint32_t max_seqs, max_blocks_per_seq; /* sizes of the block tables, allocated once */
};

struct kv; 
struct kv *kv_open(const struct kv_options *o, struct err *e);
void kv_close(struct kv *kv);

/* A sequence's hold on the cache: an index 0..max_seqs-1. */
int kv_seq_begin(struct kv *kv, uint64_t salt); /* -1: all in use (the scheduler keeps count, so: a bug) */
void kv_seq_end(struct kv *kv, int seq);        /* releases all its blocks (full ones stay cached) */

/* Longest usable cached prefix of tokens[0..n), in tokens: a multiple of KV_BLOCK_TOKENS, at most n - 1. */
uint32_t kv_prefix_find(const struct kv *kv, int seq, const int32_t *tokens, uint32_t n);
/* Takes it: references those blocks. Only on a sequence that holds nothing yet. */
void kv_prefix_take(struct kv *kv, int seq, const int32_t *tokens, uint32_t n_tokens);

/* Pages that growing the sequence to n_tokens positions would take from free + cached ones. */
uint32_t kv_pages_needed(const struct kv *kv, int seq, uint32_t n_tokens);
bool kv_can_grow(const struct kv *kv, int seq, uint32_t n_tokens);
void kv_grow(struct kv *kv, int seq, uint32_t n_tokens);
/* Positions [0, n_tokens) of the sequence are now computed: names full blocks for reuse, releases blocks the
 * window has passed. tokens: the sequence's ids from position 0. */
void kv_commit(struct kv *kv, int seq, const int32_t *tokens, uint32_t n_tokens);

/* Block table of a kind: entry [block * units + unit] is a page index; UINT32_MAX where released. */
const uint32_t *kv_table(const struct kv *kv, int seq, uint32_t kind);

struct kv_stats {
    uint32_t pages_total, pages_free, pages_cached, pages_used; /* cached: reusable, no user */
    uint64_t prefix_queries_tokens, prefix_hits_tokens, evictions;
};
void kv_stats_get(const struct kv *kv, struct kv_stats *s);

/* Walks everything: counts, references, hash chains, tables, no page twice, no block shared across salts.
 * False with the first violation in *e. Runs when the engine goes idle and after every simulated step. */
bool kv_check(const struct kv *kv, struct err *e);

/* A block event for routers: stored or removed, by its chained hash. */
struct kv_event {
    enum { KV_EVENT_STORED, KV_EVENT_REMOVED } kind;
    uint64_t hash, parent;
    uint64_t salt;
};
void kv_on_event(struct kv *kv, void (*fn)(void *arg, const struct kv_event *ev), void *arg);

#endif
