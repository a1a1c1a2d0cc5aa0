/* row_avx512.c - row_scalar.c with AVX-512, bit for bit. Any thread; no state. */
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/cpu/num.h"
#include "engine/kernels/cpu/row.h"

#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))

/* Lanes that are there: all 16, or the first n. */
TARGET static inline __mmask16 lanes_of(uint32_t n) {
    return (__mmask16)(n < 16 ? (1u << n) - 1u : 0xffffu);
}

/* Largest of x[0, n); *nan is set when there is one. */
TARGET static float block_max(const float *x, uint32_t n, bool *nan) {
    __m512 low = _mm512_set1_ps(-HUGE_VALF), m[4] = {low, low, low, low};
    __mmask16 bad = 0;
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) {
            __m512 a = _mm512_loadu_ps(x + i + 16 * v);
            bad = _kor_mask16(bad, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q));
            m[v] = _mm512_max_ps(a, m[v]);
        }
    }
    for (; i < n; i += 16) {
        __m512 a = _mm512_mask_loadu_ps(low, lanes_of(n - i), x + i);
        bad = _kor_mask16(bad, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q));
        m[0] = _mm512_max_ps(a, m[0]);
    }
    *nan = bad != 0;
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3])));
}

/* Lowest i < n with x[i] == value or, for a NaN, x[i] a NaN; n: none. */
TARGET static uint32_t find(const float *x, uint32_t n, float value) {
    __m512 v = _mm512_set1_ps(value);
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 a = _mm512_maskz_loadu_ps(lanes_of(n - i), x + i);
        __mmask16 hit = value != value ? _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) : _mm512_cmp_ps_mask(a, v, _CMP_EQ_OQ);
        hit &= lanes_of(n - i);
        if (hit) return i + (uint32_t)__builtin_ctz(hit);
    }
    return n;
}

TARGET void cpu_row_max_avx512(const float *x, uint32_t n, float *max, uint32_t *arg) {
    unsigned saved = fpmode_enter();
    float best = -HUGE_VALF;
    uint32_t block = 0;
    bool nan = false;
    for (uint32_t i = 0; i < n && !nan; i += ROW_BLOCK) {
        float m = block_max(x + i, n - i < ROW_BLOCK ? n - i : ROW_BLOCK, &nan);
        if (!nan && !(m > best)) continue;
        best = nan ? NAN : m;
        block = i;
    }
    uint32_t at = block + find(x + block, n - block < ROW_BLOCK ? n - block : ROW_BLOCK, best);
    *max = n ? x[at] : best;
    *arg = nan ? n : at;
    fpmode_leave(saved);
}

TARGET float cpu_row_sum_exp_avx512(const float *x, uint32_t n, float max, float inv_temperature) {
    unsigned saved = fpmode_enter();
    __m512 top = _mm512_set1_ps(max), scale = _mm512_set1_ps(inv_temperature);
    float sum = 0.0f;
    for (uint32_t c = 0; c < n; c += ROW_CHUNK) {
        __m512 lanes = _mm512_setzero_ps();
        uint32_t i = c, end = n - c < ROW_CHUNK ? n : c + ROW_CHUNK;
        for (; i + 16 <= end; i += 16) {
            lanes =
                _mm512_add_ps(lanes, num_exp_ps512(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), top), scale)));
        }
        if (i < end) {
            __mmask16 m = lanes_of(end - i);
            __m512 e = num_exp_ps512(_mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), top), scale));
            lanes = _mm512_mask_add_ps(lanes, m, lanes, e);
        }
        sum += num_sum16_ps512(lanes);
    }
    fpmode_leave(saved);
    return sum;
}

/* Writes the indices base + lane of the set lanes behind idx[count], never past cap. */
TARGET static uint32_t indices_put(__mmask16 hit, uint32_t base, uint32_t *idx, uint32_t count, uint32_t cap) {
    if (count < cap && cap - count >= 16) {
        __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)base));
        _mm512_storeu_si512(idx + count, _mm512_maskz_compress_epi32(hit, at));
        return count + (uint32_t)__builtin_popcount(hit);
    }
    for (unsigned m = hit; m; m &= m - 1, count++) {
        if (count < cap) idx[count] = base + (uint32_t)__builtin_ctz(m);
    }
    return count;
}

TARGET uint32_t cpu_row_select_avx512(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap) {
    unsigned saved = fpmode_enter();
    __m512 t = _mm512_set1_ps(threshold);
    uint32_t count = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        __mmask16 hit[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) hit[v] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16 * v), t, _CMP_GE_OQ);
        if (!(hit[0] | hit[1] | hit[2] | hit[3])) continue; /* nearly always */
        for (uint32_t v = 0; v < 4; v++) {
            if (hit[v]) count = indices_put(hit[v], i + 16 * v, idx, count, cap);
        }
    }
    for (; i < n; i += 16) {
        __mmask16 m = lanes_of(n - i), hit = _mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, x + i), t, _CMP_GE_OQ);
        if (hit) count = indices_put(hit, i, idx, count, cap);
    }
    fpmode_leave(saved);
    return count;
}
