/* rope.c - tables of cosines and sines for rotary embeddings.
 *
 * An entry is cos(position * inv_freq) in double (num_sincos), rounded to fp32, times mscale. The vector forms do
 * the operations of num_sincos in its order, on 8 or 4 angles at once.
 *
 * Pool threads, an item is a run of rows; no state.
 */
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/num.h"
#include "engine/kernels/cpu/num_const.h"

enum { ROPE_ROWS_PER_ITEM = 16 };
#define INV_FREQ_MAX 4096.0 /* times any position: below NUM_ANGLE_MAX. Real ones are at most 1 */

struct rope_job {
    const uint32_t *positions;
    uint32_t n_tokens, half;
    const double *inv_freq; /* [half] */
    float mscale;
    float *cos, *sin; /* [n_tokens][half] */
    enum isa_level level;
};

static void row_scalar(const struct rope_job *j, double position, uint32_t i, float *cos, float *sin) {
    for (; i < j->half; i++) {
        double s, c;
        num_sincos(position * j->inv_freq[i], &s, &c);
        cos[i] = (float)c * j->mscale;
        sin[i] = (float)s * j->mscale;
    }
}

#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vl,avx512dq")))

/* Evaluates ((c5 z + c4) z + ...) + c0. */
TARGET_AVX2 static inline __m256d poly_pd256(__m256d z, double c5, double c4, double c3, double c2, double c1,
                                             double c0) {
    __m256d p = _mm256_fmadd_pd(_mm256_set1_pd(c5), z, _mm256_set1_pd(c4));
    p = _mm256_fmadd_pd(p, z, _mm256_set1_pd(c3));
    p = _mm256_fmadd_pd(p, z, _mm256_set1_pd(c2));
    p = _mm256_fmadd_pd(p, z, _mm256_set1_pd(c1));
    return _mm256_fmadd_pd(p, z, _mm256_set1_pd(c0));
}

/* num_sincos on 4 angles. */
TARGET_AVX2 static inline void sincos_pd256(__m256d x, __m256d *s, __m256d *c) {
    __m256d magic = _mm256_set1_pd(NUM_MAGIC);
    __m256d t = _mm256_fmadd_pd(x, _mm256_set1_pd(NUM_2_OVER_PI), magic);
    __m256d n = _mm256_sub_pd(t, magic);
    __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(NUM_PIO2_1), x);
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(NUM_PIO2_2), r);
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(NUM_PIO2_3), r);
    __m256d z = _mm256_mul_pd(r, r);
    __m256d ps = poly_pd256(z, NUM_SIN_S5, NUM_SIN_S4, NUM_SIN_S3, NUM_SIN_S2, NUM_SIN_S1, NUM_SIN_S0);
    __m256d pc = poly_pd256(z, NUM_COS_C5, NUM_COS_C4, NUM_COS_C3, NUM_COS_C2, NUM_COS_C1, NUM_COS_C0);
    __m256d sin_r = _mm256_fmadd_pd(ps, _mm256_mul_pd(z, r), r);
    __m256d lead = _mm256_fmadd_pd(_mm256_set1_pd(-0.5), z, _mm256_set1_pd(1.0));
    __m256d cos_r = _mm256_fmadd_pd(pc, _mm256_mul_pd(z, z), lead);
    /* Bit 0 of the quadrant swaps, bit 1 (of quadrant, of quadrant + 1) is the sign: moved to the top, both are masks.
     */
    __m256i q = _mm256_castpd_si256(t);
    __m256d odd = _mm256_castsi256_pd(_mm256_slli_epi64(q, 63));
    __m256d sign = _mm256_set1_pd(-0.0);
    __m256i q1 = _mm256_add_epi64(q, _mm256_set1_epi64x(1));
    __m256d sign_s = _mm256_and_pd(_mm256_castsi256_pd(_mm256_slli_epi64(q, 62)), sign);
    __m256d sign_c = _mm256_and_pd(_mm256_castsi256_pd(_mm256_slli_epi64(q1, 62)), sign);
    *s = _mm256_xor_pd(_mm256_blendv_pd(sin_r, cos_r, odd), sign_s);
    *c = _mm256_xor_pd(_mm256_blendv_pd(cos_r, sin_r, odd), sign_c);
}

TARGET_AVX2 static void row_avx2(const struct rope_job *j, double position, float *cos, float *sin) {
    uint32_t i = 0;
    __m128 mscale = _mm_set1_ps(j->mscale);
    for (; i + 4 <= j->half; i += 4) {
        __m256d s, c;
        sincos_pd256(_mm256_mul_pd(_mm256_set1_pd(position), _mm256_loadu_pd(j->inv_freq + i)), &s, &c);
        _mm_storeu_ps(cos + i, _mm_mul_ps(_mm256_cvtpd_ps(c), mscale));
        _mm_storeu_ps(sin + i, _mm_mul_ps(_mm256_cvtpd_ps(s), mscale));
    }
    row_scalar(j, position, i, cos, sin);
}

