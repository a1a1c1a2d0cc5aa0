/* panel.h - layout of packed weights: panels of 16 rows, read once, forward, without gaps.
 *
 * Quantized types: a panel is a sequence of supers, each the scales of its blocks, then their quants. (Scales in a
 * run of their own at the panel's end would leave a gap in the stream of quants; hardware prefetch then starts
 * anew at every panel, which was measured to cost two thirds of the memory bandwidth.)
 *
 * Quants, per block of 32 columns; "group" g is columns 4g..4g+3, and row r of a group is bytes r*4..r*4+3 of 64
 * bytes, so that a 512-bit register holds one group of 16 rows:
 *   Q8_0        8 x 64: u8 = q + 128 of group g
 *   Q4_0, Q4_K  4 x 64: low nibbles group j, high nibbles group j + 4
 *   Q5_0, Q5_K  as Q4, then 64: bit g of a byte is the high bit of group g
 *   Q6_K        as Q4, then 2 x 64: bits 2j, 2j+1 of a byte are the high bits of group j (second 64: of j + 4)
 * Value = unsigned quant - offset (128; 8 for Q4_0; 16 for Q5_0; 0 for Q4_K, Q5_K; 32 for Q6_K).
 *
 * Scales of a super:
 *   _0 types    2 blocks (the last may be missing): fp16 d[2][16]
 *   Q4_K, Q5_K  8 blocks: fp16 d[16], fp16 dmin[16], then per block u8 scale[16], u8 min[16]
 *   Q6_K        8 blocks: fp16 d[16], 32 unused bytes, then per block int8 scale[2 halves][16]
 *
 * Float types: F32 and F16 [n_cols][16], BF16 [pairs of columns][16][2], an odd last column paired with 0.
 */
#ifndef CHOIR_KERNELS_CPU_PANEL_H
#define CHOIR_KERNELS_CPU_PANEL_H

#include "engine/kernels/cpu/cpu.h"

enum {
    SCALES_Q0 = 64, /* bytes of a super's scales */
    SCALES_K = 64 + 8 * 32,
};

/* Bytes of a block of 32 columns in the quant run; 0 for float types. */
static inline uint32_t panel_block_bytes(enum dtype t) {
    switch (t) {
    case DT_Q4_0:
    case DT_Q4_K:
        return 256;
    case DT_Q5_0:
    case DT_Q5_K:
        return 320;
    case DT_Q6_K:
        return 384;
    case DT_Q8_0:
        return 512;
    default:
        return 0;
    }
}

/* What is subtracted from the unsigned quants. */
static inline int panel_offset(enum dtype t) {
    switch (t) {
    case DT_Q4_0:
        return 8;
    case DT_Q5_0:
        return 16;
    case DT_Q8_0:
        return 128;
    case DT_Q6_K:
        return 32;
    default:
        return 0;
    }
}

static inline bool panel_is_k(enum dtype t) {
    return t == DT_Q4_K || t == DT_Q5_K || t == DT_Q6_K;
}

/* Blocks of 32 columns in a super. */
static inline uint32_t panel_super_blocks(enum dtype t) {
    return panel_is_k(t) ? 8 : 2;
}

static inline size_t panel_super_bytes(enum dtype t) {
    return (panel_is_k(t) ? SCALES_K : SCALES_Q0) + panel_super_blocks(t) * panel_block_bytes(t);
}

/* Offsets in the panel, of block b: its super, its quants, its d[16], and for the K types its own scales. */
static inline size_t panel_super_at(enum dtype t, uint32_t b) {
    return b / panel_super_blocks(t) * panel_super_bytes(t);
}

static inline size_t panel_quants_at(enum dtype t, uint32_t b) {
    return panel_super_at(t, b) + (panel_is_k(t) ? SCALES_K : SCALES_Q0) +
           b % panel_super_blocks(t) * panel_block_bytes(t);
}

static inline size_t panel_d_at(enum dtype t, uint32_t b) {
    return panel_super_at(t, b) + (panel_is_k(t) ? 0 : b % panel_super_blocks(t) * 32);
}

static inline size_t panel_sub_scales_at(enum dtype t, uint32_t b) {
    return panel_super_at(t, b) + 64 + b % 8 * 32;
}

static inline const uint8_t *panel_at(const struct weight *w, uint32_t panel) {
    return w->panels + panel * w->panel_bytes;
}

/* Bytes of a panel, a multiple of 64. */
size_t panel_bytes(enum dtype t, uint32_t n_cols);

/* Copies one row in file layout to lane r of a panel. */
void panel_row_pack(const struct weight *w, uint8_t *panel, uint32_t r, const uint8_t *src);

/* The unsigned quants of block b in lane r of a panel. */
void panel_block_unpack(enum dtype t, const uint8_t *panel, uint32_t b, uint32_t r, uint8_t q[32]);

/* Lane r of a panel as fp32 [n_cols]: the bits of dtype_to_f32 (denormals flushed). */
void panel_row_to_f32(const struct weight *w, const uint8_t *panel, uint32_t r, float *y);

#endif
