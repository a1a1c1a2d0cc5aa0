/* weight_arena.c - bump allocation in large anonymous mappings (weight_arena.h).
 *
 * Invariants
 * 1. chunk->n_live counts the allocations in a chunk; at zero the chunk is unmapped, unless it is the current one,
 *    which stays to be filled on.
 * 2. `used` only grows while a chunk lives, and memory past it was never written: fresh pages are zero.
 */
#include "engine/kernels/cpu/weight_arena.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, CHUNK_BYTES = 64 << 20 };

struct weight_arena_chunk {
    uint8_t *base;
    size_t bytes, used, n_live;
};

struct weight_arena {
    struct weight_arena_chunk *current;
};

/* Over-reserves by one huge page so that the kernel can back the mapping with aligned huge pages. */
void *map_alloc(size_t bytes) {
    if (bytes == 0 || bytes > PTRDIFF_MAX - 2 * (size_t)HUGE_PAGE) return NULL;
    const size_t size = round_up(bytes, 4096), reserve = size + HUGE_PAGE;
    uint8_t *p = mmap(NULL, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    uint8_t *base = (uint8_t *)round_up((size_t)p, HUGE_PAGE);
    if (base != p) munmap(p, (size_t)(base - p));
    munmap(base + size, (size_t)(p + reserve - (base + size)));
    madvise(base, size, MADV_HUGEPAGE); /* advice: without huge pages all still works */
    return base;
}

void map_free(void *p, size_t bytes) {
    if (p) munmap(p, round_up(bytes, 4096));
}

struct weight_arena *weight_arena_open(void) {
    return calloc(1, sizeof(struct weight_arena));
}

static void chunk_unmap(struct weight_arena_chunk *c) {
    map_free(c->base, c->bytes);
    free(c);
}

void weight_arena_close(struct weight_arena *a) {
    if (!a) return;
    if (a->current) {
        ASSERT(a->current->n_live == 0);
        chunk_unmap(a->current);
    }
    free(a);
}

static struct weight_arena_chunk *chunk_map(size_t bytes) {
    struct weight_arena_chunk *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->bytes = size_max(bytes, CHUNK_BYTES);
    c->base = map_alloc(c->bytes);
    if (!c->base) {
        free(c);
        return NULL;
    }
    return c;
}

void *weight_arena_alloc(struct weight_arena *a, size_t bytes, struct weight_arena_chunk **chunk) {
    if (bytes > PTRDIFF_MAX / 2) return NULL;
    bytes = round_up(size_max(bytes, 1), 64);
    struct weight_arena_chunk *c = a->current;
    if (!c || c->bytes - c->used < bytes) {
        c = chunk_map(bytes);
        if (!c) return NULL;
        /* The emptier of the two stays current: a large matrix does not close a chunk that has room. */
        if (!a->current || c->bytes - bytes > a->current->bytes - a->current->used) {
            struct weight_arena_chunk *old = a->current;
            a->current = c;
            if (old && old->n_live == 0) chunk_unmap(old);
        }
    }
    void *p = c->base + c->used;
    c->used += bytes;
    c->n_live++;
    *chunk = c;
    return p;
}

void weight_arena_free(struct weight_arena *a, struct weight_arena_chunk *c) {
    if (--c->n_live == 0 && c != a->current) chunk_unmap(c);
}
