/* simd16.h - sixteen fp32 lanes with one meaning on every instruction set, so that a kernel is written once.
 *
 * A source file defines SIMD16_LEVEL (0 scalar, 1 AVX2 + FMA + F16C, 2 AVX-512 F/BW/VL) and includes this header,
 * then a *_body.h that uses only what is here. Sixteen lanes are one zmm, two ymm or an array; every operation is
 * one IEEE operation per lane, so the three builds of a body give the same bits.
 *
 * SIMD16_FN marks functions of the body that must be inlined, SIMD16_TARGET its entry points.
 */
#ifndef CHOIR_KERNELS_CPU_SIMD16_H
#define CHOIR_KERNELS_CPU_SIMD16_H

#include "engine/kernels/cpu/kv_layout.h"
#include "engine/kernels/cpu/num.h"

#include <math.h>
#include <string.h>

#if SIMD16_LEVEL == 2
#define SIMD16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define SIMD16_NAME(f) f##_avx512
#elif SIMD16_LEVEL == 1
#define SIMD16_TARGET __attribute__((target("avx2,fma,f16c")))
#define SIMD16_NAME(f) f##_avx2
#else
#define SIMD16_TARGET
#define SIMD16_NAME(f) f##_scalar
#endif
#define SIMD16_FN static inline __attribute__((always_inline)) SIMD16_TARGET

#if SIMD16_LEVEL == 2

typedef __m512 v16;

SIMD16_FN v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
SIMD16_FN v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
SIMD16_FN void v16_store(float *p, v16 v) {
    _mm512_storeu_ps(p, v);
}
SIMD16_FN v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
SIMD16_FN v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
SIMD16_FN v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
SIMD16_FN v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
SIMD16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
SIMD16_FN v16 v16_fms(v16 a, v16 b, v16 c) {
    return _mm512_fmsub_ps(a, b, c);
}
SIMD16_FN v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
} /* a > b ? a : b */
SIMD16_FN v16 v16_exp(v16 a) {
    return num_exp_ps512(a);
}
SIMD16_FN float v16_sum(v16 a) {
    return num_sum16_ps512(a);
}

/* Lanes lo <= i < hi of v, the others from `other`; hi <= 16. */
SIMD16_FN v16 v16_keep(v16 v, uint32_t lo, uint32_t hi, v16 other) {
    __mmask16 m = (__mmask16)(((1u << hi) - 1u) & ~((1u << lo) - 1u));
    return _mm512_mask_mov_ps(other, m, v);
}

SIMD16_FN v16 v16_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
SIMD16_FN v16 v16_load_bf16(const uint16_t *p) {
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
SIMD16_FN v16 v16_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
SIMD16_FN void v16_store_f16(uint16_t *p, v16 v) {
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i *)(void *)p, h);
}

#elif SIMD16_LEVEL == 1

typedef struct {
    __m256 lo, hi;
} v16;

#define V16_EACH(expr_lo, expr_hi) ((v16){(expr_lo), (expr_hi)})
SIMD16_FN v16 v16_set1(float x) {
    return V16_EACH(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
SIMD16_FN v16 v16_load(const float *p) {
    return V16_EACH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
SIMD16_FN void v16_store(float *p, v16 v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
SIMD16_FN v16 v16_add(v16 a, v16 b) {
    return V16_EACH(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}
SIMD16_FN v16 v16_sub(v16 a, v16 b) {
    return V16_EACH(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}
SIMD16_FN v16 v16_mul(v16 a, v16 b) {
    return V16_EACH(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}
SIMD16_FN v16 v16_div(v16 a, v16 b) {
    return V16_EACH(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}
SIMD16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16_EACH(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
SIMD16_FN v16 v16_fms(v16 a, v16 b, v16 c) {
    return V16_EACH(_mm256_fmsub_ps(a.lo, b.lo, c.lo), _mm256_fmsub_ps(a.hi, b.hi, c.hi));
}
SIMD16_FN v16 v16_max(v16 a, v16 b) {
    return V16_EACH(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}
SIMD16_FN v16 v16_exp(v16 a) {
    return V16_EACH(num_exp_ps256(a.lo), num_exp_ps256(a.hi));
}
SIMD16_FN float v16_sum(v16 a) {
    return num_sum16_ps256(a.lo, a.hi);
}

SIMD16_FN __m256 keep_ps256(__m256 v, __m256i lane, __m256i lo, __m256i hi, __m256 other) {
    __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(lo, lane), _mm256_cmpgt_epi32(hi, lane));
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(in));
}
SIMD16_FN v16 v16_keep(v16 v, uint32_t lo, uint32_t hi, v16 other) {
    __m256i first = _mm256_set1_epi32((int)lo), end = _mm256_set1_epi32((int)hi);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i lane8 = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
    return V16_EACH(keep_ps256(v.lo, lane, first, end, other.lo), keep_ps256(v.hi, lane8, first, end, other.hi));
}

SIMD16_FN __m128i load_128(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
SIMD16_FN v16 v16_load_f16(const uint16_t *p) {
    return V16_EACH(_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8)));
}
SIMD16_FN __m256 load_8_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}
SIMD16_FN v16 v16_load_bf16(const uint16_t *p) {
    return V16_EACH(load_8_bf16(p), load_8_bf16(p + 8));
}
SIMD16_FN v16 v16_load_i8(const int8_t *p) {
    __m128i b = load_128(p);
    return V16_EACH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))));
}
SIMD16_FN void v16_store_f16(uint16_t *p, v16 v) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(void *)(p + 8), _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else

typedef struct {
    float f[16];
} v16;

#define V16_EACH(expr)                                                                                                 \
    v16 r;                                                                                                             \
    for (uint32_t i = 0; i < 16; i++) r.f[i] = (expr);                                                                 \
    return r
SIMD16_FN v16 v16_set1(float x) {
    V16_EACH(x);
}
SIMD16_FN v16 v16_load(const float *p) {
    V16_EACH(p[i]);
}
SIMD16_FN void v16_store(float *p, v16 v) {
    memcpy(p, v.f, sizeof v.f);
}
SIMD16_FN v16 v16_mul(v16 a, v16 b) {
    V16_EACH(a.f[i] * b.f[i]);
}
SIMD16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    V16_EACH(fmaf(a.f[i], b.f[i], c.f[i]));
}
SIMD16_FN v16 v16_fms(v16 a, v16 b, v16 c) {
    V16_EACH(fmaf(a.f[i], b.f[i], -c.f[i]));
}
SIMD16_FN float v16_sum(v16 a) {
    return num_sum16(a.f);
}
SIMD16_FN void v16_store_f16(uint16_t *p, v16 v) {
    for (uint32_t i = 0; i < 16; i++) p[i] = kv_f16_of(v.f[i]);
}

#endif

/* Largest lane in the tree of num_max16. */
#if SIMD16_LEVEL > 0
SIMD16_FN float v16_hmax(v16 a) {
    float lanes[16];
    v16_store(lanes, a);
    return num_max16(lanes);
}
#endif

#endif
