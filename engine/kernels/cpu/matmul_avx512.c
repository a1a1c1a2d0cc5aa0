/* matmul_avx512.c - panel kernels with AVX-512 and VNNI: one panel of 16 rows (a row per lane) times up to 8 columns.
 *
 * Per block of 32 columns the panel's quants are unpacked once into 8 registers of u8 (32 columns x 16 rows); then
 * each column of x takes 8 vpdpbusd, whose signed operand is a broadcast straight from memory, in two chains that
 * hide their latency behind the other columns. The offset of the quants enters as the start value
 * neg_sum << log2(offset). 8 weight registers and one float accumulator per column: nothing spills.
 * One always_inline body is instantiated per type and number of columns.
 */
#include <immintrin.h>

#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/cpu/panel_function.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

struct quants {
    __m512i g[8]; /* u8, group g: 4 columns x 16 rows */
};

struct scales {
    __m512 d;        /* of the block: d, d * sc */
    __m512 min;      /* Q4_K, Q5_K: dmin * m */
    __m512i half[2]; /* Q6_K: integer scales of the two halves */
};

INLINE struct quants quants_load(enum dtype t, const uint8_t *q) {
    struct quants w;
    if (t == DT_Q8_0) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) w.g[g] = _mm512_load_si512(q + g * 64);
        return w;
    }
    const __m512i low4 = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) {
        const __m512i v = _mm512_load_si512(q + j * 64);
        w.g[j] = _mm512_and_si512(v, low4);
        w.g[j + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
    }
    /* High bits: brought to place by a 16-bit shift, then w | (shifted & mask) in one vpternlog (0xea). */
    if (t == DT_Q5_0 || t == DT_Q5_K) {
        const __m512i high = _mm512_load_si512(q + 256), mask = _mm512_set1_epi8(16);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) {
            const __m512i s =
                g < 4 ? _mm512_slli_epi16(high, g < 4 ? 4 - g : 0) : _mm512_srli_epi16(high, g < 4 ? 0 : g - 4);
            w.g[g] = _mm512_ternarylogic_epi32(s, mask, w.g[g], 0xea);
        }
    } else if (t == DT_Q6_K) {
        const __m512i mask = _mm512_set1_epi8(48);
#pragma GCC unroll 8
        for (int h = 0; h < 2; h++) {
            const __m512i high = _mm512_load_si512(q + 256 + h * 64);
            w.g[h * 4 + 0] = _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 4), mask, w.g[h * 4 + 0], 0xea);
            w.g[h * 4 + 1] = _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 2), mask, w.g[h * 4 + 1], 0xea);
            w.g[h * 4 + 2] = _mm512_ternarylogic_epi32(high, mask, w.g[h * 4 + 2], 0xea);
            w.g[h * 4 + 3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(high, 2), mask, w.g[h * 4 + 3], 0xea);
        }
    }
    return w;
}

INLINE __m512 load_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
}
INLINE __m512i load_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p));
}
INLINE __m512i load_i8(const uint8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)p));
}

INLINE struct scales scales_load(enum dtype t, const uint8_t *panel, uint32_t b) {
    const uint8_t *at = panel + panel_d_at(t, b), *sub = panel + panel_sub_scales_at(t, b);
    struct scales s;
    s.d = load_f16(at);
    s.min = s.d;
    s.half[0] = s.half[1] = _mm512_setzero_si512();
    if (t == DT_Q4_K || t == DT_Q5_K) {
        s.d = _mm512_mul_ps(s.d, _mm512_cvtepi32_ps(load_u8(sub)));
        s.min = _mm512_mul_ps(load_f16(at + 32), _mm512_cvtepi32_ps(load_u8(sub + 16)));
    } else if (t == DT_Q6_K) {
        s.half[0] = load_i8(sub);
        s.half[1] = load_i8(sub + 16);
    }
    return s;
}

INLINE __m512i bcast_i32(const uint8_t *p) {
    return _mm512_set1_epi32(*(const int32_t *)p);
}
INLINE __m512 bcast_f32(const uint8_t *p) {
    return _mm512_set1_ps(*(const float *)p);
}

/* Start value of the integer sum: -offset * sum(x). */
INLINE __m512i isum_start(enum dtype t, const uint8_t *neg_sum) {
    switch (t) {
    case DT_Q8_0:
        return _mm512_slli_epi32(bcast_i32(neg_sum), 7);
    case DT_Q6_K:
        return _mm512_slli_epi32(bcast_i32(neg_sum), 5);
    case DT_Q5_0:
        return _mm512_slli_epi32(bcast_i32(neg_sum), 4);
    case DT_Q4_0:
        return _mm512_slli_epi32(bcast_i32(neg_sum), 3);
    default:
        return _mm512_setzero_si512();
    }
}

