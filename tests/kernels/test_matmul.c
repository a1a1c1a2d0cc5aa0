/* test_matmul.c - matrix products: one result for all instruction sets, batch sizes, thread counts and cuts.
 *
 * The oracles: the scalar kernels (the definition) for bits; a double-precision product of the dequantized
 * weights (dtype_to_f32, itself checked against gguf-py in test_dtype.c) for accuracy.
 */
#include "tests/kernels/kernels_test.h"

#include <math.h>

#include "engine/kernels/cpu/cpu.h"

static const uint32_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 64, 256};
enum { TOKENS_MAX = 256 };

/* The smallest number of columns a type takes, and for floats one that is odd. */
static uint32_t cols_minimal(enum dtype t) {
    return dtype_block_len(t) == 1 ? 3 : dtype_block_len(t);
}

static void product(struct kernels *k, const struct weight *w, const float *x, uint32_t n_tokens, float *y) {
    struct act *a = k->act_alloc(k, n_tokens, w->n_cols, k->weight_act_format(w));
    assert_non_null(a);
    k->act_pack(k, x, w->n_cols, n_tokens, w->n_cols, a, k->weight_act_format(w));
    const struct matmul m = {.w = w, .y = y, .y_stride = w->n_rows};
    k->matmul(k, &m, 1, a, n_tokens);
    k->act_free(k, a);
}

/* ---- Instruction sets ---- */

struct shape_case {
    uint32_t n_rows, n_cols;
    bool wild, sliced;
};

static void isa_case(struct kernels *ref, struct kernels *k, enum dtype t, struct shape_case s) {
    struct rng r = {0x1234567 + t};
    uint8_t *src = weights_random(&r, t, s.n_rows, s.n_cols, s.wild);
    const struct slices cut = s.sliced ? slices_canonical(t, s.n_cols) : slices_single(s.n_cols);
    struct weight *wr = pack_or_die(ref, t, s.n_rows, s.n_cols, src, &cut);
    struct weight *wk = pack_or_die(k, t, s.n_rows, s.n_cols, src, &cut);
    float *x = floats((size_t)TOKENS_MAX * s.n_cols);
    float *yr = floats((size_t)TOKENS_MAX * s.n_rows), *yk = floats((size_t)TOKENS_MAX * s.n_rows);
    if (s.wild)
        fill_wild(&r, x, (size_t)TOKENS_MAX * s.n_cols);
    else
        fill_smooth(&r, x, (size_t)TOKENS_MAX * s.n_cols);
    for (size_t i = 0; i < ARRAY_COUNT(token_counts); i++) {
        const uint32_t n = token_counts[i];
        char what[128];
        snprintf(what, sizeof what, "%s %ux%u wild=%d sliced=%d tokens=%u %s", dtype_name(t), s.n_rows, s.n_cols,
                 s.wild, s.sliced, n, k->isa);
        product(ref, wr, x, n, yr);
        product(k, wk, x, n, yk);
        assert_same_bits(yk, yr, (size_t)n * s.n_rows, what);
    }
    ref->weight_free(ref, wr);
    k->weight_free(k, wk);
    free(src), free(x), free(yr), free(yk);
}

static void isa_equals_scalar(const char *isa) {
    struct kernels *ref = kernels_try("scalar", 2), *k = kernels_try(isa, 2);
    for (size_t i = 0; k && i < WEIGHT_TYPES; i++) {
        const enum dtype t = weight_types[i];
        isa_case(ref, k, t, (struct shape_case){.n_rows = 1, .n_cols = cols_minimal(t)});
        isa_case(ref, k, t, (struct shape_case){.n_rows = 37, .n_cols = 512, .wild = true});
        isa_case(ref, k, t, (struct shape_case){.n_rows = 16, .n_cols = 2048, .wild = true, .sliced = true});
        isa_case(ref, k, t,
                 (struct shape_case){.n_rows = 33, .n_cols = 768, .sliced = true}); /* empty slices of K-quants */
    }
    if (k) k->close(k);
    ref->close(ref);
}

static void test_avx2_equals_scalar(void **state) {
    (void)state, isa_equals_scalar("avx2");
}
static void test_avx512_equals_scalar(void **state) {
    (void)state, isa_equals_scalar("avx512");
}

