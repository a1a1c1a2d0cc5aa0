/* dtype.h - private to engine/kernels: reading the fields of GGUF blocks. */
#ifndef CHOIR_KERNELS_DTYPE_H
#define CHOIR_KERNELS_DTYPE_H

#include <string.h>

#include "engine/kernels/kernels.h"

static inline uint32_t u32_load(const void *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline void u32_store(void *p, uint32_t v) {
    memcpy(p, &v, 4);
}

static inline uint16_t u16_load(const void *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static inline float f32_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* IEEE half to single: exact, denormals included, NaN payloads kept. Integer arithmetic only, so that the
 * flush-to-zero mode does not touch it. */
static inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31) return f32_from_bits(sign | 0x7f800000 | man << 13);
    if (exp == 0) {
        if (man == 0) return f32_from_bits(sign);
        const uint32_t shift = (uint32_t)__builtin_clz(man) - 21; /* brings the leading one to bit 10 */
        man = man << shift & 0x3ff;
        exp = 1 - shift; /* wraps below zero; the bias below brings it back */
    }
    return f32_from_bits(sign | (exp + 112) << 23 | man << 13);
}

static inline float f16_load(const void *p) {
    return f16_to_f32(u16_load(p));
}
static inline float bf16_load(const void *p) {
    return f32_from_bits((uint32_t)u16_load(p) << 16);
}

/* Single to bfloat16, nearest even; denormals become zero, NaN stays a (quiet) NaN. */
static inline uint16_t bf16_from_f32(float f) {
    const uint32_t u = f32_bits(f), mag = u & 0x7fffffff;
    if (mag > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    if (mag < 0x00800000) return (uint16_t)(u >> 16 & 0x8000);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Scale and minimum (6 bits each) of sub-block s out of the 12 packed bytes of Q4_K and Q5_K. */
static inline void k_scale_min(const uint8_t *p, uint32_t s, uint8_t *scale, uint8_t *min) {
    if (s < 4) {
        *scale = p[s] & 63;
        *min = p[s + 4] & 63;
    } else {
        *scale = (uint8_t)((p[s + 4] & 15) | p[s - 4] >> 6 << 4);
        *min = (uint8_t)(p[s + 4] >> 4 | p[s] >> 6 << 4);
    }
}

/* Columns of a slice come in multiples of this: a block, and for BF16 a pair. */
uint32_t dtype_slice_unit(enum dtype t);

#endif