/* The block's integer sums with column c; x and sums point at the block in the tile. */
INLINE __m512i isum_column(enum dtype t, const struct quants *w, const struct scales *s, const uint8_t *x,
                           const uint8_t *sums, int nc, int c) {
    const uint8_t *q = x + c * 4;
    const bool halves = t == DT_Q6_K;
    __m512i a = isum_start(t, halves ? sums + (nc + c) * 4 : x + (9 * nc + c) * 4);
    __m512i b = halves ? isum_start(t, sums + (2 * nc + c) * 4) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int g = 0; g < 4; g++) {
        a = _mm512_dpbusd_epi32(a, w->g[g], bcast_i32(q + g * nc * 4));
        b = _mm512_dpbusd_epi32(b, w->g[g + 4], bcast_i32(q + (g + 4) * nc * 4));
    }
    if (halves) {
        a = _mm512_mullo_epi32(a, s->half[0]);
        b = _mm512_mullo_epi32(b, s->half[1]);
    }
    return _mm512_add_epi32(a, b);
}

/* acc[nc] += block b. */
INLINE void block_add(enum dtype t, int nc, const uint8_t *panel, uint32_t b, const uint8_t *tile,
                      const uint8_t *tile_sums, __m512 *acc) {
    const struct quants w = quants_load(t, panel + panel_quants_at(t, b));
    const struct scales s = scales_load(t, panel, b);
    const uint8_t *x = tile + (size_t)b * Q8_BLOCK_BYTES * nc, *sums = tile_sums + (size_t)b * Q8_SUMS_BYTES * nc;
#pragma GCC unroll 8
    for (int c = 0; c < nc; c++) {
        const __m512 isum = _mm512_cvtepi32_ps(isum_column(t, &w, &s, x, sums, nc, c));
        acc[c] = _mm512_fmadd_ps(_mm512_mul_ps(s.d, bcast_f32(x + (8 * nc + c) * 4)), isum, acc[c]);
        if (t == DT_Q4_K || t == DT_Q5_K) acc[c] = _mm512_fmadd_ps(s.min, bcast_f32(sums + c * 4), acc[c]);
    }
}

/* acc[nc] += column i of a float type. */
INLINE void column_add(enum dtype t, int nc, const uint8_t *panel, size_t i, const uint8_t *tile, __m512 *acc) {
    const __m512 w = t == DT_F32 ? _mm512_load_ps(panel + i * 64) : load_f16(panel + i * 32);
    const uint8_t *x = tile + i * nc * 4;
#pragma GCC unroll 8
    for (int c = 0; c < nc; c++) acc[c] = _mm512_fmadd_ps(w, bcast_f32(x + c * 4), acc[c]);
}

/* acc[nc] += column pair p of bf16, by two fmas: odd column, then even. */
INLINE void pair_add(int nc, const uint8_t *panel, size_t p, const uint8_t *tile, __m512 *acc) {
    const __m512i w = _mm512_load_si512(panel + p * 64), high = _mm512_set1_epi32((int)0xffff0000);
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(w, high));
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    const uint8_t *x = tile + p * nc * 4;
#pragma GCC unroll 8
    for (int c = 0; c < nc; c++) {
        const __m512i pair = bcast_i32(x + c * 4);
        acc[c] = _mm512_fmadd_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(pair, high)), acc[c]);
        acc[c] = _mm512_fmadd_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), acc[c]);
    }
}

INLINE void slice_add(enum dtype t, int nc, const struct weight *w, const uint8_t *panel, const uint8_t *tile,
                      const uint8_t *sums, uint32_t s, __m512 *acc) {
    const uint32_t begin = w->slices.edge[s], end = w->slices.edge[s + 1];
    if (t == DT_BF16) {
        for (size_t p = begin / 2; p < (end + 1) / 2; p++) pair_add(nc, panel, p, tile, acc);
    } else if (t == DT_F32 || t == DT_F16) {
        for (size_t i = begin; i < end; i++) column_add(t, nc, panel, i, tile, acc);
    } else {
        for (uint32_t b = begin / Q8_BLOCK; b < end / Q8_BLOCK; b++) block_add(t, nc, panel, b, tile, sums, acc);
    }
}

#include "engine/kernels/cpu/matmul_avx512_tile.h"

PANEL_FUNCTION(panel_f32, DT_F32)
PANEL_FUNCTION(panel_f16, DT_F16)
PANEL_FUNCTION(panel_bf16, DT_BF16)
PANEL_FUNCTION(panel_q4_0, DT_Q4_0)
PANEL_FUNCTION(panel_q5_0, DT_Q5_0)
PANEL_FUNCTION(panel_q8_0, DT_Q8_0)
PANEL_FUNCTION(panel_q4_k, DT_Q4_K)
PANEL_FUNCTION(panel_q5_k, DT_Q5_K)
PANEL_FUNCTION(panel_q6_k, DT_Q6_K)

void matmul_avx512_fill(struct cpu_isa *isa) {
    isa->panel[DT_F32] = panel_f32;
    isa->panel[DT_F16] = panel_f16;
    isa->panel[DT_BF16] = panel_bf16;
    isa->panel[DT_Q4_0] = panel_q4_0;
    isa->panel[DT_Q5_0] = panel_q5_0;
    isa->panel[DT_Q8_0] = panel_q8_0;
    isa->panel[DT_Q4_K] = panel_q4_k;
    isa->panel[DT_Q5_K] = panel_q5_k;
    isa->panel[DT_Q6_K] = panel_q6_k;
}
