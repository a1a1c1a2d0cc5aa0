/* test_qkv_post.c - rotary tables, norms, rotation, and K/V in their storage types: against double arithmetic, and
 * bit for bit across instruction sets, chunks and threads.
 */
#include "engine/kernels/cpu/kv_layout.h"
#include "kv_world.h"

static const enum dtype kv_types[] = {DT_F32, DT_F16, DT_BF16, DT_I8};

/* ---- Storage types ---- */

static void f16_conversion_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint64_t u = 0; u < 1ull << 32; u += 409) {
        float x = f32_from_bits((uint32_t)u);
        if (isnan(x)) {
            assert_int_equal(kv_f16_of(x) & 0x7e00, 0x7e00);
            continue;
        }
        _Float16 h = (_Float16)x;
        uint16_t want;
        memcpy(&want, &h, sizeof want);
        if (kv_f16_of(x) != want) fail_msg("%a: %04x, not %04x", (double)x, kv_f16_of(x), want);
    }
    for (uint32_t i = 0; i < 1u << 16; i++) { /* all ties and all values */
        uint16_t bits = (uint16_t)i;
        _Float16 h;
        memcpy(&h, &bits, sizeof h);
        if (isnan((float)h)) continue;
        float x = kv_f16_to_f32(bits);
        assert_true(f32_bits(x) == f32_bits((float)h));
        assert_int_equal(kv_f16_of(x), bits);
        if ((bits & 0x7fff) >= 0x7bff) continue;
        uint16_t next = (uint16_t)(bits + 1);
        float tie = (x + kv_f16_to_f32(next)) / 2;
        assert_int_equal(kv_f16_of(tie), bits & 1 ? next : bits);
    }
}

static void int8_storage_is_within_half_a_step(void **state) {
    (void)state;
    struct rng r = {5};
    for (int n = 0; n < 2000; n++) {
        float x[64], amax = 0;
        int8_t q[64 * 3];
        for (int i = 0; i < 64; i++) {
            x[i] = rng_unit(&r) * ldexpf(1.0f, (int)rng_below(&r, 40) - 20);
            amax = fmaxf(amax, fabsf(x[i]));
        }
        float scale = kv_quantize_i8(x, 64, q, 3);
        assert_true(fabsf(scale * 127 - amax) <= amax * 1e-6f);
        for (int i = 0; i < 64; i++) assert_true(fabs((double)q[3 * i] * scale - x[i]) <= scale * 0.50001);
    }
    float x[2] = {0, -0.0f};
    int8_t q[2] = {7, 7};
    assert_true(kv_quantize_i8(x, 2, q, 1) == 0.0f && q[0] == 0 && q[1] == 0);
    x[1] = 1e-38f;
    assert_true(kv_quantize_i8(x, 2, q, 1) == 0.0f && q[1] == 0);
    x[1] = INFINITY;
    assert_true(isnan(kv_quantize_i8(x, 2, q, 1)));
    x[0] = NAN;
    x[1] = 3.0f;
    assert_true(isnan(kv_quantize_i8(x, 2, q, 1)));
}

/* ---- Rotary tables ---- */

static void rope_tables_are_the_rounded_cosines_on_every_level(void **state) {
    (void)state;
    const char *const names[] = {"scalar", "avx2", "avx512"};
    enum { N = 70, HALF = 35 };
    uint32_t positions[N];
    double inv_freq[HALF];
    for (uint32_t i = 0; i < N; i++) positions[i] = i < 40 ? i : 1000003u * (i - 39);
    for (uint32_t i = 0; i < HALF; i++) inv_freq[i] = num_pow(10000.0, -(double)i / HALF);
    float *first[2] = {NULL, NULL};
    for (uint32_t l = 0; l < 3; l++) {
        struct kernels *k = kernels_try(names[l], 2);
        if (!k) continue;
        float *cos = floats(N * HALF), *sin = floats(N * HALF);
        k->rope_table(k, positions, N, inv_freq, HALF, 1.25f, cos, sin);
        for (uint32_t t = 0; t < N; t++) {
            for (uint32_t i = 0; i < HALF; i++) {
                long double angle = (long double)(positions[t] * inv_freq[i]);
                assert_true(fabsl(cos[t * HALF + i] - 1.25L * cosl(angle)) < 1.5e-7L);
                assert_true(fabsl(sin[t * HALF + i] - 1.25L * sinl(angle)) < 1.5e-7L);
            }
        }
        if (first[0]) {
            assert_same_bits(first[0], cos, N * HALF, names[l]);
            assert_same_bits(first[1], sin, N * HALF, names[l]);
            free(cos);
            free(sin);
        } else {
            first[0] = cos;
            first[1] = sin;
        }
        k->close(k);
    }
    free(first[0]);
    free(first[1]);
}

