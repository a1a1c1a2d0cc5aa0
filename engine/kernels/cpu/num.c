/* num.c - scalar exp and log (fp32), exp, log, pow, sin and cos (double).
 *
 * Purpose: the numeric path must not change with the C library, so nothing here calls libm except fma and fmaf,
 * which are one correctly rounded operation wherever they come from. The polynomials are least-squares fits on
 * Chebyshev nodes, each coefficient rounded in turn and the later ones refitted (errors stand beside them).
 *
 * Any thread; no state.
 *
 * Invariants:
 * 1. num_expf equals num_exp_ps256 and num_exp_ps512 lane for lane, with FTZ and DAZ on or off.
 * 2. No operation depends on the rounding mode being anything but nearest-even.
 * 3. num_sincos equals the vector forms of rope.c lane for lane.
 */
#include "engine/kernels/cpu/num.h"
#include "engine/kernels/cpu/num_const.h"

#include <math.h>
#include <string.h>

static inline uint32_t bits_of_float(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float float_of_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint64_t bits_of_double(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline double double_of_bits(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* 2^n, -126 <= n <= 127. */
static inline float exp2_int(int32_t n) {
    return float_of_bits((uint32_t)(n + 127) << 23);
}

float num_expf(float x) {
    if (x != x) return x;
    if (x < NUM_EXP_MIN) return 0.0f;
    if (x > NUM_EXP_MAX) x = NUM_EXP_MAX;
    float t = fmaf(x, NUM_EXP_LOG2E, NUM_EXP_MAGIC);
    float n = t - NUM_EXP_MAGIC;
    float r = fmaf(-n, NUM_EXP_LN2_HI, x);
    r = fmaf(-n, NUM_EXP_LN2_LO, r);
    float p = fmaf(NUM_EXP_P4, r, NUM_EXP_P3);
    p = fmaf(p, r, NUM_EXP_P2);
    p = fmaf(p, r, NUM_EXP_P1);
    p = fmaf(p, r, NUM_EXP_P0);
    float y = 1.0f + fmaf(p, r * r, r);
    int32_t i = (int32_t)(bits_of_float(t) - bits_of_float(NUM_EXP_MAGIC));
    int32_t half = i >> 1;
    return y * exp2_int(half) * exp2_int(i - half);
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2));  log m = f - f^2/2 + f^3 Q(f), f = m - 1.  Denormals count as 0. */
float num_logf(float x) {
    uint32_t u = bits_of_float(x);
    if ((u & 0x7f800000u) == 0) return -INFINITY;
    if (x != x || u == 0x7f800000u) return x;
    if (u & 0x80000000u) return NAN;
    uint32_t shifted = u - 0x3f3504f3u; /* bits of sqrt(1/2) */
    int32_t e = (int32_t)shifted >> 23;
    float f = float_of_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float q = fmaf(NUM_LOGF_Q7, f, NUM_LOGF_Q6);
    q = fmaf(q, f, NUM_LOGF_Q5);
    q = fmaf(q, f, NUM_LOGF_Q4);
    q = fmaf(q, f, NUM_LOGF_Q3);
    q = fmaf(q, f, NUM_LOGF_Q2);
    q = fmaf(q, f, NUM_LOGF_Q1);
    q = fmaf(q, f, NUM_LOGF_Q0);
    float f2 = f * f;
    float tail = fmaf(q * f, f2, -0.5f * f2);
    tail = fmaf((float)e, NUM_EXP_LN2_LO, tail);
    return fmaf((float)e, NUM_EXP_LN2_HI, f + tail);
}

double num_exp(double x) {
    ASSERT(x >= -700.0 && x <= 700.0);
    double t = fma(x, NUM_LOG2E, NUM_MAGIC);
    double n = t - NUM_MAGIC;
    double r = fma(-n, NUM_LN2_HI, x);
    r = fma(-n, NUM_LN2_LO, r);
    static const double c[] = NUM_EXP_POLY;
    double p = c[ARRAY_COUNT(c) - 1];
    for (size_t i = ARRAY_COUNT(c) - 1; i-- > 0;) p = fma(p, r, c[i]);
    double y = 1.0 + fma(p, r * r, r);
    int64_t k = (int64_t)(bits_of_double(t) - bits_of_double(NUM_MAGIC));
    return y * double_of_bits((uint64_t)(k + 1023) << 52);
}

/* x = 2^e m;  log m = 2 atanh(s) = 2s + s^3 R(s^2), s = (m - 1) / (m + 1). */
double num_log(double x) {
    uint64_t u = bits_of_double(x);
    ASSERT(u >= 0x0010000000000000u && u < 0x7ff0000000000000u);
    uint64_t shifted = u - 0x3fe6a09e667f3bcdu; /* bits of sqrt(1/2) */
    int64_t e = (int64_t)shifted >> 52;
    double m = double_of_bits((shifted & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    static const double c[] = NUM_LOG_POLY;
    double p = c[ARRAY_COUNT(c) - 1];
    for (size_t i = ARRAY_COUNT(c) - 1; i-- > 0;) p = fma(p, z, c[i]);
    double tail = fma(p * s, z, (double)e * NUM_LN2_LO);
    return fma((double)e, NUM_LN2_HI, fma(2.0, s, tail));
}

double num_pow(double base, double exponent) {
    return num_exp(exponent * num_log(base));
}

/* x = n pi/2 + r with a three-part pi/2; the quadrant picks polynomial and sign. */
void num_sincos(double x, double *s, double *c) {
    ASSERT(x >= -NUM_ANGLE_MAX && x <= NUM_ANGLE_MAX);
    double t = fma(x, NUM_2_OVER_PI, NUM_MAGIC);
    double n = t - NUM_MAGIC;
    double r = fma(-n, NUM_PIO2_1, x);
    r = fma(-n, NUM_PIO2_2, r);
    r = fma(-n, NUM_PIO2_3, r);
    double z = r * r;
    double ps = fma(NUM_SIN_S5, z, NUM_SIN_S4);
    ps = fma(ps, z, NUM_SIN_S3);
    ps = fma(ps, z, NUM_SIN_S2);
    ps = fma(ps, z, NUM_SIN_S1);
    ps = fma(ps, z, NUM_SIN_S0);
    double sin_r = fma(ps, z * r, r);
    double pc = fma(NUM_COS_C5, z, NUM_COS_C4);
    pc = fma(pc, z, NUM_COS_C3);
    pc = fma(pc, z, NUM_COS_C2);
    pc = fma(pc, z, NUM_COS_C1);
    pc = fma(pc, z, NUM_COS_C0);
    double cos_r = fma(pc, z * z, fma(-0.5, z, 1.0));
    uint64_t quadrant = bits_of_double(t) & 3u;
    double a = quadrant & 1u ? cos_r : sin_r;
    double b = quadrant & 1u ? sin_r : cos_r;
    *s = quadrant & 2u ? -a : a;
    *c = (quadrant + 1u) & 2u ? -b : b;
}
