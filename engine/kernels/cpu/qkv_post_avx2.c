/* qkv_post_avx2.c - one row after the q, k, v matmul with AVX2, FMA and F16C. See qkv_post_body.h; pool threads, no
 * state. */
#define SIMD16_LEVEL 1
#include "engine/kernels/cpu/qkv_post_body.h"
