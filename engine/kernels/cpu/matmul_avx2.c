/* matmul_avx2.c - panel kernels with AVX2, FMA and F16C: the bits of matmul_scalar.c at 8 rows per register.
 *
 * A block of 32 columns is unpacked once into 8 groups of 64 bytes on the stack (16 rows x 4 columns of u8), then
 * every column of x runs over it, each half of the panel in one register. u8 x s8 products of vpmaddubsw are
 * pairwise sums in int16; quants of at most 63 keep two of those sums below 2^15. Q8_0 does not, so it multiplies
 * |q| <= 128 by x with the sign of q: 2 * 128 * 127 = 32512 fits.
 */
#include <immintrin.h>

#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/cpu/panel_function.h"

#pragma GCC target("avx2,fma,f16c")

enum { HALVES = 2 }; /* rows 0-7 and 8-15 */

struct quants {
    __m256i g[8][HALVES]; /* u8 (Q8_0: s8), group g: 4 columns x 8 rows */
};

struct scales {
    __m256 d[HALVES], min[HALVES];
    __m256i half[2][HALVES]; /* Q6_K: integer scales of columns 0-15 and 16-31 */
};

/* ---- Unpacking ---- */

INLINE __m256i load(const uint8_t *p) {
    return _mm256_load_si256((const __m256i *)p);
}

INLINE void high5_or(struct quants *w, const uint8_t *high, int h) {
    const __m256i bits = load(high + h * 32), mask = _mm256_set1_epi8(16);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        const __m256i s =
            _mm256_srl_epi16(_mm256_slli_epi16(bits, g < 4 ? 4 - g : 0), _mm_cvtsi32_si128(g < 4 ? 0 : g - 4));
        w->g[g][h] = _mm256_or_si256(w->g[g][h], _mm256_and_si256(s, mask));
    }
}

INLINE void high6_or(struct quants *w, const uint8_t *high, int h) {
    const __m256i mask = _mm256_set1_epi8(48);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        const __m256i bits = load(high + g / 4 * 64 + h * 32);
        const __m256i s = _mm256_srl_epi16(_mm256_slli_epi16(bits, g % 4 < 2 ? 4 - 2 * (g % 4) : 0),
                                           _mm_cvtsi32_si128(g % 4 < 2 ? 0 : 2 * (g % 4) - 4));
        w->g[g][h] = _mm256_or_si256(w->g[g][h], _mm256_and_si256(s, mask));
    }
}

INLINE void quants_load(enum dtype t, const uint8_t *q, struct quants *w) {
    const __m256i low4 = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    for (int h = 0; h < HALVES; h++) {
        if (t == DT_Q8_0) {
            for (int g = 0; g < 8; g++) w->g[g][h] = _mm256_xor_si256(load(q + g * 64 + h * 32), flip);
            continue;
        }
        for (int j = 0; j < 4; j++) {
            const __m256i v = load(q + j * 64 + h * 32);
            w->g[j][h] = _mm256_and_si256(v, low4);
            w->g[j + 4][h] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low4);
        }
        if (t == DT_Q5_0 || t == DT_Q5_K) high5_or(w, q + 256, h);
        if (t == DT_Q6_K) high6_or(w, q + 256, h);
    }
}

INLINE __m256 load_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p));
}
INLINE __m256i load_u8(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
INLINE __m256i load_i8(const uint8_t *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

INLINE void scales_load(enum dtype t, const uint8_t *panel, uint32_t b, struct scales *s) {
    const uint8_t *at = panel + panel_d_at(t, b), *sub = panel + panel_sub_scales_at(t, b);
    for (int h = 0; h < HALVES; h++) {
        s->d[h] = load_f16(at + h * 16);
        if (t == DT_Q4_K || t == DT_Q5_K) {
            s->d[h] = _mm256_mul_ps(s->d[h], _mm256_cvtepi32_ps(load_u8(sub + h * 8)));
            s->min[h] = _mm256_mul_ps(load_f16(at + 32 + h * 16), _mm256_cvtepi32_ps(load_u8(sub + 16 + h * 8)));
        } else if (t == DT_Q6_K) {
            s->half[0][h] = load_i8(sub + h * 8);
            s->half[1][h] = load_i8(sub + 16 + h * 8);
        }
    }
}

/* ---- Integer dot products ---- */

INLINE __m256i bcast_i32(const uint8_t *p) {
    return _mm256_set1_epi32(*(const int32_t *)p);
}
INLINE __m256 bcast_f32(const uint8_t *p) {
    return _mm256_set1_ps(*(const float *)p);
}

/* Groups g0 .. g0+3 times the column's values at q (groups nc * 4 bytes apart): int32 per row. */
INLINE __m256i isum_groups(enum dtype t, const struct quants *w, int g0, int h, const uint8_t *q, size_t step) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int g = g0; g < g0 + 4; g += 2) {
        const __m256i x0 = bcast_i32(q + g * step), x1 = bcast_i32(q + (g + 1) * step);
        const __m256i w0 = w->g[g][h], w1 = w->g[g + 1][h];
        if (t == DT_Q8_0) {
            const __m256i p0 = _mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(x0, w0));
            const __m256i p1 = _mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(x1, w1));
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_madd_epi16(p0, ones), _mm256_madd_epi16(p1, ones)));
        } else {
            const __m256i p = _mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(p, ones));
        }
    }
    return sum;
}

