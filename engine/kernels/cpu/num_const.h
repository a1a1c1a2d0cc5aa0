/* num_const.h - constants of the double-precision functions, shared by num.c and the vector forms of rope.c.
 *
 * Fits are least squares on Chebyshev nodes; errors are absolute, of the whole term they stand in.
 */
#ifndef CHOIR_KERNELS_CPU_NUM_CONST_H
#define CHOIR_KERNELS_CPU_NUM_CONST_H

#define NUM_MAGIC 0x1.8p+52 /* adding it rounds to an integer, which then sits in the low mantissa bits */

/* log m = f - f^2/2 + f^3 Q(f), m in [sqrt(1/2), sqrt(2)), fp32: 2^-27 */
#define NUM_LOGF_Q0 0x1.555552p-2f
#define NUM_LOGF_Q1 -0x1.000238p-2f
#define NUM_LOGF_Q2 0x1.99a134p-3f
#define NUM_LOGF_Q3 -0x1.546f24p-3f
#define NUM_LOGF_Q4 0x1.22c228p-3f
#define NUM_LOGF_Q5 -0x1.0d898p-3f
#define NUM_LOGF_Q6 0x1.05f2ap-3f
#define NUM_LOGF_Q7 -0x1.3a0a9p-4f

/* e^r = 1 + r + r^2 P(r), |r| <= ln 2 / 2: 2^-58 */
#define NUM_LOG2E 0x1.71547652b82fep+0
#define NUM_LN2_HI 0x1.62e42fefa39efp-1
#define NUM_LN2_LO 0x1.abc9e3b39803fp-56
#define NUM_EXP_POLY                                                                                                   \
    {                                                                                                                  \
        0x1.000000000000cp-1, 0x1.555555555555cp-3, 0x1.555555554fe06p-5, 0x1.111111110e9eep-7, 0x1.6c16c18606fabp-10, \
            0x1.a01a01b44bb2bp-13, 0x1.a01995bb3bea8p-16, 0x1.71ddee5f22b42p-19, 0x1.28b0f602407a6p-22,                \
            0x1.af6ea400fd05cp-26                                                                                      \
    }

/* 2 atanh(s) = 2s + s^3 R(s^2), |s| <= 3 - 2 sqrt(2): 2^-58 */
#define NUM_LOG_POLY                                                                                                   \
    {                                                                                                                  \
        0x1.5555555555595p-1, 0x1.999999997f26cp-2, 0x1.249249427c47dp-2, 0x1.c71c51a26870dp-3, 0x1.746652b1500b2p-3,  \
            0x1.399fd376aebe3p-3, 0x1.2f17efa94bb3cp-3                                                                 \
    }

/* pi/2 in three parts: n * part is exact inside fma, so the remainder stays good up to NUM_ANGLE_MAX */
#define NUM_2_OVER_PI 0x1.45f306dc9c883p-1
#define NUM_PIO2_1 0x1.921fb54442d18p+0
#define NUM_PIO2_2 0x1.1a62633145c07p-54
#define NUM_PIO2_3 -0x1.f1976b7ed8fbcp-110

/* sin r = r + r^3 S(r^2), |r| <= pi/4: 2^-57 */
#define NUM_SIN_S0 -0x1.5555555555548p-3
#define NUM_SIN_S1 0x1.111111110f77cp-7
#define NUM_SIN_S2 -0x1.a01a019bf7bcbp-13
#define NUM_SIN_S3 0x1.71de35649b231p-19
#define NUM_SIN_S4 -0x1.ae5e591921411p-26
#define NUM_SIN_S5 0x1.5d8f97c9f3d4bp-33

/* cos r = 1 - r^2/2 + r^4 C(r^2), |r| <= pi/4: 2^-64 */
#define NUM_COS_C0 0x1.555555555554bp-5
#define NUM_COS_C1 -0x1.6c16c16c1504bp-10
#define NUM_COS_C2 0x1.a01a019c9773cp-16
#define NUM_COS_C3 -0x1.27e4f7f8e48edp-22
#define NUM_COS_C4 0x1.1ee9e1583270bp-29
#define NUM_COS_C5 -0x1.8fa99010a4496p-37

#endif
