/* matmul_scalar.c - what a matrix product is, in plain C. The SIMD kernels equal it bit for bit.
 *
 * y[c][r] = sum over slices, by the balanced binary tree, of the slice's sum; a slice's sum starts at +0 and takes
 * the slice's terms in ascending column order. With x about dx * xq (int8 per 32 columns), per block of 32:
 *   Q4_0, Q5_0, Q8_0  acc = fma(d * dx, (float)isum, acc)                    isum = sum(q * xq), exact in int32
 *   Q4_K, Q5_K        acc = fma((d * sc) * dx, (float)isum, acc);  acc = fma(dmin * m, neg_dsum, acc)
 *   Q6_K              acc = fma(d * dx, (float)(sc0 * isum0 + sc1 * isum1), acc)
 * and for the float types, fma by fma,
 *   F32, F16          acc = fma(w, x, acc), column by column, x in fp32
 *   BF16              x in bf16, columns in pairs: acc = fma(w1, x1, acc), then acc = fma(w0, x0, acc), which is
 *                     what vdpbf16ps does
 * Every operation rounds to nearest even and flushes denormals.
 */
#include <math.h>

#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/dtype.h"

/* The tile's row c at block b. */
struct x_block {
    int8_t q[Q8_BLOCK];
    float d, neg_dsum;
};

static struct x_block x_block_load(const uint8_t *tile, const uint8_t *sums, uint32_t nc, uint32_t c, uint32_t b) {
    struct x_block x;
    const uint8_t *at = tile + (size_t)b * Q8_BLOCK_BYTES * nc;
    for (uint32_t g = 0; g < 8; g++) memcpy(x.q + g * 4, at + (g * nc + c) * 4, 4);
    memcpy(&x.d, at + (8 * nc + c) * 4, 4);
    memcpy(&x.neg_dsum, sums + ((size_t)b * Q8_SUMS_BYTES / 4 * nc + c) * 4, 4);
    return x;
}

static int32_t dot(const uint8_t *q, int offset, const int8_t *x, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += (q[i] - offset) * x[i];
    return sum;
}

static float block_add(float acc, const struct weight *w, const uint8_t *panel, uint32_t b, uint32_t r,
                       const struct x_block *x) {
    const uint8_t *at = panel + panel_d_at(w->type, b), *sub = panel + panel_sub_scales_at(w->type, b);
    const float d = f16_load(at + 2 * r);
    const int offset = panel_offset(w->type);
    uint8_t q[Q8_BLOCK];
    panel_block_unpack(w->type, panel, b, r, q);
    if (w->type == DT_Q6_K) {
        const int32_t half0 = dot(q, offset, x->q, 16), half1 = dot(q + 16, offset, x->q + 16, 16);
        return fmaf(d * x->d, (float)((int8_t)sub[r] * half0 + (int8_t)sub[16 + r] * half1), acc);
    }
    const float isum = (float)dot(q, offset, x->q, Q8_BLOCK);
    if (w->type != DT_Q4_K && w->type != DT_Q5_K) return fmaf(d * x->d, isum, acc);
    const float min = f16_load(at + 32 + 2 * r) * (float)sub[16 + r];
    acc = fmaf(d * (float)sub[r] * x->d, isum, acc);
    return fmaf(min, x->neg_dsum, acc);
}

static float slice_quant(const struct weight *w, const uint8_t *panel, uint32_t r, const uint8_t *tile,
                         const uint8_t *sums, uint32_t nc, uint32_t c, uint32_t s) {
    float acc = 0.0f;
    for (uint32_t b = w->slices.edge[s] / Q8_BLOCK; b < w->slices.edge[s + 1] / Q8_BLOCK; b++) {
        const struct x_block x = x_block_load(tile, sums, nc, c, b);
        acc = block_add(acc, w, panel, b, r, &x);
    }
    return acc;
}

static float slice_float(const struct weight *w, const uint8_t *panel, uint32_t r, const float *tile, uint32_t nc,
                         uint32_t c, uint32_t s) {
    float acc = 0.0f;
    for (size_t i = w->slices.edge[s]; i < w->slices.edge[s + 1]; i++) {
        const float v =
            w->type == DT_F32 ? f32_from_bits(u32_load(panel + i * 64 + r * 4)) : f16_load(panel + i * 32 + r * 2);
        acc = fmaf(v, tile[i * nc + c], acc);
    }
    return acc;
}

static float slice_bf16(const struct weight *w, const uint8_t *panel, uint32_t r, const uint8_t *tile, uint32_t nc,
                        uint32_t c, uint32_t s) {
    float acc = 0.0f;
    for (size_t p = w->slices.edge[s] / 2; p < div_up(w->slices.edge[s + 1], 2); p++) {
        const uint8_t *pw = panel + p * 64 + r * 4, *px = tile + (p * nc + c) * 4;
        acc = fmaf(bf16_load(pw + 2), bf16_load(px + 2), acc);
        acc = fmaf(bf16_load(pw), bf16_load(px), acc);
    }
    return acc;
}

static float row_dot(const struct weight *w, const uint8_t *panel, uint32_t r, const void *tile, const void *sums,
                     uint32_t nc, uint32_t c) {
    float part[SLICE_COUNT];
    for (uint32_t s = 0; s < w->slices.count; s++) {
        if (w->type == DT_BF16)
            part[s] = slice_bf16(w, panel, r, tile, nc, c, s);
        else if (w->type == DT_F32 || w->type == DT_F16)
            part[s] = slice_float(w, panel, r, tile, nc, c, s);
        else
            part[s] = slice_quant(w, panel, r, tile, sums, nc, c, s);
    }
    for (uint32_t n = w->slices.count; n > 1; n /= 2) {
        for (uint32_t i = 0; i < n / 2; i++) part[i] = part[2 * i] + part[2 * i + 1];
    }
    return part[0];
}

static void panel_scalar(const struct weight *w, uint32_t panel, const void *tile, const void *sums, uint32_t nc,
                         float *y, size_t y_stride) {
    const uint8_t *base = panel_at(w, panel);
    for (uint32_t c = 0; c < nc; c++) {
        for (uint32_t r = 0; r < ROW_PANEL; r++) y[c * y_stride + r] = row_dot(w, base, r, tile, sums, nc, c);
    }
}

void matmul_scalar_fill(struct cpu_isa *isa) {
    for (int t = 0; t < DT_COUNT; t++) isa->panel[t] = t == DT_I8 ? NULL : panel_scalar;
}
