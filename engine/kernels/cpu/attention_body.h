/* attention_body.h - attention of attention_scalar.c on sixteen lanes; included by attention_avx2.c and _avx512.c.
 *
 * Per split: scores of all queries page by page (tokens are lanes, queries are broadcast), weights, then V by panels
 * of 32 dimensions (dimensions are lanes, weights are broadcast). A micro-kernel keeps NQ queries x 32 tokens or
 * dimensions in registers, so that the load of a K or V vector serves NQ fmas.
 * With many queries K and V are first converted to fp32 in scratch; with few (decode) the micro-kernels read the
 * storage type themselves. Both do the same arithmetic on the same values.
 *
 * Queries of a group differ by a few positions at both ends of what they see. Scores are computed for the whole page
 * and selected by lane; V is walked together only where all queries of the group see it, and query by query at the
 * ends, so that an unseen value is never multiplied, not even by zero.
 */
#include "engine/kernels/cpu/attention_int.h"
#include "engine/kernels/cpu/simd16.h"

#if SIMD16_LEVEL == 2
enum { BODY_QUERIES = 8, BODY_VECS = 2 }; /* 16 accumulators of 32 registers */
#else
enum { BODY_QUERIES = 4, BODY_VECS = 1 }; /* 8 accumulators (4 x 2 ymm) of 16 registers */
#endif
enum { DIRECT_QUERIES = 4 }; /* up to so many queries convert in registers: decode with a usual group */

SIMD16_FN v16 load_elems(enum dtype t, const uint8_t *base, size_t i) {
    switch (t) {
    case DT_F16: return v16_load_f16((const uint16_t *)(const void *)base + i);
    case DT_BF16: return v16_load_bf16((const uint16_t *)(const void *)base + i);
    case DT_I8: return v16_load_i8((const int8_t *)base + i);
    default: return v16_load((const float *)(const void *)base + i);
    }
}

/* ---- Scores ---- */

/* What a tile of K is computed from. With few queries memory is the limit: while a K page is walked, the V page of the
 * same tokens and the next K page are fetched line by line; the hardware does not foresee either. */
struct key_rows {
    const uint8_t *k;         /* [head_dim][32] */
    uint32_t head_dim;
    const uint8_t *ahead[2];  /* of the same size; NULL: nothing to fetch */
};

SIMD16_FN void fetch_ahead(const struct key_rows *rows, size_t at, size_t bytes) {
    if (!rows->ahead[0]) return;
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(rows->ahead[0] + at + i, 0, 2);
        __builtin_prefetch(rows->ahead[1] + at + i, 0, 2);
    }
}

/* NQ queries x 32 tokens: score[i * 256 + t], t < 32. */
SIMD16_FN void scores_tile(const uint32_t nq, const enum dtype type, const struct attn_query *query,
                           const struct key_rows *rows, float *score) {
    const uint32_t head_dim = rows->head_dim;
    const uint8_t *k = rows->k;
    const float *q[BODY_QUERIES];
    for (uint32_t i = 0; i < nq; i++) q[i] = query[i].q;
    for (uint32_t t = 0; t < KV_PAGE_TOKENS; t += 16 * BODY_VECS) {
        v16 acc[BODY_QUERIES][BODY_VECS];
#pragma GCC unroll 8
        for (uint32_t i = 0; i < nq; i++) {
#pragma GCC unroll 2
            for (uint32_t v = 0; v < BODY_VECS; v++) acc[i][v] = v16_set1(0.0f);
        }
        for (uint32_t d = 0; d < head_dim; d++) {
            v16 kv[BODY_VECS];
            const size_t line = (size_t)KV_PAGE_TOKENS * kv_elem_bytes(type);
            if (nq <= DIRECT_QUERIES && t == 0) fetch_ahead(rows, d * line, line);
#pragma GCC unroll 2
            for (uint32_t v = 0; v < BODY_VECS; v++) kv[v] = load_elems(type, k, (size_t)d * KV_PAGE_TOKENS + t + 16 * v);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < nq; i++) {
                v16 x = v16_set1(q[i][d]);
#pragma GCC unroll 2
                for (uint32_t v = 0; v < BODY_VECS; v++) acc[i][v] = v16_fma(x, kv[v], acc[i][v]);
            }
        }
#pragma GCC unroll 8
        for (uint32_t i = 0; i < nq; i++) {
#pragma GCC unroll 2
            for (uint32_t v = 0; v < BODY_VECS; v++) v16_store(score + i * ATTN_SPLIT_TOKENS + t + 16 * v, acc[i][v]);
        }
    }
}