/* offset * -sum(x), added once per sum; Q8_0 needs none, its quants are signed here. */
INLINE __m256i offset_part(enum dtype t, const uint8_t *neg_sum) {
    switch (t) {
    case DT_Q6_K:
        return _mm256_slli_epi32(bcast_i32(neg_sum), 5);
    case DT_Q5_0:
        return _mm256_slli_epi32(bcast_i32(neg_sum), 4);
    case DT_Q4_0:
        return _mm256_slli_epi32(bcast_i32(neg_sum), 3);
    default:
        return _mm256_setzero_si256();
    }
}

INLINE __m256i isum_column(enum dtype t, const struct quants *w, const struct scales *s, int h, const uint8_t *x,
                           const uint8_t *sums, int nc, int c) {
    const size_t step = (size_t)nc * 4;
    __m256i a = isum_groups(t, w, 0, h, x + c * 4, step), b = isum_groups(t, w, 4, h, x + c * 4, step);
    if (t != DT_Q6_K) return _mm256_add_epi32(_mm256_add_epi32(a, b), offset_part(t, x + (9 * nc + c) * 4));
    a = _mm256_add_epi32(a, offset_part(t, sums + (nc + c) * 4));
    b = _mm256_add_epi32(b, offset_part(t, sums + (2 * nc + c) * 4));
    return _mm256_add_epi32(_mm256_mullo_epi32(a, s->half[0][h]), _mm256_mullo_epi32(b, s->half[1][h]));
}

/* ---- Blocks and columns; acc[nc][HALVES] lives in memory (L1) between them ---- */

INLINE void block_add(enum dtype t, int nc, const uint8_t *panel, uint32_t b, const uint8_t *tile,
                      const uint8_t *tile_sums, __m256 (*acc)[HALVES]) {
    struct quants w;
    struct scales s;
    quants_load(t, panel + panel_quants_at(t, b), &w);
    scales_load(t, panel, b, &s);
    const uint8_t *x = tile + (size_t)b * Q8_BLOCK_BYTES * nc, *sums = tile_sums + (size_t)b * Q8_SUMS_BYTES * nc;
    for (int c = 0; c < nc; c++) {
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            const __m256 isum = _mm256_cvtepi32_ps(isum_column(t, &w, &s, h, x, sums, nc, c));
            __m256 a = _mm256_fmadd_ps(_mm256_mul_ps(s.d[h], bcast_f32(x + (8 * nc + c) * 4)), isum, acc[c][h]);
            if (t == DT_Q4_K || t == DT_Q5_K) a = _mm256_fmadd_ps(s.min[h], bcast_f32(sums + c * 4), a);
            acc[c][h] = a;
        }
    }
}

/* Float types go by halves of the panel, so that the accumulators of 8 columns stay in registers. */
INLINE void half_load(int nc, int h, __m256 (*acc)[HALVES], __m256 a[TILE_TOKENS]) {
#pragma GCC unroll 8
    for (int c = 0; c < TILE_TOKENS; c++) a[c] = c < nc ? acc[c][h] : _mm256_setzero_ps();
}

INLINE void half_store(int nc, int h, const __m256 a[TILE_TOKENS], __m256 (*acc)[HALVES]) {
#pragma GCC unroll 8
    for (int c = 0; c < nc; c++) acc[c][h] = a[c];
}

