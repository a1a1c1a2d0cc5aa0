/* matmul_avx512_tile.h - the frame of an AVX-512 panel kernel: slices and their tree.
 *
 * Included, after panel_function.h, by a file that defines slice_add(t, nc, w, panel, tile, sums, s, acc), which adds
 * slice s of the panel to acc[nc]. nc and t are constants after inlining.
 */
INLINE void tile_run(enum dtype t, int nc, const struct weight *w, const uint8_t *panel, const uint8_t *tile,
                     const uint8_t *sums, float *y, size_t y_stride) {
    __m512 part[SLICE_COUNT][TILE_TOKENS];
    const uint32_t n_slices = w->slices.count;
    for (uint32_t s = 0; s < n_slices; s++) {
        __m512 acc[TILE_TOKENS];
#pragma GCC unroll 8
        for (int c = 0; c < nc; c++) acc[c] = _mm512_setzero_ps();
        slice_add(t, nc, w, panel, tile, sums, s, acc);
#pragma GCC unroll 8
        for (int c = 0; c < nc; c++) part[s][c] = acc[c];
    }
    for (uint32_t n = n_slices; n > 1; n /= 2) {
        for (uint32_t i = 0; i < n / 2; i++) {
#pragma GCC unroll 8
            for (int c = 0; c < nc; c++) part[i][c] = _mm512_add_ps(part[2 * i][c], part[2 * i + 1][c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < nc; c++) _mm512_storeu_ps(y + c * y_stride, part[0][c]);
}
