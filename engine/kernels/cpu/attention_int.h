/* attention_int.h - what attention.c and its three inner parts (scalar, AVX2, AVX-512) share.
 *
 * A unit is one sequence x one KV head x up to ATTN_QUERIES queries that attend to it: a few rows times the heads
 * of the group, row by row. Units are independent. attention.c cuts the work into units and splits and calls the
 * inner functions; the definition of the arithmetic is attention_scalar.c.
 */
#ifndef CHOIR_KERNELS_CPU_ATTENTION_INT_H
#define CHOIR_KERNELS_CPU_ATTENTION_INT_H

#include "engine/kernels/cpu/kv_layout.h"

enum {
    ATTN_QUERIES = 128,    /* at most: K and V conversion, shared by so many, is about 3 % of their arithmetic */
    ATTN_QUERIES_MIN = 32, /* a unit of several rows has so many when there are few units for the threads */
    ATTN_GROUP = 8,        /* queries that a micro-kernel walks together */
    ATTN_PANEL = 32,       /* dimensions of V that a micro-kernel walks together */
    ATTN_HEAD_DIM_MAX = 512,
    ATTN_SPLIT_PAGES = ATTN_SPLIT_TOKENS / KV_PAGE_TOKENS,
};

struct attn_query {
    const float *q;  /* [head_dim] */
    float *out;      /* [head_dim] */
    uint32_t lo, hi; /* sees positions lo <= p < hi; never empty */
};

struct attn_unit {
    const struct attention *a;
    const struct kv_rows *seq;
    struct kv_shape shape;
    uint32_t kv_head;
    uint32_t n_queries;
    uint32_t lo, hi; /* what any of the queries sees */
    struct attn_query query[ATTN_QUERIES];
};

/* Where the result of splits goes, per query: maximum, sum of weights, weighted sum of V. */
struct attn_acc {
    float *m, *l; /* [n_queries] */
    float *o[ATTN_QUERIES];
};

/* Working memory of one thread. */
struct attn_scratch {
    _Alignas(64) float k_tile[ATTN_HEAD_DIM_MAX * KV_PAGE_TOKENS];             /* [head_dim][32] */
    _Alignas(64) float v_panel[ATTN_SPLIT_TOKENS * ATTN_PANEL];                /* [256][32] */
    _Alignas(64) float score[ATTN_QUERIES][ATTN_SPLIT_TOKENS];                 /* scores, then weights */
    _Alignas(64) float k_scale[ATTN_SPLIT_TOKENS], v_scale[ATTN_SPLIT_TOKENS]; /* DT_I8 */
    _Alignas(64) float o_split[ATTN_GROUP][ATTN_PANEL];
    _Alignas(64) float m[ATTN_QUERIES], l[ATTN_QUERIES]; /* of this split */
    _Alignas(64) float fold_old[ATTN_QUERIES], fold_new[ATTN_QUERIES];
    _Alignas(64) float acc_m[ATTN_QUERIES], acc_l[ATTN_QUERIES]; /* of all splits so far */
};

/* Computes one split (positions [split * 256, split * 256 + 256)) for all queries of the unit that see some of it.
 * With `alone`, or where it is the query's first split, the result is stored to acc, else folded into it. */
typedef void attn_split_fn(const struct attn_unit *u, uint32_t split, bool alone, struct attn_scratch *s,
                           const struct attn_acc *acc);
/* Folds a later split of one query (m1, l1, o1) into (m, l, o). */
typedef void attn_fold_fn(float *m, float *l, float *o, float m1, float l1, const float *o1, uint32_t head_dim);
/* out = o / l by its reciprocal; in place. */
typedef void attn_finish_fn(float *o, float l, uint32_t head_dim);

attn_split_fn attn_split_scalar, attn_split_avx2, attn_split_avx512;
attn_fold_fn attn_fold_scalar, attn_fold_avx2, attn_fold_avx512;
attn_finish_fn attn_finish_scalar, attn_finish_avx2, attn_finish_avx512;

/* This unit's part of the page that holds `position`. */
static inline const uint8_t *attn_page(const struct attn_unit *u, uint32_t position) {
    return kv_page_at(u->a->kv, u->seq, position);
}
static inline const uint8_t *attn_page_k(const struct attn_unit *u, const uint8_t *page) {
    return page + u->kv_head * u->shape.head_bytes;
}
static inline const uint8_t *attn_page_v(const struct attn_unit *u, const uint8_t *page) {
    return page + u->shape.v_offset + u->kv_head * u->shape.head_bytes;
}

/* The part of [lo, hi) inside a split, relative to its first position; a >= b: none. */
struct attn_span {
    uint32_t a, b;
};
static inline struct attn_span attn_span_in(uint32_t lo, uint32_t hi, uint32_t split) {
    uint32_t first = split * ATTN_SPLIT_TOKENS;
    uint32_t end = hi - first < ATTN_SPLIT_TOKENS ? hi - first : ATTN_SPLIT_TOKENS;
    if (hi <= first) return (struct attn_span){0, 0};
    return (struct attn_span){lo > first ? lo - first : 0, end};
}

#endif
