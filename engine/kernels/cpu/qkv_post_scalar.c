/* qkv_post_scalar.c - one row after the q, k, v matmul with plain C, the definition. See qkv_post_body.h; pool threads,
 * no state. */
#define SIMD16_LEVEL 0
#include "engine/kernels/cpu/qkv_post_body.h"
