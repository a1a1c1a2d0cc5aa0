/* panel.c - from GGUF rows to panels of 16 rows and back (panel.h draws the layout).
 *
 * A row goes into one lane of the panel, word by word: the packed layouts were chosen so that a 32-bit word of a
 * panel comes from one or two words of the file by shifts and masks. Packing runs once, at load; reading rows
 * back serves the embedding lookup and the scalar kernels.
 */
#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/dtype.h"

enum {
    LANE = 4,   /* bytes of a lane in a 64-byte group */
    GROUP = 64, /* bytes of a group */
};

void panel_geometry(enum dtype t, uint32_t n_cols, size_t *panel_bytes, size_t *scales_offset) {
    const size_t n_blocks = n_cols / Q8_BLOCK;
    size_t quants, scales = 0;
    switch (t) {
    case DT_F32: quants = (size_t)n_cols * 64; break;
    case DT_F16: quants = (size_t)n_cols * 32; break;
    case DT_BF16: quants = div_up(n_cols, 2) * 64; break;
    default:
        quants = n_blocks * panel_block_bytes(t);
        scales = t == DT_Q6_K                      ? n_blocks / BLOCKS_PER_SUPER * SCALES_Q6K
                 : t == DT_Q4_K || t == DT_Q5_K ? n_blocks / BLOCKS_PER_SUPER * SCALES_Q45K
                                                   : n_blocks * SCALES_Q0;
    }
    *scales_offset = scales ? quants : 0;
    *panel_bytes = round_up(quants + scales, 64);
}

/* ---- Packing, one row each; dst is the lane's first byte in the quant run ---- */

/* Bit 4g+i of `bits` to bit 8i+g: bit g of byte i belongs to column 4g+i. A rotation of the bit index by two
 * places, done as two unshuffles (even bits to the low half, odd ones to the high half). */
static uint32_t high_bits_spread(uint32_t bits) {
    for (int round = 0; round < 2; round++) {
        uint32_t t = (bits ^ bits >> 1) & 0x22222222;
        bits ^= t ^ t << 1;
        t = (bits ^ bits >> 2) & 0x0c0c0c0c;
        bits ^= t ^ t << 2;
        t = (bits ^ bits >> 4) & 0x00f000f0;
        bits ^= t ^ t << 4;
        t = (bits ^ bits >> 8) & 0x0000ff00;
        bits ^= t ^ t << 8;
    }
    return bits;
}

static void scale_put(uint8_t *scales, uint32_t r, const uint8_t *d) { memcpy(scales + 2 * r, d, 2); }

static void pack_q8_0(uint8_t *dst, uint8_t *scales, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b++, src += 34, dst += 512) {
        scale_put(scales + b * SCALES_Q0, r, src);
        for (uint32_t g = 0; g < 8; g++) u32_store(dst + g * GROUP, u32_load(src + 2 + g * 4) ^ 0x80808080);
    }
}

static void pack_q4_0(uint8_t *dst, uint8_t *scales, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b++, src += 18, dst += 256) {
        scale_put(scales + b * SCALES_Q0, r, src);
        for (uint32_t g = 0; g < 4; g++) u32_store(dst + g * GROUP, u32_load(src + 2 + g * 4));
    }
}

static void pack_q5_0(uint8_t *dst, uint8_t *scales, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b++, src += 22, dst += 320) {
        scale_put(scales + b * SCALES_Q0, r, src);
        for (uint32_t g = 0; g < 4; g++) u32_store(dst + g * GROUP, u32_load(src + 6 + g * 4));
        u32_store(dst + 4 * GROUP, high_bits_spread(u32_load(src + 2)));
    }
}

/* Nibbles of one block of 32 out of K-quant bytes, whose 32 nibbles sit in 32 bytes at bit `shift`. */
static void pack_k_nibbles(uint8_t *dst, const uint8_t *src, uint32_t shift) {
    for (uint32_t j = 0; j < 4; j++) {
        const uint32_t lo = u32_load(src + j * 4) >> shift & 0x0f0f0f0f;
        const uint32_t hi = u32_load(src + 16 + j * 4) >> shift & 0x0f0f0f0f;
        u32_store(dst + j * GROUP, lo | hi << 4);
    }
}

static void pack_q45_k(uint8_t *dst, uint8_t *scales, uint32_t r, const uint8_t *src, uint32_t n_blocks, bool five) {
    const uint32_t block = five ? 320 : 256, file_block = five ? 176 : 144;
    for (uint32_t b = 0; b < n_blocks; b += BLOCKS_PER_SUPER, src += file_block, scales += SCALES_Q45K) {
        scale_put(scales, r, src);
        scale_put(scales + 32, r, src + 2);
        const uint8_t *nibbles = src + (five ? 48 : 16);
        for (uint32_t s = 0; s < BLOCKS_PER_SUPER; s++, dst += block) {
            uint8_t *sub = scales + 64 + s * 32;
            k_scale_min(src + 4, s, sub + r, sub + 16 + r);
            pack_k_nibbles(dst, nibbles + s / 2 * 32, s % 2 * 4);
            if (!five) continue;
            uint32_t high = 0;
            for (uint32_t g = 0; g < 8; g++) high |= (u32_load(src + 16 + g * 4) >> s & 0x01010101) << g;
            u32_store(dst + 4 * GROUP, high);
        }
    }
}

