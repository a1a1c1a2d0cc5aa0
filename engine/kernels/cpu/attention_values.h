/* attention_values.h - weighted sums of V on sixteen lanes: dimensions are lanes, weights are broadcast. A part of
 * attention_body.h, which tells the design.
 */

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
    for (; n >= BODY_QUERIES;
         n -= BODY_QUERIES, w += BODY_QUERIES * ATTN_SPLIT_TOKENS, o += BODY_QUERIES * ATTN_PANEL) {
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
    case DT_F16:
        values_type(DT_F16, n_dims, n, rows, w, a, b, o);
        break;
    case DT_BF16:
        values_type(DT_BF16, n_dims, n, rows, w, a, b, o);
        break;
    case DT_I8:
        values_type(DT_I8, n_dims, n, rows, w, a, b, o);
        break;
    default:
        values_type(DT_F32, n_dims, n, rows, w, a, b, o);
        break;
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
SIMD16_TARGET static void v_convert(enum dtype type, const struct value_rows *from, struct attn_span seen,
                                    uint32_t n_dims, float *panel) {
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
