/* vec_avx512.c - norms, activation packing and gates with AVX-512; the bits of vec_scalar.c. */
#include <immintrin.h>

#include "engine/kernels/cpu/act_store.h"
#include "engine/kernels/cpu/gate.h"
#include "engine/kernels/cpu/num.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

#define INLINE static inline __attribute__((always_inline))

/* The first n (at most 16) lanes. */
INLINE __mmask16 lanes(uint32_t n) {
    return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}

static float sum_squares(const float *x, uint32_t n) {
    __m512 acc = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        acc = _mm512_mask3_fmadd_ps(v, v, acc, m);
    }
    return num_sum16_ps512(acc);
}

INLINE __m512 load_scaled(const float *x, const float *w, __m512 scale, uint32_t i, uint32_t n) {
    if (i >= n) return _mm512_setzero_ps();
    const __mmask16 m = lanes(n - i);
    __m512 v = _mm512_maskz_loadu_ps(m, x + i);
    if (w) v = _mm512_maskz_mul_ps(m, _mm512_mul_ps(v, scale), _mm512_maskz_loadu_ps(m, w + i));
    return v;
}

static void add_scaled(float *h, const float *y, const float *w, float scale, uint32_t n) {
    const __m512 s = _mm512_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(m, h + i), load_scaled(y, w, s, i, n));
        _mm512_mask_storeu_ps(h + i, m, sum);
    }
}

INLINE void quantize(__m512 v0, __m512 v1, struct q8_block *b) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i m = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v0), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(v1), magnitude));
    float to_quant;
    b->d = q8_scale(_mm512_reduce_max_epu32(m), &to_quant);
    const __m512 f = _mm512_set1_ps(to_quant);
    const __mmask16 some = to_quant == 0.0f ? 0 : 0xffff; /* keeps 0 * infinity out of the conversion */
    const __m512i q0 = _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(v0, f));
    const __m512i q1 = _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(v1, f));
    const __m256i q = _mm256_set_m128i(_mm512_cvtepi32_epi8(q1), _mm512_cvtepi32_epi8(q0));
    _mm256_store_si256((__m256i *)b->q, q);
    /* Sums of 8 bytes, made unsigned by adding 128, in four 64-bit lanes; then of 16. */
    __m256i s = _mm256_sad_epu8(_mm256_xor_si256(q, _mm256_set1_epi8((char)0x80)), _mm256_setzero_si256());
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    b->sum16[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s)) - 16 * 128;
    b->sum16[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1)) - 16 * 128;
}

/* bf16_from_f32 in 16 lanes. */
INLINE __m256i to_bf16(__m512 v) {
    const __m512i u = _mm512_castps_si512(v), mag = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    const __m512i high = _mm512_srli_epi32(u, 16);
    const __m512i round = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, round), 16);
    const __mmask16 nan = _mm512_cmpgt_epu32_mask(mag, _mm512_set1_epi32(0x7f800000));
    const __mmask16 tiny = _mm512_cmplt_epu32_mask(mag, _mm512_set1_epi32(0x00800000));
    r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
    r = _mm512_mask_and_epi32(r, tiny, high, _mm512_set1_epi32(0x8000));
    return _mm512_cvtepi32_epi16(r);
}

static void pack_row(const struct act_row *row, uint32_t col, const float *x, const float *w, float scale, uint32_t n) {
    const __m512 s = _mm512_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += Q8_BLOCK) {
        const __m512 v0 = load_scaled(x, w, s, i, n), v1 = load_scaled(x, w, s, i + 16, n);
        if (row->q8) {
            struct q8_block b;
            quantize(v0, v1, &b);
            act_store_q8(row, (col + i) / Q8_BLOCK, &b);
        }
        if (row->f32) {
            _Alignas(64) float v[Q8_BLOCK];
            _mm512_store_ps(v, v0);
            _mm512_store_ps(v + 16, v1);
            act_store_f32(row, col + i, v);
        }
        if (row->bf16) {
            _Alignas(32) uint16_t half[Q8_BLOCK];
            _mm256_store_si256((__m256i *)half, to_bf16(v0));
            _mm256_store_si256((__m256i *)(half + 16), to_bf16(v1));
            act_store_bf16(row, col + i, half);
        }
    }
}

static void gate(enum activation f, float *g, const float *up, uint32_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    const __m512 c = _mm512_set1_ps(GELU_NEG_2C), ca = _mm512_set1_ps(GELU_NEG_2CA);
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(m, g + i);
        const __m512 t = f == ACTIVATION_SILU ? _mm512_xor_ps(x, sign)
                                              : _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), ca, c));
        const __m512 y = _mm512_div_ps(x, _mm512_add_ps(one, num_exp_ps512(t)));
        _mm512_mask_storeu_ps(g + i, m, _mm512_mul_ps(y, _mm512_maskz_loadu_ps(m, up + i)));
    }
}

void vec_avx512_fill(struct cpu_isa *isa) {
    isa->sum_squares = sum_squares;
    isa->add_scaled = add_scaled;
    isa->pack_row = pack_row;
    isa->gate = gate;
}
