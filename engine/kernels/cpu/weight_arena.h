/* weight_arena.h - memory for weights and large buffers: anonymous mappings, in huge pages where the system gives them.
 *
 * Weights live long and are read whole, so they are placed one behind the other in large chunks (a huge page holds
 * many small matrices); a chunk is unmapped when its last weight is freed. One thread at a time (the loader).
 */
#ifndef CHOIR_KERNELS_CPU_WEIGHT_ARENA_H
#define CHOIR_KERNELS_CPU_WEIGHT_ARENA_H

#include "common/base.h"

struct weight_arena;
struct weight_arena_chunk;

struct weight_arena *weight_arena_open(void);
void weight_arena_close(struct weight_arena *a); /* everything allocated from it must be freed */

/* Zeroed, 64-byte aligned; *chunk goes to weight_arena_free. NULL when there is no memory. */
void *weight_arena_alloc(struct weight_arena *a, size_t bytes, struct weight_arena_chunk **chunk);
void weight_arena_free(struct weight_arena *a, struct weight_arena_chunk *chunk);

/* One zeroed mapping of its own, 64-byte aligned. */
void *map_alloc(size_t bytes);
void map_free(void *p, size_t bytes);

#endif