/* Machines with VNNI but without vdpbf16ps compute its bits by two fmas. */
static void test_bf16_without_vdpbf16ps(void **state) {
    (void)state;
    struct kernels *ref = kernels_try("scalar", 2), *k = kernels_try("avx512", 2);
    if (k) {
        matmul_avx512_fill(&cpu_of(k)->isa);
        isa_case(ref, k, DT_BF16, (struct shape_case){.n_rows = 37, .n_cols = 511, .wild = true});
        isa_case(ref, k, DT_BF16, (struct shape_case){.n_rows = 16, .n_cols = 1000, .wild = true, .sliced = true});
        k->close(k);
    }
    ref->close(ref);
}

/* ---- Batch, threads ---- */

/* Row i in a batch has the bits that it has alone. */
static void test_row_independence(void **state) {
    (void)state;
    enum { ROWS = 48, COLS = 512 };
    struct kernels *k = kernels_try("auto", 2);
    for (size_t i = 0; i < WEIGHT_TYPES; i++) {
        const enum dtype t = weight_types[i];
        struct rng r = {77 + t};
        uint8_t *src = weights_random(&r, t, ROWS, COLS, false);
        const struct slices cut = slices_canonical(t, COLS);
        struct weight *w = pack_or_die(k, t, ROWS, COLS, src, &cut);
        float *x = floats((size_t)TOKENS_MAX * COLS), *alone = floats((size_t)TOKENS_MAX * ROWS);
        float *y = floats((size_t)TOKENS_MAX * ROWS);
        fill_wild(&r, x, (size_t)TOKENS_MAX * COLS);
        for (uint32_t n = 0; n < TOKENS_MAX; n++) product(k, w, x + (size_t)n * COLS, 1, alone + (size_t)n * ROWS);
        for (size_t j = 0; j < ARRAY_COUNT(token_counts); j++) {
            const uint32_t n = token_counts[j], first = rng_below(&r, TOKENS_MAX - n + 1);
            product(k, w, x + (size_t)first * COLS, n, y);
            assert_same_bits(y, alone + (size_t)first * ROWS, (size_t)n * ROWS, dtype_name(t));
        }
        k->weight_free(k, w);
        free(src), free(x), free(alone), free(y);
    }
    k->close(k);
}

/* Several matrices in one call, on any number of threads. */
static void test_threads_equal(void **state) {
    (void)state;
    static const uint32_t threads[] = {1, 2, 4, 7};
    enum { N = 19, COLS = 640, MATRICES = 18 };
    float *y[ARRAY_COUNT(threads)][MATRICES];
    struct rng r = {5};
    uint8_t *src = weights_random(&r, DT_Q5_0, 1024, COLS, false);
    float *x = floats((size_t)N * COLS);
    fill_smooth(&r, x, (size_t)N * COLS);
    const struct slices cut = slices_single(COLS);
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
        struct kernels *k = kernels_try("auto", threads[i]);
        struct weight *w[MATRICES];
        struct matmul m[MATRICES];
        for (uint32_t j = 0; j < MATRICES; j++) {
            const uint32_t rows = 5 + j * 59;
            w[j] = pack_or_die(k, DT_Q5_0, rows, COLS, src, &cut);
            y[i][j] = floats((size_t)N * rows);
            m[j] = (struct matmul){.w = w[j], .y = y[i][j], .y_stride = rows};
        }
        struct act *a = k->act_alloc(k, N, COLS, ACT_Q8);
        k->act_pack(k, x, COLS, N, COLS, a, ACT_Q8);
        k->matmul(k, m, MATRICES, a, N);
        for (uint32_t j = 0; j < MATRICES; j++) {
            assert_same_bits(y[i][j], y[0][j], (size_t)N * w[j]->n_rows, "threads");
            k->weight_free(k, w[j]);
        }
        k->act_free(k, a);
        k->close(k);
    }
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
        for (uint32_t j = 0; j < MATRICES; j++) free(y[i][j]);
    }
    free(src), free(x);
}

/* ---- Slices ---- */

/* The part of a matrix that a rank with slices [s0, s1) holds, packed on its own. */
static struct weight *shard_pack(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols, const uint8_t *src,
                                 const struct slices *full, uint32_t s0, uint32_t s1) {
    struct slices own = {.count = s1 - s0};
    for (uint32_t s = s0; s <= s1; s++) own.edge[s - s0] = full->edge[s] - full->edge[s0];
    struct err e = {0};
    return k->weight_pack(k, t, n_rows, own.edge[own.count], src + dtype_row_bytes(t, full->edge[s0]),
                          dtype_row_bytes(t, n_cols), &own, &e);
}

