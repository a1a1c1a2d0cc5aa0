/* panel_function.h - makes a panel_fn (cpu.h) of an inlined kernel: one instance per number of columns.
 *
 * tile_run(type, nc, w, panel, tile, sums, y, y_stride) must be INLINE: type and nc become constants in it.
 */
#ifndef CHOIR_KERNELS_CPU_PANEL_FUNCTION_H
#define CHOIR_KERNELS_CPU_PANEL_FUNCTION_H

#define INLINE static inline __attribute__((always_inline))

#define PANEL_FUNCTION(name, type)                                                                                     \
    static void name(const struct weight *w, uint32_t panel, const void *tile, const void *sums, uint32_t nc,          \
                     float *y, size_t y_stride) {                                                                      \
        const uint8_t *p = panel_at(w, panel);                                                                         \
        switch (nc) {                                                                                                  \
        case 1:                                                                                                        \
            tile_run(type, 1, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 2:                                                                                                        \
            tile_run(type, 2, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 3:                                                                                                        \
            tile_run(type, 3, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 4:                                                                                                        \
            tile_run(type, 4, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 5:                                                                                                        \
            tile_run(type, 5, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 6:                                                                                                        \
            tile_run(type, 6, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        case 7:                                                                                                        \
            tile_run(type, 7, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        default:                                                                                                       \
            tile_run(type, 8, w, p, tile, sums, y, y_stride);                                                          \
            break;                                                                                                     \
        }                                                                                                              \
    }

#endif
