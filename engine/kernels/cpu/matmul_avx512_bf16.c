/* matmul_avx512_bf16.c - the BF16 panel kernel where the machine has vdpbf16ps.
 *
 * On a register of 16 pairs the instruction computes acc = fma(w1, x1, acc), acc = fma(w0, x0, acc), nearest even,
 * denormals flushed: the definition of matmul_scalar.c.
 */
#include <immintrin.h>

#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/cpu/panel_function.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")

INLINE void slice_add(enum dtype t, int nc, const struct weight *w, const uint8_t *panel, const uint8_t *tile,
                      const uint8_t *sums, uint32_t s, __m512 *acc) {
    (void)t, (void)sums;
    for (size_t p = w->slices.edge[s] / 2; p < div_up(w->slices.edge[s + 1], 2); p++) {
        const __m512bh v = (__m512bh)_mm512_load_si512(panel + p * 64);
        const uint8_t *x = tile + p * nc * 4;
#pragma GCC unroll 8
        for (int c = 0; c < nc; c++) {
            acc[c] = _mm512_dpbf16_ps(acc[c], v, (__m512bh)_mm512_set1_epi32(*(const int32_t *)(x + c * 4)));
        }
    }
}

#include "engine/kernels/cpu/matmul_avx512_tile.h"

PANEL_FUNCTION(panel_bf16, DT_BF16)

void matmul_avx512_bf16_fill(struct cpu_isa *isa) {
    isa->panel[DT_BF16] = panel_bf16;
}
