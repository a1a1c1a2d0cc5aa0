/* panel.h - layout of packed weights: panels of 16 rows, quants first, then the scales of the whole panel.
 *
 * Quantized types, per block of 32 columns; "group" g is columns 4g..4g+3, and row r of a group is bytes
 * r*4..r*4+3 of 64 bytes, so that a 512-bit register holds one group of 16 rows:
 *   Q8_0        8 x 64: u8 = q + 128 of group g
 *   Q4_0, Q4_K  4 x 64: low nibbles group j, high nibbles group j + 4
 *   Q5_0, Q5_K  as Q4, then 64: bit g of a byte is the high bit of group g
 *   Q6_K        as Q4, then 2 x 64: bits 2j, 2j+1 of a byte are the high bits of group j (second 64: of j + 4)
 * Value = unsigned quant - offset (128; 8 for Q4_0; 16 for Q5_0; 0 for Q4_K, Q5_K; 32 for Q6_K).
 * Scale run:
 *   _0 types    per block: fp16 d[16]
 *   Q4_K, Q5_K  per 8 blocks: fp16 d[16], fp16 dmin[16], then per block u8 scale[16], u8 min[16]
 *   Q6_K        per 8 blocks: fp16 d[16], then per block int8 scale[2 halves][16]
 * Float types: F32 and F16 [n_cols][16], BF16 [pairs of columns][16][2], an odd last column paired with 0.
 */
#ifndef CHOIR_KERNELS_CPU_PANEL_H
#define CHOIR_KERNELS_CPU_PANEL_H

#include "engine/kernels/cpu/cpu.h"

enum {
    BLOCKS_PER_SUPER = 8, /* blocks of 32 in a K-quant's block of 256 */
    SCALES_Q0 = 32,       /* bytes of the scale run per block */
    SCALES_Q45K = 64 + 8 * 32,
    SCALES_Q6K = 32 + 8 * 32,
};

/* Bytes of a block of 32 columns in the quant run; 0 for float types. */
static inline uint32_t panel_block_bytes(enum dtype t) {
    switch (t) {
    case DT_Q4_0:
    case DT_Q4_K: return 256;
    case DT_Q5_0:
    case DT_Q5_K: return 320;
    case DT_Q6_K: return 384;
    case DT_Q8_0: return 512;
    default: return 0;
    }
}

/* What is subtracted from the unsigned quants. */
static inline int panel_offset(enum dtype t) {
    switch (t) {
    case DT_Q4_0: return 8;
    case DT_Q5_0: return 16;
    case DT_Q8_0: return 128;
    case DT_Q6_K: return 32;
    default: return 0;
    }
}

/* Where the scales of block b start in the scale run; for K-quants those of its super-block, the block's own
 * being at panel_sub_scales. */
static inline size_t panel_scales_at(enum dtype t, uint32_t b) {
    switch (t) {
    case DT_Q4_K:
    case DT_Q5_K: return (size_t)(b / BLOCKS_PER_SUPER) * SCALES_Q45K;
    case DT_Q6_K: return (size_t)(b / BLOCKS_PER_SUPER) * SCALES_Q6K;
    default: return (size_t)b * SCALES_Q0;
    }
}

static inline size_t panel_sub_scales_at(enum dtype t, uint32_t b) {
    return panel_scales_at(t, b) + (t == DT_Q6_K ? 32 : 64) + (size_t)(b % BLOCKS_PER_SUPER) * 32;
}

static inline const uint8_t *panel_at(const struct weight *w, uint32_t panel) {
    return w->panels + panel * w->panel_bytes;
}

/* Sets panel_bytes and scales_offset of a type and a number of columns. */
void panel_geometry(enum dtype t, uint32_t n_cols, size_t *panel_bytes, size_t *scales_offset);

/* Copies one row in file layout to lane r of a panel. */
void panel_row_pack(const struct weight *w, uint8_t *panel, uint32_t r, const uint8_t *src);

/* The unsigned quants of block b in lane r of a panel. */
void panel_block_unpack(enum dtype t, const uint8_t *panel, uint32_t b, uint32_t r, uint8_t q[32]);

/* Lane r of a panel as fp32 [n_cols]: the bits of dtype_to_f32 (denormals flushed). */
void panel_row_to_f32(const struct weight *w, const uint8_t *panel, uint32_t r, float *y);

#endif
