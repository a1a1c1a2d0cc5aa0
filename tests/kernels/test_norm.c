/* test_norm.c - RMSNorm, residual adds and activation packing: one result for all levels, and the right one.
 *
 * Oracles: the scalar level for bits, double precision for values. What an act holds is read by its layout (cpu.h).
 */
#include "tests/kernels/kernels_test.h"

#include <math.h>

#include "engine/kernels/cpu/cpu.h"

enum { ALL = ACT_Q8 | ACT_F32 | ACT_BF16 };

static float act_f32(const struct act *a, uint32_t t, uint32_t i) {
    const struct act_row row = cpu_act_row(a, t);
    return row.f32[(size_t)i * row.nc + row.c];
}

/* The value that the int8 format stands for. */
static double act_q8(const struct act *a, uint32_t t, uint32_t i, float *d) {
    const struct act_row row = cpu_act_row(a, t);
    const uint8_t *block = row.q8 + (size_t)(i / 32) * Q8_BLOCK_BYTES * row.nc;
    memcpy(d, block + (8 * row.nc + row.c) * 4, 4);
    return (double)*d * (int8_t)block[(i % 32 / 4 * row.nc + row.c) * 4 + i % 4];
}

static float act_bf16(const struct act *a, uint32_t t, uint32_t i) {
    const struct act_row row = cpu_act_row(a, t);
    return f32_from_bits((uint32_t)row.bf16[(size_t)(i / 2) * row.nc * 2 + row.c * 2 + i % 2] << 16);
}

/* ---- Values ---- */

static void check_packed(const struct act *a, const float *want, uint32_t n_tokens, uint32_t n_cols) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t i = 0; i < n_cols; i++) {
            const float v = want[t * n_cols + i];
            float d;
            assert_true(act_f32(a, t, i) == v);
            assert_true(fabs(act_q8(a, t, i, &d) - v) <= 0.5001 * d);
            assert_true(fabsf(act_bf16(a, t, i) - v) <= fabsf(v) * 0x1p-8f);
        }
    }
}

/* The sums beside the quants are the sums of the quants. */
static void check_sums(const struct act *a, uint32_t n_tokens, uint32_t n_cols) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        const struct act_row row = cpu_act_row(a, t);
        for (uint32_t b = 0; b < n_cols / 32; b++) {
            const uint8_t *block = row.q8 + (size_t)b * Q8_BLOCK_BYTES * row.nc;
            const uint8_t *sums = row.q8_sums + (size_t)b * Q8_SUMS_BYTES * row.nc;
            int32_t half[2] = {0}, got[3];
            float d, neg_dsum;
            for (uint32_t i = 0; i < 32; i++) half[i / 16] -= (int8_t)block[(i / 4 * row.nc + row.c) * 4 + i % 4];
            memcpy(&d, block + (8 * row.nc + row.c) * 4, 4);
            memcpy(&got[0], block + (9 * row.nc + row.c) * 4, 4);
            memcpy(&neg_dsum, sums + row.c * 4, 4);
            memcpy(&got[1], sums + (row.nc + row.c) * 4, 4);
            memcpy(&got[2], sums + (2 * row.nc + row.c) * 4, 4);
            assert_int_equal(got[0], half[0] + half[1]);
            assert_int_equal(got[1], half[0]);
            assert_int_equal(got[2], half[1]);
            assert_true(neg_dsum == d * (float)got[0]);
        }
    }
}

static void test_pack_values(void **state) {
    (void)state;
    enum { N = 13, COLS = 96, STRIDE = 100 };
    struct kernels *k = kernels_try("auto", 2);
    struct rng r = {21};
    float *x = floats(N * STRIDE), *want = floats(N * COLS);
    fill_smooth(&r, x, N * STRIDE);
    for (int t = 0; t < N; t++) memcpy(want + t * COLS, x + t * STRIDE, COLS * sizeof(float));
    struct act *a = k->act_alloc(k, 32, 640, ALL);
    k->act_pack(k, x, STRIDE, N, COLS, a, ALL);
    check_packed(a, want, N, COLS);
    check_sums(a, N, COLS);
    k->act_free(k, a);
    k->close(k);
    free(x), free(want);
}

static double rms_scale(const float *x, uint32_t n, double eps) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return 1 / sqrt(sum / n + eps);
}

