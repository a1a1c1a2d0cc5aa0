/* vec_scalar.c - the definition of norms, activation packing and gates in plain C (cpu.h, struct cpu_isa). */
#include <math.h>

#include "engine/kernels/cpu/act_store.h"
#include "engine/kernels/cpu/gate.h"
#include "engine/kernels/cpu/num.h"

static float sum_squares(const float *x, uint32_t n) {
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    return num_sum16(lane);
}

static void add_scaled(float *h, const float *y, const float *w, float scale, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) h[i] += w ? y[i] * scale * w[i] : y[i];
}

/* Nearest integer, ties to even, |x| < 2^22: the sum has no room for a fraction. */
static int32_t round_even(float x) {
    return (int32_t)((x + 0x1.8p23f) - 0x1.8p23f);
}

static void quantize(const float v[Q8_BLOCK], struct q8_block *b) {
    uint32_t amax = 0;
    for (int i = 0; i < Q8_BLOCK; i++) {
        const uint32_t mag = f32_bits(v[i]) & 0x7fffffff;
        if (mag > amax) amax = mag;
    }
    float to_quant;
    b->d = q8_scale(amax, &to_quant);
    b->sum16[0] = b->sum16[1] = 0;
    for (int i = 0; i < Q8_BLOCK; i++) {
        b->q[i] = to_quant == 0.0f ? 0 : (int8_t)round_even(v[i] * to_quant);
        b->sum16[i / 16] += b->q[i];
    }
}

static void pack_row(const struct act_row *row, uint32_t col, const float *x, const float *w, float scale, uint32_t n) {
    for (uint32_t i = 0; i < n; i += Q8_BLOCK) {
        float v[Q8_BLOCK] = {0};
        for (uint32_t j = 0; j < Q8_BLOCK && i + j < n; j++) v[j] = w ? x[i + j] * scale * w[i + j] : x[i + j];
        if (row->q8) {
            struct q8_block b;
            quantize(v, &b);
            act_store_q8(row, (col + i) / Q8_BLOCK, &b);
        }
        if (row->f32) act_store_f32(row, col + i, v);
        if (row->bf16) {
            uint16_t half[Q8_BLOCK];
            for (int j = 0; j < Q8_BLOCK; j++) half[j] = bf16_from_f32(v[j]);
            act_store_bf16(row, col + i, half);
        }
    }
}

static void gate(enum activation f, float *g, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const float x = g[i];
        const float t = f == ACTIVATION_SILU ? -x : x * fmaf(x * x, GELU_NEG_2CA, GELU_NEG_2C);
        g[i] = x / (1.0f + num_expf(t)) * up[i];
    }
}

void vec_scalar_fill(struct cpu_isa *isa) {
    isa->sum_squares = sum_squares;
    isa->add_scaled = add_scaled;
    isa->pack_row = pack_row;
    isa->gate = gate;
}
