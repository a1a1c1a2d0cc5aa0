/* test_rows.c - maximum, exponential sum and selection over a row of logits: against plain loops and long double, and
 * the instruction sets against each other.
 */
#include "engine/kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LEVELS = 3, N_MAX = 262144 };

static struct kernels *level[LEVELS]; /* scalar, avx2, avx512; NULL where the machine has it not */
static float *row;
static const uint32_t lengths[] = {0,     1,     2,     15,    16,     17,     31,    33,    63,
                                   64,    65,    255,   4095,  4096,   4097,   16383, 16384, 16385,
                                   32768, 50257, 65537, 99999, 151936, 262143, 262144};

static int open_levels(void **state) {
    (void)state;
    const char *names[LEVELS] = {"scalar", "avx2", "avx512"};
    struct err e;
    for (int i = 0; i < LEVELS; i++)
        level[i] = kernels_cpu_open(&(struct kernels_options){.n_threads = 1, .isa = names[i]}, &e);
    row = malloc(N_MAX * sizeof *row);
    return level[0] && row ? 0 : -1;
}

static int close_levels(void **state) {
    (void)state;
    for (int i = 0; i < LEVELS; i++) {
        if (level[i]) level[i]->close(level[i]);
    }
    free(row);
    return 0;
}

/* Logits-like: mostly within +-8, some ties, some -inf. */
static void fill(uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        row[i] = (float)((int32_t)seed >> 12) * 0x1p-16f;
        if (seed % 97 == 0) row[i] = -INFINITY;
    }
}

static void max_is_the_lowest_index_of_the_largest(void **state) {
    (void)state;
    for (uint32_t c = 0; c < ARRAY_COUNT(lengths); c++) {
        uint32_t n = lengths[c];
        fill(n, c);
        if (n > 2) row[n / 2] = row[n - 1] = row[n / 3] = 9.0f;
        uint32_t want = 0;
        for (uint32_t i = 1; i < n; i++) want = row[i] > row[want] ? i : want;
        for (int l = 0; l < LEVELS; l++) {
            if (!level[l]) continue;
            float max;
            uint32_t arg;
            level[l]->row_max(row, n, &max, &arg);
            assert_int_equal(arg, want);
            assert_true(max == (n ? row[want] : -INFINITY));
        }
    }
}

static void max_handles_equal_zero_and_minus_infinity(void **state) {
    (void)state;
    for (int l = 0; l < LEVELS; l++) {
        if (!level[l]) continue;
        float max;
        uint32_t arg;
        for (uint32_t i = 0; i < 100; i++) row[i] = -INFINITY;
        level[l]->row_max(row, 100, &max, &arg);
        assert_int_equal(arg, 0);
        assert_true(max == -INFINITY);
        for (uint32_t i = 0; i < 100; i++) row[i] = i % 3 ? 0.0f : -0.0f;
        level[l]->row_max(row, 100, &max, &arg);
        assert_int_equal(arg, 0);
        assert_true(max == 0.0f && signbit(max));
        row[70] = 1e-41f; /* a denormal ties with 0 */
        level[l]->row_max(row, 100, &max, &arg);
        assert_int_equal(arg, 0);
        row[71] = INFINITY;
        level[l]->row_max(row, 100, &max, &arg);
        assert_int_equal(arg, 71);
    }
}

static void max_reports_a_nan_wherever_it_is(void **state) {
    (void)state;
    for (uint32_t c = 1; c < ARRAY_COUNT(lengths); c++) {
        uint32_t n = lengths[c];
        uint32_t places[] = {0, n / 3, n / 2, n - 1};
        for (uint32_t p = 0; p < ARRAY_COUNT(places); p++) {
            fill(n, c);
            row[places[p]] = p % 2 ? -NAN : NAN;
            for (int l = 0; l < LEVELS; l++) {
                if (!level[l]) continue;
                float max;
                uint32_t arg;
                level[l]->row_max(row, n, &max, &arg);
                assert_int_equal(arg, n);
                assert_true(isnan(max));
            }
        }
    }
}

static void sum_of_exp_is_near_the_exact_one_and_equal_on_all_levels(void **state) {
    (void)state;
    const float inv_t[] = {1.0f, 0.5f, 3.0f, 100.0f};
    for (uint32_t c = 1; c < ARRAY_COUNT(lengths); c++) {
        uint32_t n = lengths[c];
        fill(n, c);
        row[0] = 8.5f;
        for (uint32_t t = 0; t < ARRAY_COUNT(inv_t); t++) {
            long double want = 0;
            for (uint32_t i = 0; i < n; i++) want += expl(((long double)row[i] - 8.5L) * inv_t[t]);
            float first = level[0]->row_sum_exp(row, n, 8.5f, inv_t[t]);
            assert_true(fabsl(first - want) <= 3e-5L * want);
            for (int l = 1; l < LEVELS; l++) {
                if (!level[l]) continue;
                float other = level[l]->row_sum_exp(row, n, 8.5f, inv_t[t]);
                assert_memory_equal(&first, &other, sizeof first);
            }
        }
    }
}

static void select_finds_all_at_or_above_the_threshold(void **state) {
    (void)state;
    uint32_t *idx = malloc((N_MAX + 1) * sizeof *idx), *want = malloc(N_MAX * sizeof *want);
    const float thresholds[] = {7.99f, 7.0f, 0.0f, -INFINITY, 20.0f};
    for (uint32_t c = 0; c < ARRAY_COUNT(lengths); c++) {
        uint32_t n = lengths[c];
        fill(n, c);
        if (n > 3) row[n / 2] = NAN; /* never selected */
        for (uint32_t t = 0; t < ARRAY_COUNT(thresholds); t++) {
            uint32_t count = 0;
            for (uint32_t i = 0; i < n; i++) {
                if (row[i] >= thresholds[t]) want[count++] = i;
            }
            const uint32_t caps[] = {0, 1, 5, 16, 17, 64, count, N_MAX};
            for (uint32_t a = 0; a < ARRAY_COUNT(caps); a++) {
                for (int l = 0; l < LEVELS; l++) {
                    if (!level[l]) continue;
                    uint32_t written = count < caps[a] ? count : caps[a];
                    idx[caps[a]] = 0xabcdef01u;
                    assert_int_equal(level[l]->row_select(row, n, thresholds[t], idx, caps[a]), count);
                    assert_memory_equal(idx, want, written * sizeof *idx);
                    assert_int_equal(idx[caps[a]], 0xabcdef01u); /* nothing past cap */
                }
            }
        }
    }
    free(idx);
    free(want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(max_is_the_lowest_index_of_the_largest),
        cmocka_unit_test(max_handles_equal_zero_and_minus_infinity),
        cmocka_unit_test(max_reports_a_nan_wherever_it_is),
        cmocka_unit_test(sum_of_exp_is_near_the_exact_one_and_equal_on_all_levels),
        cmocka_unit_test(select_finds_all_at_or_above_the_threshold),
    };
    return cmocka_run_group_tests(tests, open_levels, close_levels);
}