/* Cutting a matrix into `degree` ranks and adding their results in tree order changes nothing. */
static void tensor_parallel_case(struct kernels *k, enum dtype t, uint32_t n_cols, uint32_t degree) {
    enum { ROWS = 33, N = 9 };
    struct rng r = {99 + t + degree};
    uint8_t *src = weights_random(&r, t, ROWS, n_cols, false);
    const struct slices full = slices_canonical(t, n_cols);
    struct weight *w = pack_or_die(k, t, ROWS, n_cols, src, &full);
    float *x = floats((size_t)N * n_cols), *y = floats(N * ROWS), *part[SLICE_COUNT];
    fill_smooth(&r, x, (size_t)N * n_cols);
    product(k, w, x, N, y);
    for (uint32_t rank = 0; rank < degree; rank++) {
        const uint32_t s0 = rank * SLICE_COUNT / degree, s1 = (rank + 1) * SLICE_COUNT / degree;
        const uint32_t col0 = full.edge[s0], cols = full.edge[s1] - col0;
        part[rank] = floats(N * ROWS);
        if (cols == 0) continue; /* empty slices: +0 */
        struct weight *shard = shard_pack(k, t, ROWS, n_cols, src, &full, s0, s1);
        assert_non_null(shard);
        float *own = floats((size_t)N * cols);
        for (uint32_t i = 0; i < N; i++)
            memcpy(own + (size_t)i * cols, x + (size_t)i * n_cols + col0, cols * sizeof(float));
        product(k, shard, own, N, part[rank]);
        k->weight_free(k, shard);
        free(own);
    }
    for (uint32_t n = degree; n > 1; n /= 2) {
        for (uint32_t i = 0; i < n / 2; i++) {
            for (uint32_t j = 0; j < N * ROWS; j++) part[i][j] = part[2 * i][j] + part[2 * i + 1][j];
        }
    }
    assert_same_bits(part[0], y, N * ROWS, dtype_name(t));
    for (uint32_t rank = 0; rank < degree; rank++) free(part[rank]);
    k->weight_free(k, w);
    free(src), free(x), free(y);
}

static void test_tensor_parallel(void **state) {
    (void)state;
    struct kernels *k = kernels_try("auto", 2);
    for (size_t i = 0; i < WEIGHT_TYPES; i++) {
        for (uint32_t degree = 2; degree <= 8; degree *= 2) {
            tensor_parallel_case(k, weight_types[i], 2048, degree);
            tensor_parallel_case(k, weight_types[i], 1280, degree); /* K-quants: 5 blocks in 8 slices */
        }
    }
    k->close(k);
}

/* ---- Accuracy ---- */

/* The error allowed by rounding: each x to int8 (half a step of amax / 127) or bf16, and fp32 sums of n terms. */
static double error_bound(enum dtype t, const float *w, const float *x, uint32_t n_cols) {
    double bound = 0, magnitude = 0;
    const bool q8 = dtype_block_len(t) > 1;
    for (uint32_t b = 0; b < n_cols; b += 32) {
        double amax = 0, wmax = 0, wsum = 0;
        for (uint32_t i = b; i < b + 32; i++) {
            amax = fmax(amax, fabs(x[i]));
            wmax = fmax(wmax, fabs(w[i]));
            wsum += fabs(w[i]);
            if (t == DT_BF16) bound += fabs((double)w[i] * x[i]) * 0x1p-8;
        }
        if (q8) bound += wsum * amax / 127 * 0.5001;
        magnitude += 32 * wmax * amax;
    }
    const double n_terms = q8 ? n_cols / 16.0 + 8 : n_cols + 8;
    return bound + magnitude * n_terms * 0x1p-24 * 4;
}

