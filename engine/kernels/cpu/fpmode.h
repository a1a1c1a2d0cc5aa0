/* fpmode.h - the arithmetic mode of every kernel: round to nearest even, denormals flushed in and out.
 *
 * vdpbf16ps flushes denormals whatever the mode says, so the definition flushes them everywhere. The pool sets
 * the mode around items; a function that is called outside the pool sets it itself:
 *     unsigned saved = fpmode_enter();  ...  fpmode_leave(saved);
 */
#ifndef CHOIR_KERNELS_CPU_FPMODE_H
#define CHOIR_KERNELS_CPU_FPMODE_H

#include <xmmintrin.h>

enum {
    /* All exceptions masked, round to nearest, FTZ (bit 15) and DAZ (bit 6). */
    FPMODE_KERNELS = 0x1f80 | 0x8000 | 0x0040
};

static inline unsigned fpmode_enter(void) {
    unsigned saved = _mm_getcsr();
    _mm_setcsr(FPMODE_KERNELS);
    return saved;
}

static inline void fpmode_leave(unsigned saved) {
    _mm_setcsr(saved);
}

#endif