static void norm_case(struct kernels *k, uint32_t n_tokens, uint32_t n_cols) {
    struct rng r = {n_cols};
    float *x = floats((size_t)n_tokens * n_cols), *w = floats(n_cols);
    fill_smooth(&r, x, (size_t)n_tokens * n_cols);
    fill_smooth(&r, w, n_cols);
    struct act *a = k->act_alloc(k, n_tokens, n_cols, ALL);
    k->norm_pack(k, x, w, 1e-6f, n_tokens, n_cols, a, ALL);
    for (uint32_t t = 0; t < n_tokens; t++) {
        const double scale = rms_scale(x + (size_t)t * n_cols, n_cols, 1e-6);
        for (uint32_t i = 0; i < n_cols; i++) {
            const double want = x[(size_t)t * n_cols + i] * scale * w[i];
            /* 16 lanes of n/16 rounded terms, then a handful of operations */
            assert_true(fabs(act_f32(a, t, i) - want) <= fabs(want) * (n_cols / 16 + 12) * 0x1p-24);
        }
    }
    k->act_free(k, a);
    free(x), free(w);
}

static void test_norm_values(void **state) {
    (void)state;
    struct kernels *k = kernels_try("auto", 2);
    norm_case(k, 1, 640);
    norm_case(k, 9, 640);
    norm_case(k, 3, 2048);
    norm_case(k, 2, 1);
    norm_case(k, 2, 45);
    k->close(k);
}

/* h += rmsnorm(y) * post, act = rmsnorm(h) * next: equal to doing the parts one by one. */
static void test_residual_is_its_parts(void **state) {
    (void)state;
    enum { N = 10, COLS = 640 };
    struct kernels *k = kernels_try("auto", 2);
    struct rng r = {3};
    float *h = floats(N * COLS), *y = floats(N * COLS), *post = floats(COLS), *next = floats(COLS),
          *sum = floats(N * COLS);
    fill_smooth(&r, h, N * COLS), fill_smooth(&r, y, N * COLS), fill_smooth(&r, post, COLS),
        fill_smooth(&r, next, COLS);
    struct act *normed = k->act_alloc(k, N, COLS, ALL), *a = k->act_alloc(k, N, COLS, ALL),
               *b = k->act_alloc(k, N, COLS, ALL);
    k->norm_pack(k, y, post, 1e-5f, N, COLS, normed, ACT_F32);
    for (uint32_t t = 0; t < N; t++) {
        for (uint32_t i = 0; i < COLS; i++) sum[t * COLS + i] = h[t * COLS + i] + act_f32(normed, t, i);
    }
    k->norm_pack(k, sum, next, 1e-5f, N, COLS, a, ALL);
    k->residual_norm_pack(k, h, y, post, next, 1e-5f, N, COLS, b, ALL);
    assert_same_bits(h, sum, N * COLS, "residual");
    assert_memory_equal(a->q8, b->q8, a->bytes - round_up(sizeof *a, 64));
    /* Without norms: a plain sum, and nothing packed. */
    for (uint32_t i = 0; i < N * COLS; i++) sum[i] = h[i] + y[i];
    k->residual_norm_pack(k, h, y, NULL, NULL, 1e-5f, N, COLS, NULL, 0);
    assert_same_bits(h, sum, N * COLS, "plain residual");
    k->act_free(k, normed), k->act_free(k, a), k->act_free(k, b);
    k->close(k);
    free(h), free(y), free(post), free(next), free(sum);
}

/* ---- Poison and tiny values ---- */

static void test_not_a_number_stays_visible(void **state) {
    (void)state;
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < 3; i++) {
        struct kernels *k = kernels_try(isas[i], 1);
        if (!k) continue;
        float *x = floats(96), d;
        for (int j = 0; j < 96; j++) x[j] = 1.0f;
        x[3] = NAN, x[40] = -INFINITY;
        struct act *a = k->act_alloc(k, 1, 96, ACT_Q8);
        k->act_pack(k, x, 96, 1, 96, a, ACT_Q8);
        assert_true(isnan(act_q8(a, 0, 0, &d)) && isnan(d));
        assert_true(isnan(act_q8(a, 0, 32, &d)) && isnan(d));
        assert_true(act_q8(a, 0, 64, &d) == 127 * (double)d);
        for (int j = 0; j < 32; j++) x[j] = 0x1p-125f, x[32 + j] = 0x1p-140f; /* no scale can hold them: zero */
        k->act_pack(k, x, 96, 1, 96, a, ACT_Q8);
        assert_true(act_q8(a, 0, 0, &d) == 0 && d == 0.0f && act_q8(a, 0, 32, &d) == 0 && d == 0.0f);
        k->act_free(k, a);
        k->close(k);
        free(x);
    }
}

/* ---- Levels ---- */

