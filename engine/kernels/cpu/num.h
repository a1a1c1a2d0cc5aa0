/* num.h - elementary functions of the CPU kernels: one fixed sequence of IEEE operations each, so that scalar, AVX2
 * and AVX-512 code give the same bits. No libm beyond fma (one correctly rounded operation).
 *
 * exp, fp32:  n = rint(x * log2 e);  r = x - n ln 2 (two parts, fma);  y = 1 + (r + r^2 P(r));  y * 2^n.
 *     exp(-inf) = 0, results below 2^-126 are 0 in every rounding mode of denormals, above FLT_MAX inf, NaN stays NaN.
 * sum16:      lanes i and i + 8 are added, then i and i + 4, i + 2, i + 1: the shape that halving a register gives.
 *
 * The vector forms are always_inline with function-level targets; a caller needs a superset ("avx2,fma" or
 * "avx512f"). The functions take no locks and own no state.
 */
#ifndef CHOIR_KERNELS_CPU_NUM_H
#define CHOIR_KERNELS_CPU_NUM_H

#include "engine/kernels/kernels.h"

#include <immintrin.h>

/* ---- Constants of exp, shared by all forms. ln 2 = HI - LO (LO is negative and added back by fma). ---- */

#define NUM_EXP_LOG2E 0x1.715476p+0f
#define NUM_EXP_LN2_HI 0x1.62e43p-1f
#define NUM_EXP_LN2_LO -0x1.05c61p-29f
#define NUM_EXP_MAGIC 0x1.8p+23f    /* adding it rounds to an integer, which then sits in the low mantissa bits */
#define NUM_EXP_MAX 89.0f           /* above: inf already */
#define NUM_EXP_MIN -0x1.5d589ep+6f /* the least x whose exp is a normal number */
#define NUM_EXP_P0 0x1p-1f          /* P = (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, least squares, |error| 2^-28 */
#define NUM_EXP_P1 0x1.55548cp-3f
#define NUM_EXP_P2 0x1.5554e4p-5f
#define NUM_EXP_P3 0x1.123d06p-7f
#define NUM_EXP_P4 0x1.6d514ep-10f

#define NUM_AVX2 static inline __attribute__((always_inline, target("avx2,fma")))
#define NUM_AVX512 static inline __attribute__((always_inline, target("avx512f")))

/* ---- Scalar, defined in num.c. fp32 forms are in kernels.h ---- */

double num_exp(double x);                        /* |x| <= 700 */
double num_log(double x);                        /* x normal and > 0 */
void num_sincos(double x, double *s, double *c); /* |x| <= NUM_ANGLE_MAX, absolute error < 1e-15 */
#define NUM_ANGLE_MAX 0x1p+44

/* Sum of 16 lanes in the canonical tree. */
static inline float num_sum16(const float v[16]) {
    float t[8];
    for (int i = 0; i < 8; i++) t[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++) t[i] = t[i] + t[i + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

/* Largest of 16 lanes by the same tree, each step `b > a ? b : a`. */
static inline float num_max16(const float v[16]) {
    float t[8];
    for (int i = 0; i < 8; i++) t[i] = v[i + 8] > v[i] ? v[i + 8] : v[i];
    for (int w = 4; w >= 1; w /= 2) {
        for (int i = 0; i < w; i++) t[i] = t[i + w] > t[i] ? t[i + w] : t[i];
    }
    return t[0];
}

/* ---- AVX2 + FMA: 8 lanes ---- */

NUM_AVX2 __m256 num_exp_ps256(__m256 x) {
    __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(NUM_EXP_MIN), _CMP_NLT_UQ);
    x = _mm256_min_ps(_mm256_set1_ps(NUM_EXP_MAX), x); /* second operand: a NaN stays */
    __m256 magic = _mm256_set1_ps(NUM_EXP_MAGIC);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(NUM_EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(NUM_EXP_LN2_HI), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(NUM_EXP_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(NUM_EXP_P4), r, _mm256_set1_ps(NUM_EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(NUM_EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(NUM_EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(NUM_EXP_P0));
    __m256 y = _mm256_add_ps(_mm256_set1_ps(1.0f), _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r));
    /* 2^n in two factors: n = 128 has no float of its own. */
    __m256i i = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    __m256i half = _mm256_srai_epi32(i, 1);
    __m256i rest = _mm256_sub_epi32(i, half);
    __m256i bias = _mm256_set1_epi32(127);
    y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
    return _mm256_and_ps(y, keep);
}

/* num_sum16 of lanes 0-7 in lo and 8-15 in hi. */
NUM_AVX2 float num_sum16_ps256(__m256 lo, __m256 hi) {
    __m256 v = _mm256_add_ps(lo, hi);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

/* ---- AVX-512: 16 lanes ---- */

NUM_AVX512 __m512 num_exp_ps512(__m512 x) {
    __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(NUM_EXP_MIN), _CMP_NLT_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(NUM_EXP_MAX), x); /* second operand: a NaN stays */
    __m512 magic = _mm512_set1_ps(NUM_EXP_MAGIC);
    __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(NUM_EXP_LOG2E), magic), magic);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(NUM_EXP_LN2_HI), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(NUM_EXP_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(NUM_EXP_P4), r, _mm512_set1_ps(NUM_EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(NUM_EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(NUM_EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(NUM_EXP_P0));
    __m512 y = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r));
    return _mm512_maskz_scalef_ps(keep, y, n);
}

NUM_AVX512 float num_sum16_ps512(__m512 v) {
    __m256 hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    __m256 w = _mm256_add_ps(_mm512_castps512_ps256(v), hi);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

#endif
