/* arena.c - a bump allocator over blocks that double in size.
 *
 * Invariant: used <= size in every block, and only the first block of the list has room to give.
 */
#include "server/arena.h"

#include <stdlib.h>
#include <string.h>

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(max_align_t) unsigned char data[];
};

enum { ARENA_BLOCK_MIN = 2048, ARENA_BLOCK_MAX = 1 << 16 };

static struct arena_block *block_add(struct arena *a, size_t need) {
    size_t size = a->blocks ? size_min(a->blocks->size * 2, ARENA_BLOCK_MAX) : ARENA_BLOCK_MIN;
    size = size_max(size, need);
    if (size > SIZE_MAX - sizeof(struct arena_block)) return NULL;
    struct arena_block *b = malloc(sizeof *b + size);
    if (!b) return NULL;
    *b = (struct arena_block){.next = a->blocks, .size = size};
    a->blocks = b;
    return b;
}

void *arena_alloc(struct arena *a, size_t count, size_t bytes) {
    size_t n;
    if (__builtin_mul_overflow(count, bytes, &n) || n > SIZE_MAX / 2) return NULL;
    n = round_up(size_max(n, 1), _Alignof(max_align_t));
    struct arena_block *b = a->blocks;
    if (!b || b->size - b->used < n) b = block_add(a, n);
    if (!b) return NULL;
    void *p = b->data + b->used;
    b->used += n;
    return memset(p, 0, n);
}

char *arena_copy(struct arena *a, const char *bytes, size_t n) {
    char *p = arena_alloc(a, n + 1, 1);
    if (p && n > 0) memcpy(p, bytes, n);
    return p;
}

void arena_free(struct arena *a) {
    for (struct arena_block *b = a->blocks; b;) {
        struct arena_block *next = b->next;
        free(b);
        b = next;
    }
    a->blocks = NULL;
}
