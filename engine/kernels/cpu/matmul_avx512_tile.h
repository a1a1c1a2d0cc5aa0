/* matmul_avx512_tile.h - the frame of a panel kernel: slices, their tree, one instance per number of columns.
 *
 * Included by a file that defines INLINE and slice_add(t, nc, w, panel, tile, sums, s, acc), which adds slice s of
 * the panel to acc[nc]. nc and t are constants after inlining.
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

#define PANEL_FUNCTION(name, type)                                                                                     \
    static void name(const struct weight *w, uint32_t panel, const void *tile, const void *sums, uint32_t nc, float *y, \
                     size_t y_stride) {                                                                                \
        const uint8_t *p = panel_at(w, panel);                                                                         \
        switch (nc) {                                                                                                  \
        case 1: tile_run(type, 1, w, p, tile, sums, y, y_stride); break;                                               \
        case 2: tile_run(type, 2, w, p, tile, sums, y, y_stride); break;                                               \
        case 3: tile_run(type, 3, w, p, tile, sums, y, y_stride); break;                                               \
        case 4: tile_run(type, 4, w, p, tile, sums, y, y_stride); break;                                               \
        case 5: tile_run(type, 5, w, p, tile, sums, y, y_stride); break;                                               \
        case 6: tile_run(type, 6, w, p, tile, sums, y, y_stride); break;                                               \
        case 7: tile_run(type, 7, w, p, tile, sums, y, y_stride); break;                                               \
        default: tile_run(type, 8, w, p, tile, sums, y, y_stride); break;                                              \
        }                                                                                                              \
    }