static void run_all(struct kernels *k, const float *x, const float *y, const float *w, float *h, uint32_t n_tokens,
                    uint32_t n_cols, struct act *a[3]) {
    for (int i = 0; i < 3; i++) a[i] = k->act_alloc(k, n_tokens, n_cols, ALL);
    k->act_pack(k, x, n_cols, n_tokens, n_cols, a[0], ALL);
    k->norm_pack(k, x, w, 1e-6f, n_tokens, n_cols, a[1], ALL);
    memcpy(h, x, (size_t)n_tokens * n_cols * sizeof(float));
    k->residual_norm_pack(k, h, y, w, w, 1e-6f, n_tokens, n_cols, a[2], ALL);
}

static void levels_case(const char *isa, uint32_t n_tokens, uint32_t n_cols, bool wild) {
    struct kernels *ref = kernels_try("scalar", 2), *k = kernels_try(isa, 3);
    if (k) {
        const size_t n = (size_t)n_tokens * n_cols;
        struct rng r = {n};
        float *x = floats(n), *y = floats(n), *w = floats(n_cols), *h0 = floats(n), *h1 = floats(n);
        fill_smooth(&r, w, n_cols), fill_smooth(&r, y, n);
        if (wild)
            fill_wild(&r, x, n);
        else
            fill_smooth(&r, x, n);
        for (size_t i = 0; i < n; i++) x[i] = fabsf(x[i]) > 1e18f ? 1.0f : x[i]; /* squares stay finite */
        struct act *a[3], *b[3];
        run_all(ref, x, y, w, h0, n_tokens, n_cols, a);
        run_all(k, x, y, w, h1, n_tokens, n_cols, b);
        assert_same_bits(h1, h0, n, isa);
        for (int i = 0; i < 3; i++) {
            assert_memory_equal(b[i]->q8, a[i]->q8, a[i]->bytes - round_up(sizeof *a[i], 64));
            ref->act_free(ref, a[i]), k->act_free(k, b[i]);
        }
        free(x), free(y), free(w), free(h0), free(h1);
        k->close(k);
    }
    ref->close(ref);
}

static void test_levels_equal(void **state) {
    (void)state;
    static const char *const isas[] = {"avx2", "avx512"};
    static const uint32_t cols[] = {1, 7, 16, 31, 33, 640, 1000};
    for (size_t i = 0; i < 2; i++) {
        for (size_t j = 0; j < ARRAY_COUNT(cols); j++) {
            levels_case(isas[i], 1, cols[j], false);
            levels_case(isas[i], 21, cols[j], true);
        }
    }
}

/* A row's packed values do not depend on its neighbours. */
static void test_rows_are_independent(void **state) {
    (void)state;
    enum { N = 27, COLS = 640 };
    struct kernels *k = kernels_try("auto", 2);
    struct rng r = {6};
    float *x = floats(N * COLS), *w = floats(COLS);
    fill_wild(&r, x, N * COLS), fill_smooth(&r, w, COLS);
    struct act *all = k->act_alloc(k, N, COLS, ALL), *one = k->act_alloc(k, 1, COLS, ALL);
    for (int i = 0; i < N * COLS; i++) x[i] = fabsf(x[i]) > 1e18f ? 1.0f : x[i];
    k->norm_pack(k, x, w, 1e-6f, N, COLS, all, ALL);
    for (uint32_t t = 0; t < N; t++) {
        k->norm_pack(k, x + t * COLS, w, 1e-6f, 1, COLS, one, ALL);
        for (uint32_t i = 0; i < COLS; i++) {
            float da, db;
            const double qa = act_q8(all, t, i, &da), qb = act_q8(one, 0, i, &db);
            assert_true(f32_bits(act_f32(all, t, i)) == f32_bits(act_f32(one, 0, i)) && qa == qb && da == db);
            assert_true(f32_bits(act_bf16(all, t, i)) == f32_bits(act_bf16(one, 0, i)));
        }
    }
    k->act_free(k, all), k->act_free(k, one);
    k->close(k);
    free(x), free(w);
}

static void test_gather_rows(void **state) {
    (void)state;
    struct kernels *k = kernels_try("auto", 1);
    static const float x[] = {0, 1, 10, 11, 20, 21};
    static const uint32_t rows[] = {2, 0, 2};
    static const float want[] = {20, 21, 0, 1, 20, 21};
    float y[6];
    k->gather_rows(k, x, rows, 3, 2, y);
    assert_memory_equal(y, want, sizeof want);
    k->close(k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_values),           cmocka_unit_test(test_norm_values),
        cmocka_unit_test(test_residual_is_its_parts), cmocka_unit_test(test_not_a_number_stays_visible),
        cmocka_unit_test(test_levels_equal),          cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_gather_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
