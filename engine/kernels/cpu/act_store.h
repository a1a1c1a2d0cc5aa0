/* act_store.h - where the values of one activation row go inside its tile (cpu.h draws the layout).
 *
 * Shared by the three instruction set levels: they compute a block of 32 values in registers, these place it.
 */
#ifndef CHOIR_KERNELS_CPU_ACT_STORE_H
#define CHOIR_KERNELS_CPU_ACT_STORE_H

#include <string.h>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/dtype.h"

/* Below this the reciprocal 127 / amax or the scale amax / 127 leaves the normal range: the block becomes 0. */
#define Q8_AMAX_MIN 0x1p-119f

/* A block of 32 values as int8 and one scale. */
struct q8_block {
    _Alignas(32) int8_t q[Q8_BLOCK];
    float d;
    int32_t sum16[2];
};

/* Scale of a block and the factor that takes values to quants; amax_bits is the largest |x| compared as integers,
 * so that NaN counts as largest. A block with an infinity or NaN gets q = 0, d = NaN: poison stays visible. */
static inline float q8_scale(uint32_t amax_bits, float *to_quant) {
    const float amax = f32_from_bits(amax_bits);
    *to_quant = 0.0f;
    if (amax_bits >= 0x7f800000) return f32_from_bits(0x7fc00000);
    if (amax < Q8_AMAX_MIN) return 0.0f;
    *to_quant = 127.0f / amax;
    return amax / 127.0f;
}

static inline void act_store_q8(const struct act_row *row, uint32_t block, const struct q8_block *b) {
    const size_t nc = row->nc, c = row->c;
    uint8_t *q = row->q8 + block * Q8_BLOCK_BYTES * nc;
    if (nc == 1) {
        memcpy(q, b->q, Q8_BLOCK);
    } else {
        for (size_t g = 0; g < 8; g++) memcpy(q + (g * nc + c) * 4, b->q + g * 4, 4);
    }
    const int32_t neg_sum = -(b->sum16[0] + b->sum16[1]);
    const float neg_dsum = b->d * (float)neg_sum;
    memcpy(q + (8 * nc + c) * 4, &b->d, 4);
    memcpy(q + (9 * nc + c) * 4, &neg_sum, 4);
    uint8_t *sums = row->q8_sums + block * Q8_SUMS_BYTES * nc;
    const int32_t neg_sum16[2] = {-b->sum16[0], -b->sum16[1]};
    memcpy(sums + c * 4, &neg_dsum, 4);
    memcpy(sums + (nc + c) * 4, &neg_sum16[0], 4);
    memcpy(sums + (2 * nc + c) * 4, &neg_sum16[1], 4);
}

static inline void act_store_f32(const struct act_row *row, uint32_t col, const float v[Q8_BLOCK]) {
    float *dst = row->f32 + (size_t)col * row->nc + row->c;
    if (row->nc == 1)
        memcpy(dst, v, Q8_BLOCK * sizeof(float));
    else
        for (size_t i = 0; i < Q8_BLOCK; i++) dst[i * row->nc] = v[i];
}

/* v: 32 bf16 values */
static inline void act_store_bf16(const struct act_row *row, uint32_t col, const uint16_t v[Q8_BLOCK]) {
    uint16_t *dst = row->bf16 + (size_t)col * row->nc + row->c * 2;
    if (row->nc == 1)
        memcpy(dst, v, Q8_BLOCK * sizeof(uint16_t));
    else
        for (size_t i = 0; i < Q8_BLOCK / 2; i++) memcpy(dst + i * row->nc * 2, v + i * 2, 4);
}

#endif
