/* kernels_test.h - shared by the kernel tests: a seeded generator, random weights in file layout, open backends. */
#ifndef CHOIR_TESTS_KERNELS_TEST_H
#define CHOIR_TESTS_KERNELS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/dtype.h"
#include "engine/kernels/kernels.h"

/* ---- Random numbers: xorshift64*, the seed printed by the test that fails is its constant ---- */

struct rng {
    uint64_t s;
};

static inline uint64_t rng_u64(struct rng *r) {
    r->s ^= r->s >> 12;
    r->s ^= r->s << 25;
    r->s ^= r->s >> 27;
    return r->s * 0x2545f4914f6cdd1dull;
}

static inline uint32_t rng_below(struct rng *r, uint32_t n) {
    return (uint32_t)(rng_u64(r) >> 32) % n;
}

/* Uniform in [-1, 1). */
static inline float rng_unit(struct rng *r) {
    return (float)(int32_t)(rng_u64(r) >> 32) * 0x1p-31f;
}

/* Any finite float with an exponent in [e_min, e_max] (biased by 127). */
static inline float rng_float(struct rng *r, uint32_t e_min, uint32_t e_max) {
    const uint32_t bits = (uint32_t)rng_u64(r);
    return f32_from_bits((bits & 0x807fffff) | (e_min + rng_below(r, e_max - e_min + 1)) << 23);
}

/* ---- Activations: smooth values, or every kind of float that may turn up (no infinity, no NaN) ---- */

static inline void fill_smooth(struct rng *r, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = rng_unit(r) * (1.0f + 3.0f * (float)(i % 7 == 0));
}

static inline void fill_wild(struct rng *r, float *x, size_t n) {
    for (size_t i = 0; i < n; i += 32) {
        const uint32_t kind = rng_below(r, 8);
        for (size_t j = i; j < n && j < i + 32; j++) {
            switch (kind) {
            case 0:
                x[j] = 0.0f;
                break;
            case 1:
                x[j] = rng_float(r, 0, 2);
                break; /* denormals and their neighbours */
            case 2:
                x[j] = rng_float(r, 1, 190);
                break;
            case 3:
                x[j] = rng_below(r, 9) ? -0.0f : rng_float(r, 60, 140);
                break;
            case 4:
                x[j] = (float)((int)rng_below(r, 255) - 127) * 0.5f;
                break; /* ties */
            default:
                x[j] = rng_unit(r);
                break;
            }
        }
    }
}

/* ---- Weights in file layout ---- */

/* A finite fp16; wild: any, otherwise of the size that real scales have. */
static inline void put_f16(struct rng *r, uint8_t *p, bool wild) {
    const uint32_t exp = wild ? rng_below(r, 31) : 6 + rng_below(r, 4);
    const uint16_t h = (uint16_t)((rng_u64(r) & 0x83ff) | exp << 10);
    memcpy(p, &h, 2);
}

static inline void fill_block(struct rng *r, enum dtype t, uint8_t *b, bool wild) {
    const uint32_t bytes = dtype_block_bytes(t);
    for (uint32_t i = 0; i < bytes; i++) b[i] = (uint8_t)(rng_u64(r) >> 32);
    if (t == DT_F32) {
        const float f = wild ? rng_float(r, 0, 180) : rng_unit(r);
        memcpy(b, &f, 4);
    } else if (t == DT_F16) {
        put_f16(r, b, wild);
    } else if (t == DT_BF16) {
        const float f = wild ? rng_float(r, 0, 180) : rng_unit(r);
        const uint16_t h = (uint16_t)(f32_bits(f) >> 16);
        memcpy(b, &h, 2);
    } else if (t == DT_Q6_K) {
        put_f16(r, b + 208, wild);
    } else {
        put_f16(r, b, wild);
        if (t == DT_Q4_K || t == DT_Q5_K) put_f16(r, b + 2, wild);
    }
}

static inline uint8_t *weights_random(struct rng *r, enum dtype t, uint32_t n_rows, uint32_t n_cols, bool wild) {
    const size_t blocks = (size_t)n_rows * n_cols / dtype_block_len(t);
    uint8_t *w = malloc(blocks * dtype_block_bytes(t));
    assert_non_null(w);
    for (size_t i = 0; i < blocks; i++) fill_block(r, t, w + i * dtype_block_bytes(t), wild);
    return w;
}

static const enum dtype weight_types[] = {DT_F32,  DT_F16,  DT_BF16, DT_Q4_0, DT_Q5_0,
                                          DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
enum { WEIGHT_TYPES = 9 };

/* ---- Backends ---- */

/* NULL when the machine lacks it. */
static inline struct kernels *kernels_try(const char *isa, uint32_t n_threads) {
    struct err e = {0};
    const struct kernels_options o = {.n_threads = n_threads, .isa = isa};
    struct kernels *k = kernels_cpu_open(&o, &e);
    if (!k) print_message("[ SKIPPED PART ] %s\n", e.message);
    return k;
}

static inline struct weight *pack_or_die(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols,
                                         const void *src, const struct slices *s) {
    struct err e = {0};
    struct weight *w = k->weight_pack(k, t, n_rows, n_cols, src, dtype_row_bytes(t, n_cols), s, &e);
    if (!w) fail_msg("weight_pack: %s", e.message);
    return w;
}

static inline float *floats(size_t n) {
    float *p = aligned_alloc(64, round_up(n * sizeof(float), 64));
    assert_non_null(p);
    memset(p, 0, round_up(n * sizeof(float), 64));
    return p;
}

/* Bits equal; the message says where they are not. */
static inline void assert_same_bits(const float *a, const float *b, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++) {
        if (f32_bits(a[i]) != f32_bits(b[i]))
            fail_msg("%s: element %zu: %a != %a", what, i, (double)a[i], (double)b[i]);
    }
}

#endif
