/* attention_avx512.c - attention with AVX-512. See attention_body.h; pool threads, no state. */
#define SIMD16_LEVEL 2
#include "engine/kernels/cpu/attention_body.h"
