/* attention_avx2.c - attention with AVX2, FMA and F16C. See attention_body.h; pool threads, no state. */
#define SIMD16_LEVEL 1
#include "engine/kernels/cpu/attention_body.h"
