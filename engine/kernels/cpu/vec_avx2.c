/* vec_avx2.c - norms, activation packing and gates with AVX2 and FMA; the bits of vec_scalar.c.
 *
 * 16 lanes are two registers. Rows whose length is not whole blocks end in a copy filled up with zeros.
 */
#include <immintrin.h>

#include "engine/kernels/cpu/act_store.h"
#include "engine/kernels/cpu/gate.h"
#include "engine/kernels/cpu/num.h"

#pragma GCC target("avx2,fma,f16c")

#define INLINE static inline __attribute__((always_inline))

static float sum_squares(const float *x, uint32_t n) {
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        lo = _mm256_fmadd_ps(a, a, lo);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    if (i < n) { /* zeros add +0 and change nothing: a lane's sum is never -0 */
        float tail[16] = {0};
        memcpy(tail, x + i, (n - i) * sizeof(float));
        const __m256 a = _mm256_loadu_ps(tail), b = _mm256_loadu_ps(tail + 8);
        lo = _mm256_fmadd_ps(a, a, lo);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    return num_sum16_ps256(lo, hi);
}

static void add_scaled(float *h, const float *y, const float *w, float scale, uint32_t n) {
    const __m256 s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(y + i);
        if (w) v = _mm256_mul_ps(_mm256_mul_ps(v, s), _mm256_loadu_ps(w + i));
        _mm256_storeu_ps(h + i, _mm256_add_ps(_mm256_loadu_ps(h + i), v));
    }
    for (; i < n; i++) h[i] += w ? y[i] * scale * w[i] : y[i];
}

INLINE int32_t sum8(__m256i v) {
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

INLINE uint32_t max8(__m256i v) {
    __m128i t = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_max_epu32(t, _mm_shuffle_epi32(t, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(t, _mm_shuffle_epi32(t, 0xb1)));
}

INLINE void quantize(const __m256 v[4], struct q8_block *b) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) m = _mm256_max_epu32(m, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    float to_quant;
    b->d = q8_scale(max8(m), &to_quant);
    const __m256 f = _mm256_set1_ps(to_quant);
    const __m256i some = _mm256_set1_epi32(to_quant == 0.0f ? 0 : -1);
    __m256i q[4];
    for (int i = 0; i < 4; i++) q[i] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(v[i], f)), some);
    b->sum16[0] = sum8(_mm256_add_epi32(q[0], q[1]));
    b->sum16[1] = sum8(_mm256_add_epi32(q[2], q[3]));
    /* Packing works inside 128-bit lanes; the permutation puts the dwords back in order. */
    const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_store_si256((__m256i *)b->q, _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

static void block_pack(const struct act_row *row, uint32_t col, const float *x, const float *w, __m256 scale) {
    __m256 v[4];
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * 8);
        if (w) v[i] = _mm256_mul_ps(_mm256_mul_ps(v[i], scale), _mm256_loadu_ps(w + i * 8));
    }
    if (row->q8) {
        struct q8_block b;
        quantize(v, &b);
        act_store_q8(row, col / Q8_BLOCK, &b);
    }
    if (!row->f32 && !row->bf16) return;
    float out[Q8_BLOCK];
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(out + i * 8, v[i]);
    if (row->f32) act_store_f32(row, col, out);
    if (row->bf16) {
        uint16_t half[Q8_BLOCK];
        for (int i = 0; i < Q8_BLOCK; i++) half[i] = bf16_from_f32(out[i]);
        act_store_bf16(row, col, half);
    }
}

static void pack_row(const struct act_row *row, uint32_t col, const float *x, const float *w, float scale, uint32_t n) {
    const __m256 s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + Q8_BLOCK <= n; i += Q8_BLOCK) block_pack(row, col + i, x + i, w ? w + i : NULL, s);
    if (i == n) return;
    float tail_x[Q8_BLOCK] = {0}, tail_w[Q8_BLOCK] = {0};
    memcpy(tail_x, x + i, (n - i) * sizeof(float));
    if (w) memcpy(tail_w, w + i, (n - i) * sizeof(float));
    block_pack(row, col + i, tail_x, w ? tail_w : NULL, s);
}

INLINE __m256 gate8(enum activation f, __m256 x, __m256 up) {
    const __m256 c = _mm256_set1_ps(GELU_NEG_2C), ca = _mm256_set1_ps(GELU_NEG_2CA);
    const __m256 t = f == ACTIVATION_SILU ? _mm256_xor_ps(x, _mm256_set1_ps(-0.0f))
                                          : _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_mul_ps(x, x), ca, c));
    const __m256 y = _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), num_exp_ps256(t)));
    return _mm256_mul_ps(y, up);
}

static void gate(enum activation f, float *g, const float *up, uint32_t n) {
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(g + i, gate8(f, _mm256_loadu_ps(g + i), _mm256_loadu_ps(up + i)));
    if (i == n) return;
    float tail_g[8] = {0}, tail_up[8] = {0};
    memcpy(tail_g, g + i, (n - i) * sizeof(float));
    memcpy(tail_up, up + i, (n - i) * sizeof(float));
    _mm256_storeu_ps(tail_g, gate8(f, _mm256_loadu_ps(tail_g), _mm256_loadu_ps(tail_up)));
    memcpy(g + i, tail_g, (n - i) * sizeof(float));
}

void vec_avx2_fill(struct cpu_isa *isa) {
    isa->sum_squares = sum_squares;
    isa->add_scaled = add_scaled;
    isa->pack_row = pack_row;
    isa->gate = gate;
}