INLINE void columns_add(enum dtype t, int nc, const uint8_t *panel, int h, size_t begin, size_t end,
                        const uint8_t *tile, __m256 (*acc)[HALVES]) {
    __m256 a[TILE_TOKENS];
    half_load(nc, h, acc, a);
    for (size_t i = begin; i < end; i++) {
        const __m256 w =
            t == DT_F32 ? _mm256_load_ps((const float *)(panel + i * 64) + h * 8) : load_f16(panel + i * 32 + h * 16);
#pragma GCC unroll 8
        for (int c = 0; c < nc; c++) a[c] = _mm256_fmadd_ps(w, bcast_f32(tile + (i * nc + c) * 4), a[c]);
    }
    half_store(nc, h, a, acc);
}

/* Column pairs of bf16 by two fmas: odd column, then even. */
INLINE void pairs_add(int nc, const uint8_t *panel, int h, size_t begin, size_t end, const uint8_t *tile,
                      __m256 (*acc)[HALVES]) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    __m256 a[TILE_TOKENS];
    half_load(nc, h, acc, a);
    for (size_t p = begin; p < end; p++) {
        const __m256i w = load(panel + p * 64 + h * 32);
        const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(w, high));
        const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
#pragma GCC unroll 8
        for (int c = 0; c < nc; c++) {
            const __m256i x = bcast_i32(tile + (p * nc + c) * 4);
            a[c] = _mm256_fmadd_ps(odd, _mm256_castsi256_ps(_mm256_and_si256(x, high)), a[c]);
            a[c] = _mm256_fmadd_ps(even, _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), a[c]);
        }
    }
    half_store(nc, h, a, acc);
}

INLINE void slice_add(enum dtype t, int nc, const struct weight *w, const uint8_t *panel, const uint8_t *tile,
                      const uint8_t *sums, uint32_t s, __m256 (*acc)[HALVES]) {
    const uint32_t begin = w->slices.edge[s], end = w->slices.edge[s + 1];
    if (t == DT_BF16) {
        for (int h = 0; h < HALVES; h++) pairs_add(nc, panel, h, begin / 2, (end + 1) / 2, tile, acc);
    } else if (t == DT_F32 || t == DT_F16) {
        for (int h = 0; h < HALVES; h++) columns_add(t, nc, panel, h, begin, end, tile, acc);
    } else {
        for (uint32_t b = begin / Q8_BLOCK; b < end / Q8_BLOCK; b++) block_add(t, nc, panel, b, tile, sums, acc);
    }
}

INLINE void tile_run(enum dtype t, int nc, const struct weight *w, const uint8_t *panel, const uint8_t *tile,
                     const uint8_t *sums, float *y, size_t y_stride) {
    __m256 part[SLICE_COUNT][TILE_TOKENS][HALVES];
    const uint32_t n_slices = w->slices.count;
    for (uint32_t s = 0; s < n_slices; s++) {
        for (int c = 0; c < nc; c++) part[s][c][0] = part[s][c][1] = _mm256_setzero_ps();
        slice_add(t, nc, w, panel, tile, sums, s, part[s]);
    }
    for (uint32_t n = n_slices; n > 1; n /= 2) {
        for (uint32_t i = 0; i < n / 2; i++) {
            for (int c = 0; c < nc; c++) {
                for (int h = 0; h < HALVES; h++)
                    part[i][c][h] = _mm256_add_ps(part[2 * i][c][h], part[2 * i + 1][c][h]);
            }
        }
    }
    for (int c = 0; c < nc; c++) {
        for (int h = 0; h < HALVES; h++) _mm256_storeu_ps(y + c * y_stride + h * 8, part[0][c][h]);
    }
}

PANEL_FUNCTION(panel_f32, DT_F32)
PANEL_FUNCTION(panel_f16, DT_F16)
PANEL_FUNCTION(panel_bf16, DT_BF16)
PANEL_FUNCTION(panel_q4_0, DT_Q4_0)
PANEL_FUNCTION(panel_q5_0, DT_Q5_0)
PANEL_FUNCTION(panel_q8_0, DT_Q8_0)
PANEL_FUNCTION(panel_q4_k, DT_Q4_K)
PANEL_FUNCTION(panel_q5_k, DT_Q5_K)
PANEL_FUNCTION(panel_q6_k, DT_Q6_K)

void matmul_avx2_fill(struct cpu_isa *isa) {
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