/* ---- Rows ---- */

struct row_case {
    enum dtype type;
    uint32_t n_heads, n_kv_heads, head_dim, rope_dim;
    enum rope_kind rope;
    bool norm;
};

static const struct row_case row_cases[] = {
    {DT_F16, 4, 1, 256, 256, ROPE_NEOX, true},     {DT_F32, 2, 2, 80, 80, ROPE_NEOX, false},
    {DT_BF16, 3, 1, 80, 40, ROPE_NEOX, true},      {DT_I8, 4, 2, 64, 64, ROPE_INTERLEAVED, false},
    {DT_F16, 2, 1, 16, 6, ROPE_INTERLEAVED, true}, {DT_F32, 2, 1, 512, 0, ROPE_NEOX, true},
    {DT_I8, 2, 1, 128, 2, ROPE_NEOX, true},
};

enum { ROWS = 45, POS0 = 25, PAGES = 3 };

/* What one call makes of ROWS rows: the q part and the pages. */
struct row_run {
    struct row_case c;
    uint32_t stride;
    float *in, *qkv, *cos, *sin, *norm[2];
    uint8_t *slab;
    size_t page_bytes;
};

static struct row_run *run_open(struct kernels *k, const struct row_case *c) {
    struct row_run *r = calloc(1, sizeof *r);
    struct rng g = {31};
    r->c = *c;
    r->stride = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim + 5;
    r->in = floats((size_t)ROWS * r->stride);
    r->qkv = floats((size_t)ROWS * r->stride);
    for (size_t i = 0; i < (size_t)ROWS * r->stride; i++) r->in[i] = 3.0f * rng_unit(&g);
    memcpy(r->qkv, r->in, (size_t)ROWS * r->stride * sizeof *r->in);
    r->cos = floats(ROWS * 256);
    r->sin = floats(ROWS * 256);
    for (int i = 0; i < ROWS * 256; i++) {
        double angle = 4 * rng_unit(&g);
        r->cos[i] = (float)cos(angle);
        r->sin[i] = (float)sin(angle);
    }
    for (int n = 0; n < 2; n++) {
        r->norm[n] = floats(c->head_dim);
        for (uint32_t i = 0; i < c->head_dim; i++) r->norm[n][i] = 1.0f + rng_unit(&g) / 2;
    }
    r->page_bytes = k->kv_layer_bytes(c->type, c->n_kv_heads, c->head_dim);
    r->slab = aligned_alloc(64, PAGES * r->page_bytes);
    memset(r->slab, 0xff, PAGES * r->page_bytes);
    return r;
}

static void run_close(struct row_run *r) {
    free(r->in);
    free(r->qkv);
    free(r->cos);
    free(r->sin);
    free(r->norm[0]);
    free(r->norm[1]);
    free(r->slab);
    free(r);
}

static void run_rows(struct row_run *r, struct kernels *k, uint32_t chunk) {
    const uint32_t pages[PAGES] = {2, 0, 1};
    const struct row_case *c = &r->c;
    struct kv_layer kv = {r->slab, r->page_bytes, 0, c->type, c->n_kv_heads, c->head_dim};
    for (uint32_t row = 0; row < ROWS; row += chunk) {
        struct kv_rows seq = {0, ROWS - row < chunk ? ROWS - row : chunk, POS0 + row, pages, 1};
        size_t half = c->rope_dim / 2;
        struct qkv_post a = {r->qkv + (size_t)row * r->stride,
                             r->stride,
                             c->n_heads,
                             NULL,
                             NULL,
                             1e-6f,
                             c->rope,
                             c->rope_dim,
                             r->cos + row * half,
                             r->sin + row * half,
                             0.3f,
                             &kv,
                             &seq,
                             1};
        if (c->norm) {
            a.q_norm = r->norm[0];
            a.k_norm = r->norm[1];
        }
        k->qkv_post(k, &a);
    }
}