/* Any n of up to ATTN_GROUP queries, in powers of two. */
SIMD16_FN void scores_type(const enum dtype type, uint32_t n, const struct attn_query *q, struct key_rows rows, float *score) {
    for (; n >= BODY_QUERIES; n -= BODY_QUERIES, q += BODY_QUERIES, score += BODY_QUERIES * ATTN_SPLIT_TOKENS) {
        scores_tile(BODY_QUERIES, type, q, &rows, score);
        rows.ahead[0] = NULL;
    }
    if (BODY_QUERIES > 4 && n >= 4) {
        scores_tile(4, type, q, &rows, score);
        rows.ahead[0] = NULL;
        n -= 4, q += 4, score += 4 * ATTN_SPLIT_TOKENS;
    }
    if (n >= 2) {
        scores_tile(2, type, q, &rows, score);
        rows.ahead[0] = NULL;
        n -= 2, q += 2, score += 2 * ATTN_SPLIT_TOKENS;
    }
    if (n) scores_tile(1, type, q, &rows, score);
}

SIMD16_TARGET static void scores_any(enum dtype type, uint32_t n, const struct attn_query *q, const struct key_rows *rows,
                                     float *score) {
    switch (type) {
    case DT_F16: scores_type(DT_F16, n, q, *rows, score); break;
    case DT_BF16: scores_type(DT_BF16, n, q, *rows, score); break;
    case DT_I8: scores_type(DT_I8, n, q, *rows, score); break;
    default: scores_type(DT_F32, n, q, *rows, score); break;
    }
}

SIMD16_TARGET static void k_convert(enum dtype type, const uint8_t *k, uint32_t head_dim, float *tile) {
    size_t n = (size_t)head_dim * KV_PAGE_TOKENS;
    switch (type) {
    case DT_F16:
        for (size_t i = 0; i < n; i += 16) v16_store(tile + i, load_elems(DT_F16, k, i));
        break;
    case DT_BF16:
        for (size_t i = 0; i < n; i += 16) v16_store(tile + i, load_elems(DT_BF16, k, i));
        break;
    default:
        for (size_t i = 0; i < n; i += 16) v16_store(tile + i, load_elems(DT_I8, k, i));
        break;
    }
}

static bool reads_directly(const struct attn_unit *u) {
    return u->shape.type == DT_F32 || u->n_queries <= DIRECT_QUERIES;
}

/* Scores of all queries against one page, tokens t .. t + 31 of the split. */
static void scores_page(const struct attn_unit *u, uint32_t first, uint32_t t, enum dtype type, struct key_rows *rows,
                        struct attn_scratch *s) {
    for (uint32_t j = 0; j < u->n_queries; j += ATTN_GROUP) {
        uint32_t n = u->n_queries - j < ATTN_GROUP ? u->n_queries - j : ATTN_GROUP;
        /* Queries are in row order: the first sees the lowest position, the last the highest. */
        if (u->query[j + n - 1].hi <= first + t || u->query[j].lo >= first + t + KV_PAGE_TOKENS) continue;
        scores_any(type, n, &u->query[j], rows, &s->score[j][t]);
    }
}