TARGET_AVX512 static inline __m512d poly_pd512(__m512d z, double c5, double c4, double c3, double c2, double c1,
                                               double c0) {
    __m512d p = _mm512_fmadd_pd(_mm512_set1_pd(c5), z, _mm512_set1_pd(c4));
    p = _mm512_fmadd_pd(p, z, _mm512_set1_pd(c3));
    p = _mm512_fmadd_pd(p, z, _mm512_set1_pd(c2));
    p = _mm512_fmadd_pd(p, z, _mm512_set1_pd(c1));
    return _mm512_fmadd_pd(p, z, _mm512_set1_pd(c0));
}

/* num_sincos on 8 angles. */
TARGET_AVX512 static inline void sincos_pd512(__m512d x, __m512d *s, __m512d *c) {
    __m512d magic = _mm512_set1_pd(NUM_MAGIC);
    __m512d t = _mm512_fmadd_pd(x, _mm512_set1_pd(NUM_2_OVER_PI), magic);
    __m512d n = _mm512_sub_pd(t, magic);
    __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(NUM_PIO2_1), x);
    r = _mm512_fnmadd_pd(n, _mm512_set1_pd(NUM_PIO2_2), r);
    r = _mm512_fnmadd_pd(n, _mm512_set1_pd(NUM_PIO2_3), r);
    __m512d z = _mm512_mul_pd(r, r);
    __m512d ps = poly_pd512(z, NUM_SIN_S5, NUM_SIN_S4, NUM_SIN_S3, NUM_SIN_S2, NUM_SIN_S1, NUM_SIN_S0);
    __m512d pc = poly_pd512(z, NUM_COS_C5, NUM_COS_C4, NUM_COS_C3, NUM_COS_C2, NUM_COS_C1, NUM_COS_C0);
    __m512d sin_r = _mm512_fmadd_pd(ps, _mm512_mul_pd(z, r), r);
    __m512d lead = _mm512_fmadd_pd(_mm512_set1_pd(-0.5), z, _mm512_set1_pd(1.0));
    __m512d cos_r = _mm512_fmadd_pd(pc, _mm512_mul_pd(z, z), lead);
    __m512i q = _mm512_castpd_si512(t), one = _mm512_set1_epi64(1), two = _mm512_set1_epi64(2);
    __mmask8 odd = _mm512_test_epi64_mask(q, one);
    __mmask8 minus_s = _mm512_test_epi64_mask(q, two);
    __mmask8 minus_c = _mm512_test_epi64_mask(_mm512_add_epi64(q, one), two);
    __m512d sign = _mm512_set1_pd(-0.0), a = _mm512_mask_mov_pd(sin_r, odd, cos_r);
    __m512d b = _mm512_mask_mov_pd(cos_r, odd, sin_r);
    *s = _mm512_mask_xor_pd(a, minus_s, a, sign);
    *c = _mm512_mask_xor_pd(b, minus_c, b, sign);
}

TARGET_AVX512 static void row_avx512(const struct rope_job *j, double position, float *cos, float *sin) {
    uint32_t i = 0;
    __m256 mscale = _mm256_set1_ps(j->mscale);
    for (; i + 8 <= j->half; i += 8) {
        __m512d s, c;
        sincos_pd512(_mm512_mul_pd(_mm512_set1_pd(position), _mm512_loadu_pd(j->inv_freq + i)), &s, &c);
        _mm256_storeu_ps(cos + i, _mm256_mul_ps(_mm512_cvtpd_ps(c), mscale));
        _mm256_storeu_ps(sin + i, _mm256_mul_ps(_mm512_cvtpd_ps(s), mscale));
    }
    row_scalar(j, position, i, cos, sin);
}

static void rope_rows(void *arg, uint32_t item) {
    const struct rope_job *j = arg;
    uint32_t end = (uint32_t)size_min((item + 1) * ROPE_ROWS_PER_ITEM, j->n_tokens);
    for (uint32_t t = item * ROPE_ROWS_PER_ITEM; t < end; t++) {
        float *cos = j->cos + (size_t)t * j->half, *sin = j->sin + (size_t)t * j->half;
        if (j->level == ISA_AVX512)
            row_avx512(j, j->positions[t], cos, sin);
        else if (j->level == ISA_AVX2)
            row_avx2(j, j->positions[t], cos, sin);
        else
            row_scalar(j, j->positions[t], 0, cos, sin);
    }
}

void cpu_rope_table(struct kernels *k, const uint32_t *positions, uint32_t n_tokens, const double *inv_freq,
                    uint32_t half, float mscale, float *cos, float *sin) {
    struct cpu *c = cpu_of(k);
    struct rope_job job = {
        .positions = positions,
        .n_tokens = n_tokens,
        .half = half,
        .inv_freq = inv_freq,
        .mscale = mscale,
        .cos = cos,
        .sin = sin,
        .level = c->isa.level,
    };
    for (uint32_t i = 0; i < half; i++) ASSERT(inv_freq[i] >= 0.0 && inv_freq[i] <= INV_FREQ_MAX);
    pool_run(c->pool, (uint32_t)div_up(n_tokens, ROPE_ROWS_PER_ITEM), rope_rows, &job);
}