static void test_accuracy(void **state) {
    (void)state;
    enum { ROWS = 24, COLS = 768, N = 5 };
    struct kernels *k = kernels_try("auto", 1);
    for (size_t i = 0; i < WEIGHT_TYPES; i++) {
        const enum dtype t = weight_types[i];
        struct rng r = {4242 + t};
        uint8_t *src = weights_random(&r, t, ROWS, COLS, false);
        float *dense = floats(ROWS * COLS), *x = floats(N * COLS), *y = floats(N * ROWS);
        const struct slices cut = slices_canonical(t, COLS);
        struct weight *w = pack_or_die(k, t, ROWS, COLS, src, &cut);
        dtype_to_f32(t, src, dense, ROWS * COLS);
        fill_smooth(&r, x, N * COLS);
        product(k, w, x, N, y);
        for (uint32_t n = 0; n < N; n++) {
            for (uint32_t row = 0; row < ROWS; row++) {
                double ref = 0;
                for (uint32_t c = 0; c < COLS; c++) ref += (double)dense[row * COLS + c] * x[n * COLS + c];
                const double bound = error_bound(t, dense + row * COLS, x + n * COLS, COLS);
                const double error = fabs(y[n * ROWS + row] - ref);
                if (error > bound) fail_msg("%s: |%g - %g| > %g", dtype_name(t), y[n * ROWS + row], ref, bound);
            }
        }
        k->weight_free(k, w);
        free(src), free(dense), free(x), free(y);
    }
    k->close(k);
}

/* ---- Gate and up ---- */

static size_t act_bytes(const struct act *a) {
    return a->bytes - round_up(sizeof *a, 64);
}

static struct act *gated(struct kernels *k, enum dtype t, uint32_t n_ff, uint32_t n_cols, const uint8_t *gate,
                         const uint8_t *up, enum activation f, const float *x, uint32_t n_tokens) {
    const struct slices cut = slices_single(n_cols);
    struct weight *wg = pack_or_die(k, t, n_ff, n_cols, gate, &cut), *wu = pack_or_die(k, t, n_ff, n_cols, up, &cut);
    struct act *a = k->act_alloc(k, n_tokens, n_cols, k->weight_act_format(wg));
    struct act *out = k->act_alloc(k, n_tokens, n_ff, ACT_Q8 | ACT_F32 | ACT_BF16);
    k->act_pack(k, x, n_cols, n_tokens, n_cols, a, k->weight_act_format(wg));
    k->matmul_gated(k, wg, wu, f, a, n_tokens, out, ACT_Q8 | ACT_F32 | ACT_BF16);
    k->act_free(k, a);
    k->weight_free(k, wg);
    k->weight_free(k, wu);
    return out;
}

/* Column i of row t in an fp32 act, as the layout in cpu.h has it. */
static float act_f32(const struct act *a, uint32_t t, uint32_t i) {
    const struct act_row row = cpu_act_row(a, t);
    return row.f32[(size_t)i * row.nc + row.c];
}

