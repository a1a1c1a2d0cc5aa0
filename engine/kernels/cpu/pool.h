/* pool.h - the backend's threads: run n independent items, dynamically shared, and return when all are done.
 *
 * One thread at a time calls pool_run (the engine thread); it takes items itself, so a pool of 1 has no worker.
 * Items are handed out one by one from an atomic counter: a thread whose CPU is stolen delays only the item it
 * holds. Which thread runs an item never shows in a result, because an item owns its outputs.
 * Every item runs under the arithmetic mode of fpmode.h, on workers and caller alike.
 */
#ifndef CHOIR_KERNELS_CPU_POOL_H
#define CHOIR_KERNELS_CPU_POOL_H

#include "common/base.h"

struct pool;

enum { POOL_THREADS_MAX = 1024 };

/* n_threads counts the caller; 0 means every CPU of the affinity mask. Fewer are used when the system refuses
 * to start them all (pool_threads tells). NULL when there is no memory. */
struct pool *pool_open(uint32_t n_threads);
void pool_close(struct pool *p);
uint32_t pool_threads(const struct pool *p);

/* fn(arg, item) for every item 0..n-1, ascending as handed out. Not to be called from inside an item. */
void pool_run(struct pool *p, uint32_t n, void (*fn)(void *arg, uint32_t item), void *arg);

#endif
