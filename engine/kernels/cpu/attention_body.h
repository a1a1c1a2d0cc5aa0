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
enum { DIRECT_QUERIES = ATTN_GROUP }; /* up to so many queries convert in registers: decode with a usual group */

#include "engine/kernels/cpu/attention_scores.h"
#include "engine/kernels/cpu/attention_values.h"

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