/* One head in double. */
static void head_oracle(const struct row_run *r, uint32_t row, const float *x, const float *norm, double scale,
                        double *y) {
    uint32_t n = r->c.head_dim, half = r->c.rope_dim / 2;
    double ss = 0;
    for (uint32_t i = 0; i < n; i++) ss += (double)x[i] * x[i];
    for (uint32_t i = 0; i < n; i++) y[i] = r->c.norm ? x[i] / sqrt(ss / n + 1e-6) * norm[i] : x[i];
    for (uint32_t i = 0; i < half; i++) {
        uint32_t i0 = r->c.rope == ROPE_NEOX ? i : 2 * i, i1 = r->c.rope == ROPE_NEOX ? i + half : 2 * i + 1;
        double a = y[i0], b = y[i1], c = r->cos[row * half + i], s = r->sin[row * half + i];
        y[i0] = a * c - b * s;
        y[i1] = b * c + a * s;
    }
    for (uint32_t i = 0; i < n; i++) y[i] *= scale;
}

static void check_near(const struct row_run *r, double got, double want, double step, const char *what) {
    if (!(fabs(got - want) <= step + 2e-6)) {
        fail_msg("%s of type %d, head_dim %u: %g, not %g", what, r->c.type, r->c.head_dim, got, want);
    }
}

/* K and V of one head of one row, read from the page, against what they came from. */
static void check_stored(const struct row_run *r, uint32_t row, uint32_t head, const double *k, const double *v) {
    const uint32_t pages[PAGES] = {2, 0, 1}, pos = POS0 + row, slot = pos % KV_PAGE_TOKENS, n = r->c.head_dim;
    struct kv_shape s = kv_shape_of(r->c.type, r->c.n_kv_heads, n);
    const uint8_t *page = r->slab + pages[pos / KV_PAGE_TOKENS] * r->page_bytes;
    double scale[2] = {1, 1}, step[2] = {0, 0};
    if (r->c.type == DT_I8) {
        for (int i = 0; i < 2; i++) {
            size_t at = i ? s.v_scale_offset : s.k_scale_offset;
            scale[i] = kv_elem(DT_F32, page + at, head * KV_PAGE_TOKENS + slot);
            step[i] = scale[i] * 0.501;
        }
    }
    double eps = r->c.type == DT_F16 ? 0x1p-11 : r->c.type == DT_BF16 ? 0x1p-8 : 0;
    for (uint32_t d = 0; d < n; d++) {
        double gk = scale[0] * kv_elem(r->c.type, page + head * s.head_bytes, d * KV_PAGE_TOKENS + slot);
        double gv = scale[1] * kv_elem(r->c.type, page + s.v_offset + head * s.head_bytes, slot * n + d);
        check_near(r, gk, k[d], step[0] + eps * fabs(k[d]) * 1.001, "K");
        check_near(r, gv, v[d], step[1] + eps * fabs(v[d]) * 1.001, "V");
    }
}

static void rows_equal_double_arithmetic(void **state) {
    (void)state;
    struct kernels *k = kernels_try("auto", 2);
    for (uint32_t i = 0; i < ARRAY_COUNT(row_cases); i++) {
        struct row_run *r = run_open(k, &row_cases[i]);
        const struct row_case *c = &r->c;
        run_rows(r, k, ROWS);
        for (uint32_t row = 0; row < ROWS; row++) {
            const float *in = r->in + (size_t)row * r->stride, *out = r->qkv + (size_t)row * r->stride;
            double want[512], v[512];
            for (uint32_t h = 0; h < c->n_heads; h++) {
                head_oracle(r, row, in + h * c->head_dim, r->norm[0], 0.3f, want);
                for (uint32_t d = 0; d < c->head_dim; d++) check_near(r, out[h * c->head_dim + d], want[d], 0, "q");
            }
            for (uint32_t h = 0; h < c->n_kv_heads; h++) {
                head_oracle(r, row, in + (c->n_heads + h) * c->head_dim, r->norm[1], 1.0, want);
                for (uint32_t d = 0; d < c->head_dim; d++)
                    v[d] = in[(c->n_heads + c->n_kv_heads + h) * c->head_dim + d];
                check_stored(r, row, h, want, v);
            }
        }
        run_close(r);
    }
    k->close(k);
}

