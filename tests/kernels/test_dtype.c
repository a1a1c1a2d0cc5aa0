/* test_dtype.c - dequantization equals the gguf Python package's bit for bit; sizes and slices as documented.
 *
 * Oracle: fixtures/dequant.bin, made by fixtures/make_dequant.py with gguf.
 */
#include "tests/kernels/kernels_test.h"

static uint8_t *file_read(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s (tests run in the repository's root)", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*n);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, *n, f), *n);
    fclose(f);
    return p;
}

static void test_dequantize_equals_gguf(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_F16, DT_BF16, DT_Q4_0, DT_Q5_0, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
    size_t size;
    uint8_t *file = file_read("tests/kernels/fixtures/dequant.bin", &size), *p = file;
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        const size_t n_blocks = u32_load(p), n = n_blocks * dtype_block_len(types[i]);
        const uint8_t *blocks = p + 4, *values = blocks + n_blocks * dtype_block_bytes(types[i]);
        assert_true(n_blocks > 0 && values + n * 4 <= file + size);
        float *expected = floats(n), *y = floats(n);
        memcpy(expected, values, n * sizeof(float));
        dtype_to_f32(types[i], blocks, y, n);
        assert_same_bits(y, expected, n, dtype_name(types[i]));
        free(expected), free(y);
        p = (uint8_t *)values + n * 4;
    }
    assert_ptr_equal(p, file + size);
    free(file);
}

/* Sizes of GGML_QUANT_SIZES. */
static void test_sizes(void **state) {
    (void)state;
    assert_int_equal(dtype_row_bytes(DT_Q4_0, 640), 360);
    assert_int_equal(dtype_row_bytes(DT_Q5_0, 640), 440);
    assert_int_equal(dtype_row_bytes(DT_Q8_0, 640), 680);
    assert_int_equal(dtype_row_bytes(DT_Q4_K, 2048), 1152);
    assert_int_equal(dtype_row_bytes(DT_Q5_K, 2048), 1408);
    assert_int_equal(dtype_row_bytes(DT_Q6_K, 2048), 1680);
    assert_int_equal(dtype_row_bytes(DT_BF16, 7), 14);
}

/* Edges at floor(i * n_blocks / 8) blocks; BF16 counts pairs, and an odd last column belongs to the last slice. */
static void test_canonical_slices(void **state) {
    (void)state;
    const struct slices k = slices_canonical(DT_Q4_K, 5 * 256);
    static const uint32_t want_k[] = {0, 0, 256, 256, 512, 768, 768, 1024, 1280};
    assert_int_equal(k.count, 8);
    assert_memory_equal(k.edge, want_k, sizeof want_k);
    const struct slices b = slices_canonical(DT_BF16, 21);
    static const uint32_t want_b[] = {0, 2, 4, 6, 10, 12, 14, 16, 21};
    assert_memory_equal(b.edge, want_b, sizeof want_b);
    const struct slices one = slices_single(99);
    assert_int_equal(one.count, 1);
    assert_int_equal(one.edge[1], 99);
}

/* bf16_from_f32: nearest even, as converting through the next two candidates says. */
static void test_bf16_rounding(void **state) {
    (void)state;
    struct rng r = {11};
    for (int i = 0; i < 100000; i++) {
        const float x = rng_float(&r, 1, 253);
        const float lo = f32_from_bits(f32_bits(x) & 0xffff0000),
                    hi = f32_from_bits((f32_bits(x) & 0xffff0000) + 0x10000);
        const double to_lo = (double)x - lo, to_hi = (double)hi - x, a = to_lo < 0 ? -to_lo : to_lo,
                     b = to_hi < 0 ? -to_hi : to_hi;
        const float got = f32_from_bits((uint32_t)bf16_from_f32(x) << 16);
        const float even = f32_bits(lo) & 0x10000 ? hi : lo;
        assert_true(got == (a < b ? lo : b < a ? hi : even));
    }
    assert_int_equal(bf16_from_f32(f32_from_bits(0x80000001)), 0x8000);
    assert_int_equal(bf16_from_f32(f32_from_bits(0x7f7fffff)), 0x7f80); /* to infinity, as IEEE rounds */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x7f800001)), 0x7fc0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dequantize_equals_gguf),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_canonical_slices),
        cmocka_unit_test(test_bf16_rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