/* Scores of all queries for the positions of one split that the unit sees; also its scales. */
static void scores_split(const struct attn_unit *u, uint32_t split, struct attn_span seen, struct attn_scratch *s) {
    uint32_t first = split * ATTN_SPLIT_TOKENS;
    const uint8_t *page = attn_page(u, first + seen.a), *next;
    for (uint32_t t = seen.a / KV_PAGE_TOKENS * KV_PAGE_TOKENS; t < seen.b; t += KV_PAGE_TOKENS, page = next) {
        bool last = first + t + KV_PAGE_TOKENS >= u->hi;
        next = last ? page : attn_page(u, first + t + KV_PAGE_TOKENS);
        struct key_rows rows = {.k = attn_page_k(u, page), .head_dim = u->shape.head_dim};
        if (u->shape.type == DT_I8) {
            size_t scale = sizeof(float) * KV_PAGE_TOKENS * u->kv_head;
            memcpy(s->k_scale + t, page + u->shape.k_scale_offset + scale, sizeof(float) * KV_PAGE_TOKENS);
            memcpy(s->v_scale + t, page + u->shape.v_scale_offset + scale, sizeof(float) * KV_PAGE_TOKENS);
        }
        if (reads_directly(u)) {
            if (u->n_queries <= DIRECT_QUERIES) {
                rows.ahead[0] = attn_page_v(u, page);
                rows.ahead[1] = attn_page_k(u, next);
            }
            scores_page(u, first, t, u->shape.type, &rows, s);
        } else {
            k_convert(u->shape.type, rows.k, u->shape.head_dim, s->k_tile);
            rows.k = (const uint8_t *)s->k_tile;
            scores_page(u, first, t, DT_F32, &rows, s);
        }
    }
}

/* ---- Weights ---- */

/* score -> weight of one query in place; see weights_of in attention_scalar.c. For DT_I8 the weights that are left
 * in `s` carry v_scale. */
SIMD16_TARGET static void weights_row(const struct attn_unit *u, struct attn_span in, struct attn_scratch *sc, float *s,
                                      float *m, float *l) {
    uint32_t g0 = in.a / 16 * 16;
    float cap = u->a->softcap;
    bool i8 = u->shape.type == DT_I8, second_pass = i8 || cap != 0.0f;
    v16 minus_inf = v16_set1(-HUGE_VALF), max = minus_inf;
    for (uint32_t g = g0; g < in.b; g += 16) {
        v16 x = v16_load(s + g);
        if (i8) x = v16_mul(x, v16_load(sc->k_scale + g));
        if (cap != 0.0f) {
            v16 e = v16_add(v16_exp(v16_mul(x, v16_set1(2.0f / cap))), v16_set1(1.0f));
            x = v16_sub(v16_set1(cap), v16_div(v16_set1(2.0f * cap), e));
        }
        bool edge = g < in.a || g + 16 > in.b;
        if (edge) x = v16_keep(x, g < in.a ? in.a - g : 0, in.b - g < 16 ? in.b - g : 16, minus_inf);
        if (edge || second_pass) v16_store(s + g, x);
        max = v16_max(x, max);
    }
    *m = v16_hmax(max);
    v16 top = v16_set1(*m), sum = v16_set1(0.0f);
    for (uint32_t g = g0; g < in.b; g += 16) {
        v16 w = v16_exp(v16_sub(v16_load(s + g), top));
        sum = v16_add(sum, w);
        if (i8) w = v16_mul(w, v16_load(sc->v_scale + g));
        v16_store(s + g, w);
    }
    *l = v16_sum(sum);
}

/* Weights of all queries, then the factors that fold this split into what acc has. */
SIMD16_TARGET static void weights_split(const struct attn_unit *u, uint32_t split, bool alone, struct attn_scratch *s,
                                        const struct attn_acc *acc) {
    memset(s->fold_old, 0, sizeof s->fold_old);
    memset(s->fold_new, 0, sizeof s->fold_new);
    for (uint32_t j = 0; j < u->n_queries; j++) {
        const struct attn_query *q = &u->query[j];
        struct attn_span in = attn_span_in(q->lo, q->hi, split);
        if (in.a >= in.b) continue;
        weights_row(u, in, s, s->score[j], &s->m[j], &s->l[j]);
        if (alone || q->lo >= split * ATTN_SPLIT_TOKENS) {
            acc->m[j] = s->m[j];
            acc->l[j] = s->l[j];
            continue;
        }
        float max = s->m[j] > acc->m[j] ? s->m[j] : acc->m[j];
        s->fold_old[j] = acc->m[j] - max;
        s->fold_new[j] = s->m[j] - max;
        acc->m[j] = max;
    }
    if (alone) return;
    for (uint32_t j = 0; j < u->n_queries; j += 16) {
        v16_store(s->fold_old + j, v16_exp(v16_load(s->fold_old + j)));
        v16_store(s->fold_new + j, v16_exp(v16_load(s->fold_new + j)));
    }
    for (uint32_t j = 0; j < u->n_queries; j++) {
        const struct attn_query *q = &u->query[j];
        if (q->lo >= split * ATTN_SPLIT_TOKENS || q->hi <= split * ATTN_SPLIT_TOKENS) continue;
        acc->l[j] = __builtin_fmaf(acc->l[j], s->fold_old[j], s->l[j] * s->fold_new[j]);
    }
}

