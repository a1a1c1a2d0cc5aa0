/* tp.h - how the ranks of one tensor-parallel group meet.
 *
 * A communicator transports partial sums and adds them in the order of the canonical tree (kernels.h, struct
 * slices), so every legal degree gives the same bits. `self` is the group of one: every operation is the identity.
 *
 * Collectives are called by all ranks in the same order from the thread that runs the layer loop.
 */
#ifndef CHOIR_TENSORPAR_H
#define CHOIR_TENSORPAR_H

#include "common/err.h"

struct tp {
    uint32_t rank, size;
    /* x[n] += the other ranks' x, added as the top of the canonical tree. In place, all ranks end equal. */
    void (*all_reduce)(struct tp *tp, float *x, size_t n);
    void (*close)(struct tp *tp);
};

/* The group of one. Never fails. */
struct tp *tp_self_open(void);

#endif
