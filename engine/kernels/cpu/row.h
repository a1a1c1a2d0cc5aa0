/* row.h - the one number that the three files of row_*.c share. */
#ifndef CHOIR_KERNELS_CPU_ROW_H
#define CHOIR_KERNELS_CPU_ROW_H

enum {
    ROW_CHUNK = 16384, /* logits per partial sum of row_sum_exp; a part of the numerics */
    ROW_BLOCK = 4096,  /* row_max remembers the block of the maximum and searches it once more; a multiple of 64 */
};

#endif