static void rows_have_the_same_bits_on_every_level_and_in_every_chunk(void **state) {
    (void)state;
    const struct {
        const char *isa;
        uint32_t threads, chunk;
    } ways[] = {{"scalar", 2, 7}, {"avx2", 1, ROWS}, {"avx2", 5, 1}, {"avx512", 1, ROWS}, {"avx512", 3, 16}};
    struct kernels *scalar = kernels_try("scalar", 1);
    for (uint32_t i = 0; i < ARRAY_COUNT(row_cases); i++) {
        struct row_run *a = run_open(scalar, &row_cases[i]);
        run_rows(a, scalar, ROWS);
        for (uint32_t j = 0; j < ARRAY_COUNT(ways); j++) {
            struct kernels *k = kernels_try(ways[j].isa, ways[j].threads);
            if (!k) continue;
            struct row_run *b = run_open(k, &row_cases[i]);
            run_rows(b, k, ways[j].chunk);
            uint32_t q = a->c.n_heads * a->c.head_dim;
            for (uint32_t r = 0; r < ROWS; r++) {
                assert_same_bits(a->qkv + (size_t)r * a->stride, b->qkv + (size_t)r * b->stride, q, ways[j].isa);
            }
            assert_memory_equal(a->slab, b->slab, PAGES * a->page_bytes); /* with the slots that nobody wrote */
            run_close(b);
            k->close(k);
        }
        run_close(a);
    }
    scalar->close(scalar);
}

/* Denormals, overflow and NaN in v: the same stored bits on every level, for every type. */
static void odd_values_are_stored_alike(void **state) {
    (void)state;
    const float odd[] = {0.0f,     -0.0f, 1e-40f,  -1e-40f, 1e-8f,  -6e-8f, 2.98e-8f, 6.1e-5f,   65504.0f, 65519.9f,
                         65520.0f, -7e4f, 3.4e38f, 1e-38f,  1e-30f, 127.5f, INFINITY, -INFINITY, NAN,      1.0f};
    struct kernels *scalar = kernels_try("scalar", 1);
    const char *const names[] = {"avx2", "avx512"};
    for (uint32_t t = 0; t < ARRAY_COUNT(kv_types); t++) {
        const struct row_case c = {kv_types[t], 1, 1, 32, 0, ROPE_NEOX, false};
        struct row_run *a = run_open(scalar, &c);
        struct rng g = {3};
        for (uint32_t r = 0; r < ROWS; r++) {
            /* Early rows are finite, some tiny altogether: int8 scales differ from NaN there. */
            uint32_t kinds = r < 10 ? 5 : r < 30 ? 16 : ARRAY_COUNT(odd);
            for (uint32_t i = 0; i < 96; i++) a->in[r * a->stride + i] = odd[rng_below(&g, kinds)];
        }
        memcpy(a->qkv, a->in, ROWS * a->stride * sizeof *a->in);
        run_rows(a, scalar, ROWS);
        for (uint32_t l = 0; l < ARRAY_COUNT(names); l++) {
            struct kernels *k = kernels_try(names[l], 1);
            if (!k) continue;
            struct row_run *b = run_open(k, &c);
            memcpy(b->qkv, a->in, ROWS * a->stride * sizeof *a->in);
            run_rows(b, k, ROWS);
            assert_memory_equal(a->slab, b->slab, PAGES * a->page_bytes);
            run_close(b);
            k->close(k);
        }
        run_close(a);
    }
    scalar->close(scalar);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_conversion_rounds_to_nearest_even),
        cmocka_unit_test(int8_storage_is_within_half_a_step),
        cmocka_unit_test(rope_tables_are_the_rounded_cosines_on_every_level),
        cmocka_unit_test(rows_equal_double_arithmetic),
        cmocka_unit_test(rows_have_the_same_bits_on_every_level_and_in_every_chunk),
        cmocka_unit_test(odd_values_are_stored_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
