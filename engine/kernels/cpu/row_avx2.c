/* row_avx2.c - row_scalar.c with AVX2 and FMA, bit for bit. Any thread; no state. */
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/cpu/num.h"
#include "engine/kernels/cpu/row.h"

#include <math.h>

#define TARGET __attribute__((target("avx2,fma")))

/* Largest of x[0, n); *nan is set when there is one. */
TARGET static float block_max(const float *x, uint32_t n, bool *nan) {
    __m256 low = _mm256_set1_ps(-HUGE_VALF), m[4] = {low, low, low, low}, bad = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) {
            __m256 a = _mm256_loadu_ps(x + i + 8 * v);
            bad = _mm256_or_ps(bad, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
            m[v] = _mm256_max_ps(a, m[v]);
        }
    }
    float lanes[8], max = -HUGE_VALF;
    _mm256_storeu_ps(lanes, _mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3])));
    for (uint32_t l = 0; l < 8; l++) max = lanes[l] > max ? lanes[l] : max;
    *nan = _mm256_movemask_ps(bad) != 0;
    for (; i < n; i++) {
        *nan |= x[i] != x[i];
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

TARGET void cpu_row_max_avx2(const float *x, uint32_t n, float *max, uint32_t *arg) {
    unsigned saved = fpmode_enter();
    float best = -HUGE_VALF;
    uint32_t at = 0;
    bool nan = false;
    for (uint32_t i = 0; i < n && !nan; i += ROW_BLOCK) {
        float m = block_max(x + i, n - i < ROW_BLOCK ? n - i : ROW_BLOCK, &nan);
        if (!nan && !(m > best)) continue;
        best = m;
        at = i;
    }
    while (at < n && (nan ? x[at] == x[at] : x[at] != best)) at++; /* inside one block */
    *max = n ? x[at] : best;
    *arg = nan ? n : at;
    fpmode_leave(saved);
}

TARGET static inline __m256 weights(const float *x, __m256 top, __m256 scale) {
    return num_exp_ps256(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x), top), scale));
}

TARGET float cpu_row_sum_exp_avx2(const float *x, uint32_t n, float max, float inv_temperature) {
    unsigned saved = fpmode_enter();
    __m256 top = _mm256_set1_ps(max), scale = _mm256_set1_ps(inv_temperature);
    float sum = 0.0f;
    for (uint32_t c = 0; c < n; c += ROW_CHUNK) {
        __m256 lo = _mm256_setzero_ps(), hi = lo;
        uint32_t i = c, end = n - c < ROW_CHUNK ? n : c + ROW_CHUNK;
        for (; i + 16 <= end; i += 16) {
            lo = _mm256_add_ps(lo, weights(x + i, top, scale));
            hi = _mm256_add_ps(hi, weights(x + i + 8, top, scale));
        }
        if (i < end) {
            float rest[16], lanes[16]; /* missing lanes: computed from max, then 0 */
            for (uint32_t l = 0; l < 16; l++) rest[l] = i + l < end ? x[i + l] : max;
            _mm256_storeu_ps(lanes, weights(rest, top, scale));
            _mm256_storeu_ps(lanes + 8, weights(rest + 8, top, scale));
            for (uint32_t l = end - i; l < 16; l++) lanes[l] = 0.0f;
            lo = _mm256_add_ps(lo, _mm256_loadu_ps(lanes));
            hi = _mm256_add_ps(hi, _mm256_loadu_ps(lanes + 8));
        }
        sum += num_sum16_ps256(lo, hi);
    }
    fpmode_leave(saved);
    return sum;
}

TARGET uint32_t cpu_row_select_avx2(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap) {
    unsigned saved = fpmode_enter();
    __m256 t = _mm256_set1_ps(threshold);
    uint32_t count = 0, i = 0;
    for (; i + 32 <= n; i += 32) {
        unsigned hit = 0;
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) {
            __m256 ge = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 8 * v), t, _CMP_GE_OQ);
            hit |= (unsigned)_mm256_movemask_ps(ge) << (8 * v);
        }
        for (; hit; hit &= hit - 1, count++) {
            if (count < cap) idx[count] = i + (uint32_t)__builtin_ctz(hit);
        }
    }
    for (; i < n; i++) {
        if (!(x[i] >= threshold)) continue;
        if (count < cap) idx[count] = i;
        count++;
    }
    fpmode_leave(saved);
    return count;
}
