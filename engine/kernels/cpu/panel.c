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

size_t panel_bytes(enum dtype t, uint32_t n_cols) {
    switch (t) {
    case DT_F32:
        return (size_t)n_cols * 64;
    case DT_F16:
        return round_up((size_t)n_cols * 32, 64);
    case DT_BF16:
        return div_up(n_cols, 2) * 64;
    default:
        return div_up(n_cols / Q8_BLOCK, panel_super_blocks(t)) * panel_super_bytes(t);
    }
}

/* ---- Packing, one row each: lane r of the panel ---- */

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

/* _0 types: fp16 d, then for Q5_0 the high bits, then quants. */
static void pack_q_0(enum dtype t, uint8_t *panel, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    const uint32_t head = t == DT_Q5_0 ? 6 : 2, n_words = t == DT_Q8_0 ? 8 : 4;
    const uint32_t flip = t == DT_Q8_0 ? 0x80808080 : 0; /* q + 128 */
    for (uint32_t b = 0; b < n_blocks; b++, src += dtype_block_bytes(t)) {
        uint8_t *dst = panel + panel_quants_at(t, b) + r * LANE;
        memcpy(panel + panel_d_at(t, b) + 2 * r, src, 2);
        for (uint32_t g = 0; g < n_words; g++) u32_store(dst + g * GROUP, u32_load(src + head + g * 4) ^ flip);
        if (t == DT_Q5_0) u32_store(dst + 4 * GROUP, high_bits_spread(u32_load(src + 2)));
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

static void pack_q45_k(enum dtype t, uint8_t *panel, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    const bool five = t == DT_Q5_K;
    for (uint32_t b = 0; b < n_blocks; b += 8, src += dtype_block_bytes(t)) {
        uint8_t *super = panel + panel_super_at(t, b);
        memcpy(super + 2 * r, src, 2);
        memcpy(super + 32 + 2 * r, src + 2, 2);
        const uint8_t *nibbles = src + (five ? 48 : 16);
        for (uint32_t s = 0; s < 8; s++) {
            uint8_t *sub = panel + panel_sub_scales_at(t, b + s), *dst = panel + panel_quants_at(t, b + s) + r * LANE;
            k_scale_min(src + 4, s, sub + r, sub + 16 + r);
            pack_k_nibbles(dst, nibbles + s / 2 * 32, s % 2 * 4);
            if (!five) continue;
            uint32_t high = 0;
            for (uint32_t g = 0; g < 8; g++) high |= (u32_load(src + 16 + g * 4) >> s & 0x01010101) << g;
            u32_store(dst + 4 * GROUP, high);
        }
    }
}

static void pack_q6_k(uint8_t *panel, uint32_t r, const uint8_t *src, uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b += 8, src += 210) {
        memcpy(panel + panel_super_at(DT_Q6_K, b) + 2 * r, src + 208, 2);
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t half = i / 4, s = i % 4;
            const uint8_t *high = src + 128 + half * 32;
            uint8_t *sub = panel + panel_sub_scales_at(DT_Q6_K, b + i);
            uint8_t *dst = panel + panel_quants_at(DT_Q6_K, b + i) + r * LANE;
            pack_k_nibbles(dst, src + half * 64 + s % 2 * 32, s / 2 * 4);
            uint32_t h0 = 0, h1 = 0;
            for (uint32_t j = 0; j < 4; j++) {
                h0 |= (u32_load(high + j * 4) >> 2 * s & 0x03030303) << 2 * j;
                h1 |= (u32_load(high + 16 + j * 4) >> 2 * s & 0x03030303) << 2 * j;
            }
            u32_store(dst + 4 * GROUP, h0);
            u32_store(dst + 5 * GROUP, h1);
            sub[r] = src[192 + i * 2];
            sub[16 + r] = src[192 + i * 2 + 1];
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
    const uint32_t n_blocks = w->n_cols / Q8_BLOCK;
    switch (w->type) {
    case DT_Q4_0:
        pack_q_0(DT_Q4_0, panel, r, src, n_blocks);
        break;
    case DT_Q5_0:
        pack_q_0(DT_Q5_0, panel, r, src, n_blocks);
        break;
    case DT_Q8_0:
        pack_q_0(DT_Q8_0, panel, r, src, n_blocks);
        break;
    case DT_Q4_K:
        pack_q45_k(DT_Q4_K, panel, r, src, n_blocks);
        break;
    case DT_Q5_K:
        pack_q45_k(DT_Q5_K, panel, r, src, n_blocks);
        break;
    case DT_Q6_K:
        pack_q6_k(panel, r, src, n_blocks);
        break;
    default:
        pack_floats(w->type, panel, r, src, w->n_cols);
    }
}

/* ---- Reading back ---- */

void panel_block_unpack(enum dtype t, const uint8_t *panel, uint32_t b, uint32_t r, uint8_t q[32]) {
    const uint8_t *src = panel + panel_quants_at(t, b) + r * LANE;
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
static void block_to_f32(enum dtype t, const uint8_t *panel, uint32_t b, uint32_t r, const uint8_t q[32], float *y) {
    const uint8_t *at = panel + panel_d_at(t, b), *sub = panel + panel_sub_scales_at(t, b);
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
    default:
        break;
    }
    for (uint32_t b = 0; b < w->n_cols / Q8_BLOCK; b++) {
        uint8_t q[32];
        panel_block_unpack(w->type, panel, b, r, q);
        block_to_f32(w->type, panel, b, r, q, y + (size_t)b * Q8_BLOCK);
    }
}
