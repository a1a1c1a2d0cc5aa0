/* attention_scalar.c - the definition of attention: what one query computes over one split, in plain C.
 *
 * Query q at position p sees positions t in [lo, hi), hi = p + 1, lo = max(0, hi - window). Splits of 256 absolute
 * positions, ascending; inside a split, over the positions it shares with [lo, hi):
 *   s[t]  chain of fma(q[d], k[t][d], s) over d ascending, from 0;  DT_I8: times k_scale[t]
 *         with a softcap c:  c - 2c / (exp(s * (2/c)) + 1)  (which is c tanh(s/c))
 *   m     maximum in 16 lanes (t % 16) from -inf, lanes by the tree of num_max16
 *   w[t]  exp(s[t] - m)
 *   l     sum of w in 16 lanes (t % 16), t ascending, lanes by the tree of num_sum16
 *   o[d]  chain of fma(w[t], v[t][d], o) over t ascending, from 0;  DT_I8: w[t] * v_scale[t] for w[t]
 * Splits merge in ascending order: the first is taken as it is, then
 *   M = max(m, m1);  a = exp(m - M);  b = exp(m1 - M);  l = fma(l, a, l1 * b);  o[d] = fma(o[d], a, o1[d] * b)
 * and the output is o[d] * (1 / l).
 *
 * Pool threads; all state in the arguments.
 *
 * Invariants:
 * 1. Nothing outside [lo, hi) takes part in arithmetic, not even times zero: slots there may hold anything.
 * 2. The AVX paths equal this file bit for bit, except for the payload of NaNs.
 */
#include "engine/kernels/cpu/attention_int.h"
#include "engine/kernels/cpu/num.h"

#include <math.h>

static float score_of(const struct attn_unit *u, const float *q, const uint8_t *page, uint32_t slot) {
    const uint8_t *k = attn_page_k(u, page);
    float s = 0.0f;
    for (uint32_t d = 0; d < u->shape.head_dim; d++) {
        s = fmaf(q[d], kv_elem(u->shape.type, k, (size_t)d * KV_PAGE_TOKENS + slot), s);
    }
    if (u->shape.type == DT_I8) {
        s *= kv_elem(DT_F32, page + u->shape.k_scale_offset, (size_t)u->kv_head * KV_PAGE_TOKENS + slot);
    }
    float cap = u->a->softcap;
    if (cap != 0.0f) s = cap - 2.0f * cap / (num_expf(s * (2.0f / cap)) + 1.0f);
    return s;
}

/* score -> weight, in place; positions [a, b) of the split. */
static void weights_of(float *s, uint32_t a, uint32_t b, float *m, float *l) {
    float lanes[16];
    for (uint32_t i = 0; i < 16; i++) lanes[i] = -HUGE_VALF;
    for (uint32_t t = a; t < b; t++) lanes[t % 16] = s[t] > lanes[t % 16] ? s[t] : lanes[t % 16];
    *m = num_max16(lanes);
    for (uint32_t i = 0; i < 16; i++) lanes[i] = 0.0f;
    for (uint32_t t = a; t < b; t++) {
        s[t] = num_expf(s[t] - *m);
        lanes[t % 16] += s[t];
    }
    *l = num_sum16(lanes);
}

/* o[d] += w[t] v[t][d] over the positions [a, b) of the split that starts at `first`. */
static void values_add(const struct attn_unit *u, uint32_t first, uint32_t a, uint32_t b, const float *w, float *o) {
    for (uint32_t t = a; t < b; t++) {
        const uint8_t *page = attn_page(u, first + t), *v = attn_page_v(u, page);
        uint32_t slot = t % KV_PAGE_TOKENS, n = u->shape.head_dim;
        float wt = w[t];
        if (u->shape.type == DT_I8) {
            wt *= kv_elem(DT_F32, page + u->shape.v_scale_offset, (size_t)u->kv_head * KV_PAGE_TOKENS + slot);
        }
        for (uint32_t d = 0; d < n; d++) o[d] = fmaf(wt, kv_elem(u->shape.type, v, (size_t)slot * n + d), o[d]);
    }
}

void attn_split_scalar(const struct attn_unit *u, uint32_t split, bool alone, struct attn_scratch *s,
                       const struct attn_acc *acc) {
    uint32_t first = split * ATTN_SPLIT_TOKENS;
    for (uint32_t j = 0; j < u->n_queries; j++) {
        const struct attn_query *q = &u->query[j];
        struct attn_span in = attn_span_in(q->lo, q->hi, split);
        if (in.a >= in.b) continue;
        float *w = s->score[0], *o = s->k_tile, m, l;
        for (uint32_t t = in.a; t < in.b; t++) {
            w[t] = score_of(u, q->q, attn_page(u, first + t), t % KV_PAGE_TOKENS);
        }
        weights_of(w, in.a, in.b, &m, &l);
        memset(o, 0, u->shape.head_dim * sizeof *o);
        values_add(u, first, in.a, in.b, w, o);
        if (alone || q->lo >= first) {
            acc->m[j] = m;
            acc->l[j] = l;
            memcpy(acc->o[j], o, u->shape.head_dim * sizeof *o);
        } else {
            attn_fold_scalar(&acc->m[j], &acc->l[j], acc->o[j], m, l, o, u->shape.head_dim);
        }
    }
}

void attn_fold_scalar(float *m, float *l, float *o, float m1, float l1, const float *o1, uint32_t head_dim) {
    float max = m1 > *m ? m1 : *m;
    float a = num_expf(*m - max), b = num_expf(m1 - max);
    *m = max;
    *l = fmaf(*l, a, l1 * b);
    for (uint32_t d = 0; d < head_dim; d++) o[d] = fmaf(o[d], a, o1[d] * b);
}

void attn_finish_scalar(float *o, float l, uint32_t head_dim) {
    float scale = 1.0f / l;
    for (uint32_t d = 0; d < head_dim; d++) o[d] *= scale;
}