static double activation_exact(enum activation f, double x) {
    if (f == ACTIVATION_SILU) return x / (1 + exp(-x));
    /* 0.5 x (1 + tanh u), written without its cancellation */
    return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

static void gated_case(enum dtype t, uint32_t n_ff, uint32_t n_cols, enum activation f, uint32_t n_tokens) {
    struct rng r = {31337 + n_ff};
    uint8_t *wg = weights_random(&r, t, n_ff, n_cols, false), *wu = weights_random(&r, t, n_ff, n_cols, false);
    float *x = floats((size_t)n_tokens * n_cols), *g = floats((size_t)n_tokens * n_ff),
          *u = floats((size_t)n_tokens * n_ff);
    fill_smooth(&r, x, (size_t)n_tokens * n_cols);
    struct kernels *ref = kernels_try("scalar", 2);
    struct act *expected = gated(ref, t, n_ff, n_cols, wg, wu, f, x, n_tokens);
    const struct slices cut = slices_single(n_cols);
    struct weight *pg = pack_or_die(ref, t, n_ff, n_cols, wg, &cut), *pu = pack_or_die(ref, t, n_ff, n_cols, wu, &cut);
    product(ref, pg, x, n_tokens, g);
    product(ref, pu, x, n_tokens, u);
    for (uint32_t i = 0; i < n_tokens; i++) {
        for (uint32_t j = 0; j < n_ff; j++) {
            const double want = activation_exact(f, g[i * n_ff + j]) * u[i * n_ff + j];
            /* exp(t) carries the rounding of t, |t| < 89, so 89 * 2^-23 */
            assert_true(fabs(act_f32(expected, i, j) - want) <= 2e-5 * fabs(want) + 1e-30);
        }
    }
    static const char *const isas[] = {"avx2", "avx512"};
    for (size_t i = 0; i < 2; i++) {
        struct kernels *k = kernels_try(isas[i], 3);
        if (!k) continue;
        struct act *out = gated(k, t, n_ff, n_cols, wg, wu, f, x, n_tokens);
        assert_memory_equal(out->q8, expected->q8, act_bytes(expected));
        k->act_free(k, out);
        k->close(k);
    }
    ref->weight_free(ref, pg), ref->weight_free(ref, pu), ref->act_free(ref, expected), ref->close(ref);
    free(wg), free(wu), free(x), free(g), free(u);
}

static void test_gated(void **state) {
    (void)state;
    gated_case(DT_Q5_0, 2048, 640, ACTIVATION_GELU_TANH, 9);
    gated_case(DT_Q4_K, 96, 256, ACTIVATION_SILU, 17);
    gated_case(DT_F32, 41, 7, ACTIVATION_SILU, 3); /* rows that are no whole blocks */
    gated_case(DT_BF16, 17, 33, ACTIVATION_GELU_TANH, 8);
}

/* ---- Embedding, shapes ---- */

static void test_embed_equals_dequantized(void **state) {
    (void)state;
    enum { ROWS = 50, COLS = 512 };
    struct kernels *k = kernels_try("auto", 2);
    static const int32_t ids[] = {0, 49, 15, 16, 17, 3, 3};
    for (size_t i = 0; i < WEIGHT_TYPES; i++) {
        const enum dtype t = weight_types[i];
        struct rng r = {8 + t};
        uint8_t *src = weights_random(&r, t, ROWS, COLS, false);
        const struct slices cut = slices_single(COLS);
        struct weight *w = pack_or_die(k, t, ROWS, COLS, src, &cut);
        float *dense = floats(ROWS * COLS), *y = floats(ARRAY_COUNT(ids) * COLS);
        dtype_to_f32(t, src, dense, ROWS * COLS);
        k->embed(k, w, ids, ARRAY_COUNT(ids), 1.0f, y);
        for (size_t j = 0; j < ARRAY_COUNT(ids); j++) {
            assert_same_bits(y + j * COLS, dense + ids[j] * COLS, COLS, dtype_name(t));
        }
        k->embed(k, w, ids, ARRAY_COUNT(ids), 25.25f, y);
        for (size_t j = 0; j < COLS; j++) assert_true(y[COLS + j] == dense[49 * COLS + j] * 25.25f);
        k->weight_free(k, w);
        free(src), free(dense), free(y);
    }
    k->close(k);
}

static void test_bad_shapes_are_refused(void **state) {
    (void)state;
    struct kernels *k = kernels_try("auto", 1);
    static const uint8_t src[1024];
    struct slices s = slices_single(32);
    struct err e = {0};
    assert_null(k->weight_pack(k, DT_Q8_0, 0, 32, src, 34, &s, &e));
    assert_null(k->weight_pack(k, DT_Q8_0, 1, 33, src, 34, &s, &e));
    assert_null(k->weight_pack(k, DT_Q8_0, 1, 32, src, 33, &s, &e));
    assert_null(k->weight_pack(k, DT_I8, 1, 32, src, 32, &s, &e));
    assert_null(k->weight_pack(k, DT_F32, 1, UINT32_MAX, src, SIZE_MAX, &s, &e));
    s = (struct slices){.count = 2, .edge = {0, 16, 32}};
    assert_null(k->weight_pack(k, DT_Q8_0, 1, 32, src, 34, &s, &e)); /* a slice cuts a block */
    s = (struct slices){.count = 3, .edge = {0, 0, 0, 32}};
    assert_null(k->weight_pack(k, DT_Q8_0, 1, 32, src, 34, &s, &e));
    assert_int_equal(e.code, ERR_LOAD);
    assert_null(kernels_cpu_open(&(struct kernels_options){.isa = "sse9"}, &e));
    k->close(k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_avx2_equals_scalar),
        cmocka_unit_test(test_avx512_equals_scalar),
        cmocka_unit_test(test_bf16_without_vdpbf16ps),
        cmocka_unit_test(test_row_independence),
        cmocka_unit_test(test_threads_equal),
        cmocka_unit_test(test_tensor_parallel),
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_gated),
        cmocka_unit_test(test_embed_equals_dequantized),
        cmocka_unit_test(test_bad_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