/* ---- Values ---- */

/* Where the values of a split are: token t of it is row t % 32 of page[t / 32], rows `stride` elements apart. */
struct value_rows {
    enum dtype type;
    const uint8_t *page[ATTN_SPLIT_PAGES];
    size_t stride;
};

/* o[i * 32 + e] += w[i * 256 + t] v[t][e], NQ queries, NV x 16 dimensions, tokens [a, b) of the split. */
SIMD16_FN void values_tile(const uint32_t nq, const uint32_t nv, const enum dtype type, const struct value_rows *rows,
                           const float *w, uint32_t a, uint32_t b, float *o) {
    v16 acc[BODY_QUERIES][BODY_VECS];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < nq; i++) {
#pragma GCC unroll 2
        for (uint32_t v = 0; v < nv; v++) acc[i][v] = v16_load(o + i * ATTN_PANEL + 16 * v);
    }
    for (uint32_t t = a; t < b;) {
        const uint8_t *page = rows->page[t / KV_PAGE_TOKENS];
        size_t at = t % KV_PAGE_TOKENS * rows->stride;
        uint32_t end = (t / KV_PAGE_TOKENS + 1) * KV_PAGE_TOKENS;
        for (end = end < b ? end : b; t < end; t++, at += rows->stride) {
            v16 x[BODY_VECS];
#pragma GCC unroll 2
            for (uint32_t v = 0; v < nv; v++) x[v] = load_elems(type, page, at + 16 * v);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < nq; i++) {
                v16 wt = v16_set1(w[i * ATTN_SPLIT_TOKENS + t]);
#pragma GCC unroll 2
                for (uint32_t v = 0; v < nv; v++) acc[i][v] = v16_fma(wt, x[v], acc[i][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < nq; i++) {
#pragma GCC unroll 2
        for (uint32_t v = 0; v < nv; v++) v16_store(o + i * ATTN_PANEL + 16 * v, acc[i][v]);
    }
}

SIMD16_FN void values_queries(const uint32_t nv, const enum dtype type, uint32_t n, const struct value_rows *rows,
                              const float *w, uint32_t a, uint32_t b, float *o) {
    for (; n >= BODY_QUERIES; n -= BODY_QUERIES, w += BODY_QUERIES * ATTN_SPLIT_TOKENS, o += BODY_QUERIES * ATTN_PANEL) {
        values_tile(BODY_QUERIES, nv, type, rows, w, a, b, o);
    }
    if (BODY_QUERIES > 4 && n >= 4) {
        values_tile(4, nv, type, rows, w, a, b, o);
        n -= 4, w += 4 * ATTN_SPLIT_TOKENS, o += 4 * ATTN_PANEL;
    }
    if (n >= 2) {
        values_tile(2, nv, type, rows, w, a, b, o);
        n -= 2, w += 2 * ATTN_SPLIT_TOKENS, o += 2 * ATTN_PANEL;
    }
    if (n) values_tile(1, nv, type, rows, w, a, b, o);
}

/* 16 or 32 dimensions. */
SIMD16_FN void values_type(const enum dtype type, uint32_t n_dims, uint32_t n, const struct value_rows *rows,
                           const float *w, uint32_t a, uint32_t b, float *o) {
    if (BODY_VECS == 2 && n_dims == 32) {
        values_queries(2, type, n, rows, w, a, b, o);
        return;
    }
    values_queries(1, type, n, rows, w, a, b, o);
    if (n_dims == 16) return;
    struct value_rows upper = *rows;
    for (uint32_t i = a / KV_PAGE_TOKENS; i * KV_PAGE_TOKENS < b; i++) upper.page[i] += 16 * kv_elem_bytes(type);
    values_queries(1, type, n, &upper, w, a, b, o + 16);
}

SIMD16_TARGET static void values_any(uint32_t n_dims, uint32_t n, const struct value_rows *rows, const float *w,
                                     uint32_t a, uint32_t b, float *o) {
    switch (rows->type) {
    case DT_F16: values_type(DT_F16, n_dims, n, rows, w, a, b, o); break;
    case DT_BF16: values_type(DT_BF16, n_dims, n, rows, w, a, b, o); break;
    case DT_I8: values_type(DT_I8, n_dims, n, rows, w, a, b, o); break;
    default: values_type(DT_F32, n_dims, n, rows, w, a, b, o); break;
    }
}

/* The tokens that the n queries share in one go, what only some see query by query, ascending for each. */
static void values_group(const struct attn_query *q, uint32_t n, uint32_t split, uint32_t n_dims,
                         const struct value_rows *rows, const float *w, float *o) {
    /* Row order: the last query has the highest lo, the first the lowest hi. */
    struct attn_span all = attn_span_in(q[n - 1].lo, q[0].hi, split);
    bool common = all.a < all.b;
    for (uint32_t i = 0; i < n; i++) {
        struct attn_span in = attn_span_in(q[i].lo, q[i].hi, split);
        uint32_t end = common ? all.a : in.b;
        if (in.a < end) values_any(n_dims, 1, rows, w + i * ATTN_SPLIT_TOKENS, in.a, end, o + i * ATTN_PANEL);
    }
    if (!common) return;
    values_any(n_dims, n, rows, w, all.a, all.b, o);
    for (uint32_t i = 0; i < n; i++) {
        struct attn_span in = attn_span_in(q[i].lo, q[i].hi, split);
        if (all.b < in.b) values_any(n_dims, 1, rows, w + i * ATTN_SPLIT_TOKENS, all.b, in.b, o + i * ATTN_PANEL);
    }
}

/* Zeros the sums of a group and has its output rows fetched meanwhile: they are far apart and often not cached. */
SIMD16_TARGET static void values_begin(const struct attn_acc *acc, uint32_t j0, uint32_t n, uint32_t d,
                                       struct attn_scratch *s) {
    for (uint32_t i = 0; i < n; i++) {
        __builtin_prefetch(acc->o[j0 + i] + d, 1);
        __builtin_prefetch(acc->o[j0 + i] + d + ATTN_PANEL / 2, 1);
        for (uint32_t e = 0; e < ATTN_PANEL; e += 16) v16_store(&s->o_split[i][e], v16_set1(0.0f));
    }
}

/* Stores or folds what one group computed for dimensions [d, d + n_dims). */
SIMD16_TARGET static void values_fold(const struct attn_unit *u, uint32_t j0, uint32_t n, uint32_t split, bool alone,
                                      uint32_t d, uint32_t n_dims, const struct attn_scratch *s,
                                      const struct attn_acc *acc) {
    for (uint32_t i = 0; i < n; i++) {
        const struct attn_query *q = &u->query[j0 + i];
        struct attn_span in = attn_span_in(q->lo, q->hi, split);
        if (in.a >= in.b) continue;
        float *o = acc->o[j0 + i] + d;
        bool first = alone || q->lo >= split * ATTN_SPLIT_TOKENS;
        v16 a = v16_set1(s->fold_old[j0 + i]), b = v16_set1(s->fold_new[j0 + i]);
        for (uint32_t e = 0; e < n_dims; e += 16) {
            v16 x = v16_load(&s->o_split[i][e]);
            v16_store(o + e, first ? x : v16_fma(v16_load(o + e), a, v16_mul(x, b)));
        }
    }
}

/* The panel [d, d + n_dims) of V of the seen tokens, in fp32, [256][32]. */
SIMD16_TARGET static void v_convert(enum dtype type, const struct value_rows *from, struct attn_span seen, uint32_t n_dims,
                                    float *panel) {
    for (uint32_t t = seen.a; t < seen.b; t++) {
        const uint8_t *page = from->page[t / KV_PAGE_TOKENS];
        size_t at = t % KV_PAGE_TOKENS * from->stride;
        for (uint32_t e = 0; e < n_dims; e += 16) {
            v16 x = type == DT_F16    ? load_elems(DT_F16, page, at + e)
                    : type == DT_BF16 ? load_elems(DT_BF16, page, at + e)
                                      : load_elems(DT_I8, page, at + e);
            v16_store(panel + (size_t)t * ATTN_PANEL + e, x);
        }
    }
}

static void values_split(const struct attn_unit *u, uint32_t split, struct attn_span seen, bool alone,
                         struct attn_scratch *s, const struct attn_acc *acc) {
    uint32_t first = split * ATTN_SPLIT_TOKENS, head_dim = u->shape.head_dim;
    struct value_rows stored = {.type = u->shape.type, .stride = head_dim};
    struct value_rows panel = {.type = DT_F32, .stride = ATTN_PANEL};
    for (uint32_t i = seen.a / KV_PAGE_TOKENS; i * KV_PAGE_TOKENS < seen.b; i++) {
        stored.page[i] = attn_page_v(u, attn_page(u, first + i * KV_PAGE_TOKENS));
        panel.page[i] = (const uint8_t *)(s->v_panel + (size_t)i * KV_PAGE_TOKENS * ATTN_PANEL);
    }
    for (uint32_t d = 0; d < head_dim; d += ATTN_PANEL) {
        uint32_t n_dims = head_dim - d < ATTN_PANEL ? head_dim - d : ATTN_PANEL;
        const struct value_rows *rows = &stored;
        if (!reads_directly(u)) {
            v_convert(stored.type, &stored, seen, n_dims, s->v_panel);
            rows = &panel;
        }
        for (uint32_t j = 0; j < u->n_queries; j += ATTN_GROUP) {
            uint32_t n = u->n_queries - j < ATTN_GROUP ? u->n_queries - j : ATTN_GROUP;
            values_begin(acc, j, n, d, s);
            values_group(&u->query[j], n, split, n_dims, rows, s->score[j], s->o_split[0]);
            values_fold(u, j, n, split, alone, d, n_dims, s, acc);
        }
        for (uint32_t i = seen.a / KV_PAGE_TOKENS; i * KV_PAGE_TOKENS < seen.b; i++) {
            stored.page[i] += (size_t)ATTN_PANEL * u->shape.elem_bytes;
        }
    }
}

/* ---- Entry points ---- */

void SIMD16_NAME(attn_split)(const struct attn_unit *u, uint32_t split, bool alone, struct attn_scratch *s,
                             const struct attn_acc *acc) {
    struct attn_span seen = attn_span_in(u->lo, u->hi, split);
    if (seen.a >= seen.b) return;
    scores_split(u, split, seen, s);
    weights_split(u, split, alone, s, acc);
    values_split(u, split, seen, alone, s, acc);
}

SIMD16_TARGET void SIMD16_NAME(attn_fold)(float *m, float *l, float *o, float m1, float l1, const float *o1,
                                          uint32_t head_dim) {
    float max = m1 > *m ? m1 : *m, factor[16] = {*m - max, m1 - max};
    v16_store(factor, v16_exp(v16_load(factor)));
    *m = max;
    *l = __builtin_fmaf(*l, factor[0], l1 * factor[1]);
    v16 a = v16_set1(factor[0]), b = v16_set1(factor[1]);
    for (uint32_t d = 0; d < head_dim; d += 16) {
        v16_store(o + d, v16_fma(v16_load(o + d), a, v16_mul(v16_load(o1 + d), b)));
    }
}

SIMD16_TARGET void SIMD16_NAME(attn_finish)(float *o, float l, uint32_t head_dim) {
    v16 scale = v16_set1(1.0f / l);
    for (uint32_t d = 0; d < head_dim; d += 16) v16_store(o + d, v16_mul(v16_load(o + d), scale));
}
