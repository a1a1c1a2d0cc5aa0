/* arena.h - memory of one request, released whole.
 *
 * Blocks from malloc in a list; nothing is freed on its own. Zero-initialised is empty. One thread at a time.
 */
#ifndef CHOIR_SERVER_ARENA_H
#define CHOIR_SERVER_ARENA_H

#include "common/base.h"

struct arena_block;
struct arena {
    struct arena_block *blocks;
};

/* count * bytes zeroed bytes, aligned for anything; NULL: no memory, or the product overflows. count 0 is fine. */
void *arena_alloc(struct arena *a, size_t count, size_t bytes);
/* A copy with a NUL behind it. */
char *arena_copy(struct arena *a, const char *bytes, size_t n);
void arena_free(struct arena *a);

#endif
