/* qkv_post_int.h - the row function behind qkv_post.c, built for each instruction set. */
#ifndef CHOIR_KERNELS_CPU_QKV_POST_INT_H
#define CHOIR_KERNELS_CPU_QKV_POST_INT_H

#include "engine/kernels/cpu/kv_layout.h"

enum { QKV_HEAD_DIM_MAX = 512 };

/* Row `row` of a->qkv, which is position `position` of `seq`: norms, rotation, scale, K and V to their page. */
typedef void qkv_row_fn(const struct qkv_post *a, const struct kv_shape *shape, const struct kv_rows *seq, uint32_t row,
                        uint32_t position);
qkv_row_fn qkv_row_scalar, qkv_row_avx2, qkv_row_avx512;

#endif
