/* row_scalar.c - maximum, exponential sum and selection over one row of logits: the definition.
 *
 *   max     the lowest index among the largest values; denormals compare as 0. A NaN anywhere: (NaN, n).
 *   sum     w = exp((x - max) * inv_temperature); chunks of ROW_CHUNK; in a chunk 16 lanes (i % 16), i ascending from
 * 0, lanes by the tree of num_sum16; chunk sums added in ascending order from 0 select  indices with x >= threshold,
 * ascending
 *
 * Any thread; no state. Called outside the pool, so each sets the arithmetic mode itself.
 */
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/cpu/num.h"
#include "engine/kernels/cpu/row.h"

#include <math.h>

void cpu_row_max_scalar(const float *x, uint32_t n, float *max, uint32_t *arg) {
    unsigned saved = fpmode_enter();
    float best = n ? x[0] : -HUGE_VALF;
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (x[i] != x[i]) {
            best = x[i];
            at = n;
            break;
        }
        if (x[i] > best) {
            best = x[i];
            at = i;
        }
    }
    *max = best;
    *arg = at;
    fpmode_leave(saved);
}

float cpu_row_sum_exp_scalar(const float *x, uint32_t n, float max, float inv_temperature) {
    unsigned saved = fpmode_enter();
    float sum = 0.0f;
    for (uint32_t c = 0; c < n; c += ROW_CHUNK) {
        float lanes[16] = {0};
        uint32_t end = n - c < ROW_CHUNK ? n : c + ROW_CHUNK;
        for (uint32_t i = c; i < end; i++) lanes[i % 16] += num_expf((x[i] - max) * inv_temperature);
        sum += num_sum16(lanes);
    }
    fpmode_leave(saved);
    return sum;
}

uint32_t cpu_row_select_scalar(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap) {
    unsigned saved = fpmode_enter();
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!(x[i] >= threshold)) continue;
        if (count < cap) idx[count] = i;
        count++;
    }
    fpmode_leave(saved);
    return count;
}
