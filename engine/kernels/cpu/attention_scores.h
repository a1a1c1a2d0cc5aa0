/* attention_scores.h - scores of attention on sixteen lanes: tokens are lanes, queries are broadcast. A part of
 * attention_body.h, which tells the design.
 */

SIMD16_FN v16 load_elems(enum dtype t, const uint8_t *base, size_t i) {
    switch (t) {
    case DT_F16:
        return v16_load_f16((const uint16_t *)(const void *)base + i);
    case DT_BF16:
        return v16_load_bf16((const uint16_t *)(const void *)base + i);
    case DT_I8:
        return v16_load_i8((const int8_t *)base + i);
    default:
        return v16_load((const float *)(const void *)base + i);
    }
}

/* What a tile of K is computed from. With few queries memory is the limit: while a K page is walked, the V page of the
 * same tokens and the next K page are fetched line by line; the hardware does not foresee either. */
struct key_rows {
    const uint8_t *k; /* [head_dim][32] */
    uint32_t head_dim;
    const uint8_t *ahead[2]; /* of the same size; NULL: nothing to fetch */
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
            if (t == 0) fetch_ahead(rows, d * line, line);
#pragma GCC unroll 2
            for (uint32_t v = 0; v < BODY_VECS; v++)
                kv[v] = load_elems(type, k, (size_t)d * KV_PAGE_TOKENS + t + 16 * v);
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
SIMD16_FN void scores_type(const enum dtype type, uint32_t n, const struct attn_query *q, struct key_rows rows,
                           float *score) {
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

SIMD16_TARGET static void scores_any(enum dtype type, uint32_t n, const struct attn_query *q,
                                     const struct key_rows *rows, float *score) {
    switch (type) {
    case DT_F16:
        scores_type(DT_F16, n, q, *rows, score);
        break;
    case DT_BF16:
        scores_type(DT_BF16, n, q, *rows, score);
        break;
    case DT_I8:
        scores_type(DT_I8, n, q, *rows, score);
        break;
    default:
        scores_type(DT_F32, n, q, *rows, score);
        break;
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
