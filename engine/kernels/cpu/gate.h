/* gate.h - the gated activations, defined once for all levels: f(x) = x / (1 + exp(t(x))).
 *
 * SiLU: t = -x.  GELU (tanh form, Hendrycks & Gimpel 2016): 0.5 x (1 + tanh u) = x / (1 + exp(-2u)),
 * u = c (x + a x^3), c = sqrt(2 / pi), a = 0.044715; so t = x * fma(x^2, -2ca, -2c).
 */
#ifndef CHOIR_KERNELS_CPU_GATE_H
#define CHOIR_KERNELS_CPU_GATE_H

#define GELU_NEG_2C -1.59576912160573f
#define GELU_NEG_2CA -0.0713548162726f

#endif
