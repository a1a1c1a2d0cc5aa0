/* dtype.c - element types: sizes, dequantization, canonical slices.
 *
 * Dequantization equals the gguf Python package's bit for bit: it computes in float32 in the order written here
 * (scale times quant; for the K-quants with a minimum, (d*sc)*q - (dmin*m), each operation rounded). Formats:
 * GGUF's block structures, all little-endian, all scales fp16.
 */
#include <string.h>

#include "engine/kernels/dtype.h"
#include "engine/kernels/kernels.h"

static const struct dtype_info {
    const char *name;
    uint32_t block_len, block_bytes;
} infos[DT_COUNT] = {
    [DT_F32] = {"f32", 1, 4},       [DT_F16] = {"f16", 1, 2},       [DT_BF16] = {"bf16", 1, 2},
    [DT_I8] = {"i8", 1, 1},         [DT_Q4_0] = {"q4_0", 32, 18},   [DT_Q5_0] = {"q5_0", 32, 22},
    [DT_Q8_0] = {"q8_0", 32, 34},   [DT_Q4_K] = {"q4_k", 256, 144}, [DT_Q5_K] = {"q5_k", 256, 176},
    [DT_Q6_K] = {"q6_k", 256, 210},
};

const char *dtype_name(enum dtype t) {
    ASSERT((unsigned)t < DT_COUNT);
    return infos[t].name;
}

uint32_t dtype_block_len(enum dtype t) {
    ASSERT((unsigned)t < DT_COUNT);
    return infos[t].block_len;
}

uint32_t dtype_block_bytes(enum dtype t) {
    ASSERT((unsigned)t < DT_COUNT);
    return infos[t].block_bytes;
}

size_t dtype_row_bytes(enum dtype t, size_t n_cols) {
    ASSERT(n_cols % dtype_block_len(t) == 0);
    return n_cols / infos[t].block_len * infos[t].block_bytes;
}

/* ---- Blocks ---- */

static void q4_0_to_f32(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void q5_0_to_f32(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    const uint32_t high = u32_load(b + 2);
    for (int i = 0; i < 16; i++) {
        const int lo = (b[6 + i] & 15) | (int)((high >> i) & 1) << 4;
        const int hi = (b[6 + i] >> 4) | (int)((high >> (i + 16)) & 1) << 4;
        y[i] = d * (float)(lo - 16);
        y[i + 16] = d * (float)(hi - 16);
    }
}

static void q8_0_to_f32(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int i = 0; i < 32; i++) y[i] = (float)(int8_t)b[2 + i] * d;
}

/* Q4_K and Q5_K: fp16 d, fp16 dmin, 12 bytes of scales; Q5_K: 32 bytes of high bits; 128 bytes of nibbles. */
static void q45_k_to_f32(const uint8_t *b, float *y, bool five) {
    const float d = f16_load(b), dmin = f16_load(b + 2);
    const uint8_t *high = b + 16, *nibbles = five ? b + 48 : b + 16;
    for (uint32_t s = 0; s < 8; s++) {
        uint8_t scale, min;
        k_scale_min(b + 4, s, &scale, &min);
        const float ds = d * (float)scale, dm = dmin * (float)min;
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t q = nibbles[s / 2 * 32 + i] >> (s % 2 * 4) & 15;
            if (five) q |= (uint32_t)(high[i] >> s & 1) << 4;
            y[s * 32 + i] = ds * (float)q - dm;
        }
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, fp16 d. */
static void q6_k_to_f32(const uint8_t *b, float *y) {
    const float d = f16_load(b + 208);
    for (uint32_t i = 0; i < 256; i++) {
        const uint32_t half = i / 128, s = i / 32 % 4, l = i % 32;
        const uint32_t lo = b[half * 64 + s % 2 * 32 + l] >> (s / 2 * 4) & 15;
        const uint32_t hi = b[128 + half * 32 + l] >> (2 * s) & 3;
        y[i] = d * (float)(int8_t)b[192 + i / 16] * (float)((int)(lo | hi << 4) - 32);
    }
}

static void floats_to_f32(enum dtype t, const uint8_t *src, float *dst, size_t n) {
    if (t == DT_F32) {
        memcpy(dst, src, n * 4);
        return;
    }
    for (size_t i = 0; i < n; i++) dst[i] = t == DT_F16 ? f16_load(src + 2 * i) : bf16_load(src + 2 * i);
}

void dtype_to_f32(enum dtype t, const void *src, float *dst, size_t n) {
    const size_t len = dtype_block_len(t), bytes = dtype_block_bytes(t);
    ASSERT(n % len == 0 && t != DT_I8);
    if (len == 1) {
        floats_to_f32(t, src, dst, n);
        return;
    }
    const uint8_t *b = src;
    for (size_t i = 0; i < n; i += len, b += bytes) {
        switch (t) {
        case DT_Q4_0:
            q4_0_to_f32(b, dst + i);
            break;
        case DT_Q5_0:
            q5_0_to_f32(b, dst + i);
            break;
        case DT_Q8_0:
            q8_0_to_f32(b, dst + i);
            break;
        case DT_Q4_K:
            q45_k_to_f32(b, dst + i, false);
            break;
        case DT_Q5_K:
            q45_k_to_f32(b, dst + i, true);
            break;
        default:
            q6_k_to_f32(b, dst + i);
            break;
        }
    }
}

/* ---- Slices ---- */

uint32_t dtype_slice_unit(enum dtype t) {
    return t == DT_BF16 ? 2 : dtype_block_len(t);
}

struct slices slices_single(uint32_t n_cols) {
    return (struct slices){.count = 1, .edge = {0, n_cols}};
}

struct slices slices_canonical(enum dtype t, uint32_t n_cols) {
    struct slices s = {.count = SLICE_COUNT};
    const uint32_t unit = dtype_slice_unit(t);
    const uint64_t n_blocks = n_cols / unit;
    for (uint32_t i = 0; i < SLICE_COUNT; i++) s.edge[i] = (uint32_t)(i * n_blocks / SLICE_COUNT) * unit;
    s.edge[SLICE_COUNT] = n_cols;
    return s;
}
