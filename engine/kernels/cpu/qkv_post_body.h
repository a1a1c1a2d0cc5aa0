/* qkv_post_body.h - one row after the q, k, v matmul; included at three levels of simd16.h, scalar is the definition.
 *
 *   norm   ss = sum of x^2 by fma in 16 lanes (i % 16), tree of num_sum16;  y = (x * (1 / sqrt(ss / n + eps))) * w
 *   rope   y0 = fma(x0, cos, -(x1 * sin));  y1 = fma(x1, cos, x0 * sin)
 *   scale  q * q_scale, after the rotation
 * The k part of the row is worked on in place and ends as what K is converted from.
 *
 * Invariant: a row touches only its own slots of its page.
 */
#include "engine/kernels/cpu/qkv_post_int.h"
#include "engine/kernels/cpu/simd16.h"

SIMD16_FN void head_norm(float *x, const float *w, uint32_t n, float eps) {
    v16 sum = v16_set1(0.0f);
    for (uint32_t i = 0; i < n; i += 16) {
        v16 v = v16_load(x + i);
        sum = v16_fma(v, v, sum);
    }
    float scale = 1.0f / sqrtf(v16_sum(sum) / (float)n + eps);
    for (uint32_t i = 0; i < n; i += 16) {
        v16_store(x + i, v16_mul(v16_mul(v16_load(x + i), v16_set1(scale)), v16_load(w + i)));
    }
}

SIMD16_FN void pair_rotate(float *x0, float *x1, float c, float s) {
    float a = *x0, b = *x1, bs = b * s, as = a * s;
    *x0 = fmaf(a, c, -bs);
    *x1 = fmaf(b, c, as);
}

SIMD16_FN void head_rotate(float *x, enum rope_kind kind, uint32_t half, const float *cos, const float *sin) {
    uint32_t i = 0;
    if (kind == ROPE_INTERLEAVED) {
        for (; i < half; i++) pair_rotate(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
        return;
    }
    for (; i + 16 <= half; i += 16) {
        v16 a = v16_load(x + i), b = v16_load(x + half + i), c = v16_load(cos + i), s = v16_load(sin + i);
        v16_store(x + i, v16_fms(a, c, v16_mul(b, s)));
        v16_store(x + half + i, v16_fma(b, c, v16_mul(a, s)));
    }
    for (; i < half; i++) pair_rotate(x + i, x + half + i, cos[i], sin[i]);
}

SIMD16_FN void head_convert(enum dtype type, const float *x, uint32_t n, uint16_t *h) {
    if (type == DT_F16) {
        for (uint32_t i = 0; i < n; i += 16) v16_store_f16(h + i, v16_load(x + i));
    } else {
        for (uint32_t i = 0; i < n; i++) h[i] = kv_bf16_of(x[i]);
    }
}

SIMD16_FN void k_store(const struct kv_shape *shape, uint8_t *page, uint32_t head, uint32_t slot, const float *x) {
    uint8_t *k = page + head * shape->head_bytes + slot * shape->elem_bytes;
    uint32_t n = shape->head_dim;
    uint16_t h[QKV_HEAD_DIM_MAX];
    if (shape->type == DT_F32) {
        for (uint32_t d = 0; d < n; d++) memcpy(k + (size_t)d * KV_PAGE_TOKENS * sizeof *x, x + d, sizeof *x);
    } else if (shape->type == DT_I8) {
        float scale = kv_quantize_i8(x, n, (int8_t *)k, KV_PAGE_TOKENS);
        size_t at = ((size_t)head * KV_PAGE_TOKENS + slot) * sizeof scale;
        memcpy(page + shape->k_scale_offset + at, &scale, sizeof scale);
    } else {
        head_convert(shape->type, x, n, h);
        for (uint32_t d = 0; d < n; d++) memcpy(k + (size_t)d * KV_PAGE_TOKENS * sizeof *h, h + d, sizeof *h);
    }
}

SIMD16_FN void v_store(const struct kv_shape *shape, uint8_t *page, uint32_t head, uint32_t slot, const float *x) {
    uint32_t n = shape->head_dim;
    uint8_t *v = page + shape->v_offset + head * shape->head_bytes + (size_t)slot * n * shape->elem_bytes;
    if (shape->type == DT_F32) {
        memcpy(v, x, n * sizeof *x);
    } else if (shape->type == DT_I8) {
        float scale = kv_quantize_i8(x, n, (int8_t *)v, 1);
        size_t at = ((size_t)head * KV_PAGE_TOKENS + slot) * sizeof scale;
        memcpy(page + shape->v_scale_offset + at, &scale, sizeof scale);
    } else {
        head_convert(shape->type, x, n, (uint16_t *)(void *)v);
    }
}

SIMD16_TARGET void SIMD16_NAME(qkv_row)(const struct qkv_post *a, const struct kv_shape *shape,
                                        const struct kv_rows *seq, uint32_t row, uint32_t position) {
    uint32_t n = shape->head_dim, half = a->rope_dim / 2;
    const float *cos = a->cos + (size_t)row * half, *sin = a->sin + (size_t)row * half;
    float *q = a->qkv + (size_t)row * a->stride;
    float *k = q + (size_t)a->n_heads * n, *v = k + (size_t)shape->n_kv_heads * n;
    for (uint32_t h = 0; h < a->n_heads; h++, q += n) {
        if (a->q_norm) head_norm(q, a->q_norm, n, a->norm_eps);
        head_rotate(q, a->rope, half, cos, sin);
        for (uint32_t d = 0; d < n; d += 16) v16_store(q + d, v16_mul(v16_load(q + d), v16_set1(a->q_scale)));
    }
    uint8_t *page = kv_page_at(a->kv, seq, position);
    uint32_t slot = position % KV_PAGE_TOKENS;
    for (uint32_t h = 0; h < shape->n_kv_heads; h++, k += n, v += n) {
        if (a->k_norm) head_norm(k, a->k_norm, n, a->norm_eps);
        head_rotate(k, a->rope, half, cos, sin);
        k_store(shape, page, h, slot, k);
        v_store(shape, page, h, slot, v);
    }
}
