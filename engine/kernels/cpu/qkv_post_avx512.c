/* qkv_post_avx512.c - one row after the q, k, v matmul with AVX-512. See qkv_post_body.h; pool threads, no state. */
#define SIMD16_LEVEL 2
#include "engine/kernels/cpu/qkv_post_body.h"
