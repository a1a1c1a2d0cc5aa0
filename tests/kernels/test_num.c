/* test_num.c - the elementary functions against long double libm, and their vector forms against the scalar ones. */
#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/cpu/num.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* |got - want| in units of the last place of an fp32 near want. */
static double ulps(float got, long double want) {
    int e;
    frexpl(want, &e);
    return (double)(fabsl((long double)got - want) / ldexpl(1.0L, e - 24));
}

static void exp_is_within_2_ulp(void **state) {
    (void)state;
    double worst = 0;
    for (uint64_t u = 0; u < 1ull << 32; u += 641) {
        float x = float_of((uint32_t)u);
        long double want = expl((long double)x);
        if (!(want >= 0x1p-126L && want <= 0x1.fffffep127L)) continue;
        double d = ulps(num_expf(x), want);
        worst = d > worst ? d : worst;
    }
    print_message("exp: %.3f ulp\n", worst);
    assert_true(worst < 2.0);
}

static void exp_has_defined_ends(void **state) {
    (void)state;
    assert_true(num_expf(-INFINITY) == 0.0f && !signbit(num_expf(-INFINITY)));
    assert_true(num_expf(INFINITY) == INFINITY);
    assert_true(num_expf(88.8f) == INFINITY);
    assert_true(num_expf(88.7f) < INFINITY);
    assert_true(num_expf(-87.4f) == 0.0f);
    assert_true(num_expf(NUM_EXP_MIN) >= 0x1p-126f);
    assert_true(num_expf(nextafterf(NUM_EXP_MIN, -100.0f)) == 0.0f);
    assert_true(num_expf(0.0f) == 1.0f && num_expf(-0.0f) == 1.0f && num_expf(1e-40f) == 1.0f);
    assert_true(isnan(num_expf(NAN)));
}

static void log_is_within_2_ulp(void **state) {
    (void)state;
    double worst = 0;
    for (uint32_t u = 0x00800000u; u < 0x7f800000u; u += 331) {
        float x = float_of(u);
        if (x == 1.0f) continue;
        double d = ulps(num_logf(x), logl((long double)x));
        worst = d > worst ? d : worst;
    }
    print_message("log: %.3f ulp\n", worst);
    assert_true(worst < 2.0);
}

static void log_has_defined_ends(void **state) {
    (void)state;
    assert_true(num_logf(0.0f) == -INFINITY && num_logf(-0.0f) == -INFINITY);
    assert_true(num_logf(1e-40f) == -INFINITY); /* a denormal counts as 0 */
    assert_true(num_logf(INFINITY) == INFINITY);
    assert_true(num_logf(1.0f) == 0.0f);
    assert_true(isnan(num_logf(-1.0f)) && isnan(num_logf(-INFINITY)) && isnan(num_logf(NAN)));
}

__attribute__((target("avx2,fma"))) static void exp_8(const float *x, float *y) {
    _mm256_storeu_ps(y, num_exp_ps256(_mm256_loadu_ps(x)));
}
__attribute__((target("avx512f"))) static void exp_16(const float *x, float *y) {
    _mm512_storeu_ps(y, num_exp_ps512(_mm512_loadu_ps(x)));
}
__attribute__((target("avx2,fma"))) static float sum_8(const float *x) {
    return num_sum16_ps256(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
}
__attribute__((target("avx512f"))) static float sum_16(const float *x) {
    return num_sum16_ps512(_mm512_loadu_ps(x));
}

static bool same(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

/* Every float whose bits are a multiple of `step`, a few steps apart in a vector. */
static uint64_t exp_differences(uint32_t step) {
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f");
    uint64_t bad = 0;
    for (uint64_t u = 0; u < 1ull << 32; u += 16ull * step) {
        float x[16], y8[16], y16[16];
        for (uint32_t i = 0; i < 16; i++) x[i] = float_of((uint32_t)(u + (uint64_t)i * step));
        if (avx2) {
            exp_8(x, y8);
            exp_8(x + 8, y8 + 8);
        }
        if (avx512) exp_16(x, y16);
        for (uint32_t i = 0; i < 16; i++) {
            float y = num_expf(x[i]);
            bad += (avx2 && !same(y, y8[i])) + (avx512 && !same(y, y16[i]));
        }
    }
    return bad;
}

static void vector_exp_has_the_bits_of_the_scalar(void **state) {
    (void)state;
    assert_int_equal(exp_differences(251), 0);
    unsigned saved = fpmode_enter();
    uint64_t flushed = exp_differences(257);
    fpmode_leave(saved);
    assert_int_equal(flushed, 0);
}

static void vector_sum_has_the_bits_of_the_scalar(void **state) {
    (void)state;
    uint32_t seed = 1;
    for (int n = 0; n < 10000; n++) {
        float x[16];
        for (int i = 0; i < 16; i++) {
            seed = seed * 1664525u + 1013904223u;
            x[i] = ldexpf((float)(int32_t)seed, (int)(seed >> 28));
        }
        if (__builtin_cpu_supports("avx2")) assert_true(same(num_sum16(x), sum_8(x)));
        if (__builtin_cpu_supports("avx512f")) assert_true(same(num_sum16(x), sum_16(x)));
    }
}

static void sin_and_cos_hold_for_large_angles(void **state) {
    (void)state;
    long double worst = 0;
    for (double x = 0; x < 0x1p24; x = x * 1.00003 + 0.0371) {
        double s, c;
        num_sincos(x, &s, &c);
        long double d = fmaxl(fabsl(s - sinl((long double)x)), fabsl(c - cosl((long double)x)));
        worst = fmaxl(worst, d);
    }
    /* Multiples of pi/2 as near as a double comes: here only a precise reduction keeps relative accuracy. */
    for (double n = 1; n < 0x1p24; n = floor(n * 1.01 + 1)) {
        double x = n * M_PI_2, s, c;
        num_sincos(x, &s, &c);
        long double ws = sinl((long double)x), wc = cosl((long double)x);
        worst = fmaxl(worst, fmaxl(fabsl((s - ws) / ws), fabsl((c - wc) / wc)));
    }
    assert_true(worst < 1e-15L);
    double s, c;
    num_sincos(-1.0, &s, &c);
    assert_true(fabs(s - sin(-1.0)) < 1e-15 && fabs(c - cos(-1.0)) < 1e-15);
}

static void pow_gives_inverse_frequencies(void **state) {
    (void)state;
    for (double base = 100.0; base < 1e8; base *= 1.7) {
        for (int i = 0; i <= 256; i++) {
            long double want = powl((long double)base, (long double)(-i / 256.0));
            assert_true(fabsl(num_pow(base, -i / 256.0) / want - 1.0L) < 1e-14L);
        }
    }
    assert_true(fabs(num_pow(0.5, 3.0) - 0.125) < 1e-15);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_2_ulp),
        cmocka_unit_test(exp_has_defined_ends),
        cmocka_unit_test(log_is_within_2_ulp),
        cmocka_unit_test(log_has_defined_ends),
        cmocka_unit_test(vector_exp_has_the_bits_of_the_scalar),
        cmocka_unit_test(vector_sum_has_the_bits_of_the_scalar),
        cmocka_unit_test(sin_and_cos_hold_for_large_angles),
        cmocka_unit_test(pow_gives_inverse_frequencies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
