/* kv_int.h - the records behind kvcache.h, shared by the files of this folder.
 *
 * A *node* is the name of one block-sized run of tokens after one exact history: (parent node, salt, tokens). For
 * each kind it may hold a *part*: the pages with K and V of that run. A name can outlive its parts while longer
 * names build on it, so identity never rests on a hash. Records refer to each other by index; NONE ends a list.
 */
#ifndef CHOIR_KV_INT_H
#define CHOIR_KV_INT_H

#include "engine/kvcache/kvcache.h"

#define NONE UINT32_MAX

struct part {
    uint32_t first_page; /* its pages are linked by page_next, in unit order; NONE: the node has no such part */
    uint32_t users;      /* sequences whose table shows it; 0: it stands in the LRU list */
    uint32_t lru_prev, lru_next;
};

struct node {
    struct kv_hash hash;
    uint64_t salt;
    uint32_t parent; /* NONE: a first block */
    uint32_t refs;   /* children, and sequences whose last named block this is */
    uint32_t next;   /* in its bucket, or in the list of unused nodes */
    bool live;
    struct part parts[KV_KINDS_MAX];
    int32_t tokens[KV_BLOCK_TOKENS];
};

struct kv_seq {
    bool open;
    bool nameless; /* no node could be had for one of its blocks: those after it cannot be named either */
    uint64_t salt;
    uint32_t n_blocks;                 /* in its tables */
    uint32_t n_named;                  /* leading blocks that have a node */
    uint32_t n_computed;               /* tokens committed */
    uint32_t first_live[KV_KINDS_MAX]; /* blocks before it were released */
    uint32_t next_unused;
};

/* What kv_check counts anew, allocated with the rest so that a check cannot fail for want of memory. */
struct kv_recount {
    uint8_t *page_seen; /* [n_pages] */
    uint32_t *users;    /* [n_nodes][KV_KINDS_MAX] */
    uint32_t *refs;     /* [n_nodes] */
};

struct kv {
    struct kv_options o;
    uint32_t primary;     /* the kind that sees farthest: its users are a superset of the other's */
    uint32_t block_pages; /* sum of units */
    uint32_t n_nodes;     /* capacity */
    uint32_t bucket_mask;

    uint32_t *page_next; /* [n_pages]: the free stack, or the pages of one part */
    uint32_t free_page, n_free;

    struct node *nodes; /* [n_nodes] */
    uint32_t unused_node;
    uint32_t *buckets;            /* [bucket_mask + 1] */
    uint32_t lru_first, lru_last; /* entries node * KV_KINDS_MAX + kind; first: least recently used */
    uint32_t n_cached;            /* pages in the LRU list */
    uint32_t n_primary;           /* nodes that hold the primary part */

    struct kv_seq *seqs; /* [max_seqs] */
    uint32_t unused_seq;
    uint32_t *tables[KV_KINDS_MAX]; /* [max_seqs][max_blocks_per_seq][units] */
    uint32_t *seq_nodes;            /* [max_seqs][max_blocks_per_seq], the first n_named are set */

    struct kv_recount recount;
    uint64_t epoch;
    uint64_t queries_tokens, hits_tokens, evictions;
    void (*on_event)(void *arg, const struct kv_event *ev);
    void *event_arg;
};

static inline uint32_t blocks_of(uint32_t n_tokens) {
    return n_tokens / KV_BLOCK_TOKENS + (n_tokens % KV_BLOCK_TOKENS != 0);
}

/* The first block that a row at position n or later can see. */
static inline uint32_t first_visible(const struct kv *kv, uint32_t kind, uint32_t n) {
    uint32_t w = kv->o.window[kind];
    return w == 0 || n < w ? 0 : (n - w + 1) / KV_BLOCK_TOKENS;
}

static inline uint32_t *table_at(const struct kv *kv, uint32_t seq, uint32_t kind, uint32_t block) {
    size_t row = (size_t)seq * kv->o.max_blocks_per_seq + block;
    return kv->tables[kind] + row * kv->o.units[kind];
}

static inline uint32_t *seq_node_at(const struct kv *kv, uint32_t seq, uint32_t block) {
    return kv->seq_nodes + (size_t)seq * kv->o.max_blocks_per_seq + block;
}

/* The record of a sequence that kv_seq_begin handed out. */
static inline struct kv_seq *seq_get(const struct kv *kv, int seq) {
    ASSERT(seq >= 0 && (uint32_t)seq < kv->o.max_seqs && kv->seqs[seq].open);
    return &kv->seqs[seq];
}

/* Gives back one block of one kind: to its part if it has a name, else to the free pages. */
void seq_block_release(struct kv *kv, int seq, uint32_t kind, uint32_t block);

/* ---- pool.c: pages and parts ---- */

void pool_page_push(struct kv *kv, uint32_t page);
/* Takes a page, evicting the least recently used part if none is free. There must be one (kv_pages_available). */
uint32_t pool_page_pop(struct kv *kv);
/* False: nothing is cached. */
bool pool_evict(struct kv *kv);
/* Gives the node the pages in pages[units] as its part of a kind, with one user. */
void part_attach(struct kv *kv, uint32_t node, uint32_t kind, const uint32_t *pages);
/* Adds a user and writes the part's pages to pages[units]. */
void part_ref(struct kv *kv, uint32_t node, uint32_t kind, uint32_t *pages);
void part_unref(struct kv *kv, uint32_t node, uint32_t kind);

/* ---- names.c: the index of nodes ---- */

void names_init(struct kv *kv);
/* The child of parent (NONE: of nothing) that has these tokens and this salt, or NONE. *hash is set in either case. */
uint32_t names_find(const struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens, struct kv_hash *hash);
/* A new node, without parts and references. May evict; NONE when every node is in use. */
uint32_t names_add(struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens, struct kv_hash hash);
struct kv_hash names_hash(const struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens);
void names_ref(struct kv *kv, uint32_t node);
void names_unref(struct kv *kv, uint32_t node);
/* Forgets the node, and then its ancestors, as far as they hold no part and nothing refers to them. */
void names_drop_unused(struct kv *kv, uint32_t node);
void names_event(const struct kv *kv, uint32_t node, int kind);

#endif