static void pack_q6_k(uint8_t *dst, uint8_t *scales, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b += BLOCKS_PER_SUPER, src += 210, scales += SCALES_Q6K) {
        scale_put(scales, r, src + 208);
        for (uint32_t i = 0; i < BLOCKS_PER_SUPER; i++, dst += 384) {
            const uint32_t half = i / 4, s = i % 4;
            const uint8_t *high = src + 128 + half * 32;
            pack_k_nibbles(dst, src + half * 64 + s % 2 * 32, s / 2 * 4);
            uint32_t h0 = 0, h1 = 0;
            for (uint32_t j = 0; j < 4; j++) {
                h0 |= (u32_load(high + j * 4) >> 2 * s & 0x03030303) << 2 * j;
                h1 |= (u32_load(high + 16 + j * 4) >> 2 * s & 0x03030303) << 2 * j;
            }
            u32_store(dst + 4 * GROUP, h0);
            u32_store(dst + 5 * GROUP, h1);
            scales[32 + i * 32 + r] = src[192 + i * 2];
            scales[32 + i * 32 + 16 + r] = src[192 + i * 2 + 1];
        }
    }
}

static void pack_floats(enum dtype t, uint8_t *panel, uint32_t r, const uint8_t *src, uint32_t n) {
    if (t == DT_F32) {
        for (uint32_t i = 0; i < n; i++) memcpy(panel + (size_t)i * 64 + r * 4, src + (size_t)i * 4, 4);
    } else if (t == DT_F16) {
        for (uint32_t i = 0; i < n; i++) memcpy(panel + (size_t)i * 32 + r * 2, src + (size_t)i * 2, 2);
    } else {
        for (uint32_t i = 0; i < n; i++) {
            memcpy(panel + (size_t)(i / 2) * 64 + r * 4 + i % 2 * 2, src + (size_t)i * 2, 2);
        }
    }
}

void panel_row_pack(const struct weight *w, uint8_t *panel, uint32_t r, const uint8_t *src) {
    uint8_t *dst = panel + r * LANE, *scales = panel + w->scales_offset;
    const uint32_t n_blocks = w->n_cols / Q8_BLOCK;
    switch (w->type) {
    case DT_Q4_0: pack_q4_0(dst, scales, r, src, n_blocks); break;
    case DT_Q5_0: pack_q5_0(dst, scales, r, src, n_blocks); break;
    case DT_Q8_0: pack_q8_0(dst, scales, r, src, n_blocks); break;
    case DT_Q4_K: pack_q45_k(dst, scales, r, src, n_blocks, false); break;
    case DT_Q5_K: pack_q45_k(dst, scales, r, src, n_blocks, true); break;
    case DT_Q6_K: pack_q6_k(dst, scales, r, src, n_blocks); break;
    default: pack_floats(w->type, panel, r, src, w->n_cols);
    }
}

/* ---- Reading back ---- */

void panel_block_unpack(enum dtype t, const uint8_t *panel, uint32_t b, uint32_t r, uint8_t q[32]) {
    const uint8_t *src = panel + (size_t)b * panel_block_bytes(t) + r * LANE;
    for (uint32_t i = 0; i < 32; i++) {
        const uint32_t g = i / 4, k = i % 4;
        if (t == DT_Q8_0) {
            q[i] = src[g * GROUP + k];
            continue;
        }
        uint32_t v = src[g % 4 * GROUP + k] >> (g / 4 * 4) & 15;
        if (t == DT_Q5_0 || t == DT_Q5_K) v |= (uint32_t)(src[4 * GROUP + k] >> g & 1) << 4;
        if (t == DT_Q6_K) v |= (uint32_t)(src[(4 + g / 4) * GROUP + k] >> 2 * (g % 4) & 3) << 4;
        q[i] = (uint8_t)v;
    }
}

/* The same operations in the same order as dtype.c. */
static void block_to_f32(enum dtype t, const uint8_t *scales, uint32_t b, uint32_t r, const uint8_t q[32], float *y) {
    const uint8_t *at = scales + panel_scales_at(t, b), *sub = scales + panel_sub_scales_at(t, b);
    const float d = f16_load(at + 2 * r);
    if (t == DT_Q4_K || t == DT_Q5_K) {
        const float ds = d * (float)sub[r], dm = f16_load(at + 32 + 2 * r) * (float)sub[16 + r];
        for (int i = 0; i < 32; i++) y[i] = ds * (float)q[i] - dm;
    } else if (t == DT_Q6_K) {
        const float ds[2] = {d * (float)(int8_t)sub[r], d * (float)(int8_t)sub[16 + r]};
        for (int i = 0; i < 32; i++) y[i] = ds[i / 16] * (float)(q[i] - 32);
    } else {
        const int offset = panel_offset(t);
        for (int i = 0; i < 32; i++) y[i] = d * (float)(q[i] - offset);
    }
}

void panel_row_to_f32(const struct weight *w, const uint8_t *panel, uint32_t r, float *y) {
    switch (w->type) {
    case DT_F32:
        for (size_t i = 0; i < w->n_cols; i++) y[i] = f32_from_bits(u32_load(panel + i * 64 + r * 4));
        return;
    case DT_F16:
        for (size_t i = 0; i < w->n_cols; i++) y[i] = f16_load(panel + i * 32 + r * 2);
        return;
    case DT_BF16:
        for (size_t i = 0; i < w->n_cols; i++) y[i] = bf16_load(panel + i / 2 * 64 + r * 4 + i % 2 * 2);
        return;
    default: break;
    }
    for (uint32_t b = 0; b < w->n_cols / Q8_BLOCK; b++) {
        uint8_t q[32];
        panel_block_unpack(w->type, panel, b, r, q);
        block_to_f32(w->type, panel + w->scales_offset, b, r, q, y + (size_t)b * 32);
    }
}
