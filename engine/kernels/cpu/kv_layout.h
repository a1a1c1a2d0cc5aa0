/* kv_layout.h - where K and V of a token lie inside a page, and what their storage types mean.
 *
 * One layer's part of a page (struct kv_layer), n_kv_heads heads of head_dim, KV_PAGE_TOKENS = 32 tokens:
 *   K        [n_kv_heads][head_dim][32]    tokens are lanes: a score is a chain over head_dim, 16 or 32 tokens at once
 *   V        [n_kv_heads][32][head_dim]    dimensions are lanes: the output is a chain over tokens
 *   K scale  [n_kv_heads][32] fp32         DT_I8 only
 *   V scale  [n_kv_heads][32] fp32         DT_I8 only
 * All parts are multiples of 64 bytes because head_dim is a multiple of 16.
 *
 * Storage of an fp32 value x, exact on the way back:
 *   f32   x, denormals as they are (arithmetic reads them as 0)
 *   f16   nearest even; fp32 denormals count as 0, f16 denormals are kept; NaN keeps sign and upper payload, quiet
 *   bf16  nearest even; fp32 denormals count as 0 and are stored as 0
 *   i8    per token and head: amax = max |x|; scale = amax / 127; q = nearest even of x * (127 / amax).
 *         amax below KV_I8_TINY: all 0. Any infinity or NaN: scale NaN, q = 0, so that the row's readers see NaN.
 */
#ifndef CHOIR_KERNELS_CPU_KV_LAYOUT_H
#define CHOIR_KERNELS_CPU_KV_LAYOUT_H

#include "engine/kernels/kernels.h"

#include <emmintrin.h>
#include <string.h>

#define KV_I8_TINY 0x1p-100f /* 127 / amax and amax / 127 stay normal numbers above it */

/* Geometry of a layer's part of a page, in bytes from its start. */
struct kv_shape {
    enum dtype type;
    uint32_t head_dim, n_kv_heads;
    uint32_t elem_bytes;
    size_t head_bytes; /* of K or V of one head */
    size_t v_offset, k_scale_offset, v_scale_offset, bytes;
};

static inline uint32_t kv_elem_bytes(enum dtype t) {
    return t == DT_F32 ? 4 : t == DT_I8 ? 1 : 2;
}

static inline struct kv_shape kv_shape_of(enum dtype t, uint32_t n_kv_heads, uint32_t head_dim) {
    ASSERT(t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_I8);
    struct kv_shape s = {.type = t, .head_dim = head_dim, .n_kv_heads = n_kv_heads, .elem_bytes = kv_elem_bytes(t)};
    s.head_bytes = (size_t)KV_PAGE_TOKENS * head_dim * s.elem_bytes;
    s.v_offset = s.head_bytes * n_kv_heads;
    s.k_scale_offset = 2 * s.v_offset;
    size_t scales_bytes = t == DT_I8 ? sizeof(float) * KV_PAGE_TOKENS * n_kv_heads : 0;
    s.v_scale_offset = s.k_scale_offset + scales_bytes;
    s.bytes = s.v_scale_offset + scales_bytes;
    return s;
}

/* This layer's part of the page of a position. */
static inline uint8_t *kv_page_at(const struct kv_layer *kv, const struct kv_rows *seq, uint32_t position) {
    size_t page = seq->pages[(size_t)(position / KV_PAGE_TOKENS) * seq->page_stride];
    return (uint8_t *)kv->slab + page * kv->page_bytes + kv->layer_offset;
}

static inline uint32_t kv_bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float kv_float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* fp32 -> f16 as VCVTPS2PH with DAZ set does it. */
static inline uint16_t kv_f16_of(float x) {
    uint32_t u = kv_bits_of(x);
    uint32_t sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds above 65504 */
    if (a < 0x33000000u) return (uint16_t)sign;              /* below half the least f16 denormal */
    if (a < 0x38800000u) {                                   /* f16 denormal: integer multiple of 2^-24 */
        uint32_t shift = 126u - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
        uint32_t half = 1u << (shift - 1), low = m & ((1u << shift) - 1u);
        m >>= shift;
        return (uint16_t)(sign | (m + (low > half || (low == half && (m & 1u)))));
    }
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13));
}

static inline float kv_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 0x3ffu;
    if (e == 31) return kv_float_of(sign | 0x7f800000u | m << 13 | (m ? 0x400000u : 0u));
    if (e) return kv_float_of(sign | (e + 112u) << 23 | m << 13);
    float x = (float)m * 0x1p-24f;
    return sign ? -x : x;
}

static inline uint16_t kv_bf16_of(float x) {
    uint32_t u = kv_bits_of(x), a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    if (a < 0x00800000u) return (uint16_t)(u >> 16 & 0x8000u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* Element i of a run of stored values; not for DT_I8's scale. */
static inline float kv_elem(enum dtype t, const uint8_t *base, size_t i) {
    uint16_t h;
    float f;
    switch (t) {
    case DT_F32:
        memcpy(&f, base + 4 * i, sizeof f);
        return f;
    case DT_F16:
        memcpy(&h, base + 2 * i, sizeof h);
        return kv_f16_to_f32(h);
    case DT_BF16:
        memcpy(&h, base + 2 * i, sizeof h);
        return kv_float_of((uint32_t)h << 16);
    default:
        return (float)(int8_t)base[i];
    }
}

/* q[i * stride] = int8 of x[i]; returns the scale. */
static inline float kv_quantize_i8(const float *x, uint32_t n, int8_t *q, size_t stride) {
    uint32_t amax_bits = 0; /* integer order is magnitude order, NaN above infinity */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t a = kv_bits_of(x[i]) & 0x7fffffffu;
        amax_bits = a > amax_bits ? a : amax_bits;
    }
    float amax = kv_float_of(amax_bits);
    bool finite = amax_bits < 0x7f800000u, tiny = !(finite && amax >= KV_I8_TINY);
    float inv = tiny ? 0.0f : 127.0f / amax;
    for (uint32_t i = 0; i < n; i++) {
        q[i * stride] = tiny ? 0 : (int8_t)_mm_cvtss_si32(_mm_set_ss(x[i] * inv));
    }
    return !finite ? kv_float_of(0x7fc00000u) : tiny ? 0.0f : amax / 127.0f;
}

#endif
