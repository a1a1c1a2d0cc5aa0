/* kv_world.h - sequences over a paged K/V slab, for the tests of qkv_post and attention.
 *
 * A world is one layer's slab, filled with NaN patterns, and some sequences with random q, k, v rows and scattered
 * pages. `world_step` runs one call of qkv_post and attention over parts of sequences, as the engine does, and keeps
 * the outputs. Before each step, pages that a window has passed are taken from the sequence and filled with NaNs.
 */
#ifndef CHOIR_TESTS_KV_WORLD_H
#define CHOIR_TESTS_KV_WORLD_H

#include "kernels_test.h"

#include <math.h>

enum { WORLD_SEQS = 8, WORLD_LAYER_OFFSET = 192 };

struct layer_case {
    enum dtype type;
    uint32_t n_heads, n_kv_heads, head_dim, window;
    float softcap;
};

struct sequence {
    uint32_t n_tokens;
    float *rows;     /* [n_tokens][stride]: q, k, v */
    uint32_t *pages; /* [blocks][page_stride] */
    float *out;      /* [n_tokens][n_heads * head_dim] */
};

struct world {
    struct layer_case c;
    struct kv_layer kv;
    uint32_t n_pages, page_stride, stride, out_stride;
    uint32_t n_seqs;
    struct sequence seq[WORLD_SEQS];
};

struct part {
    uint32_t seq, pos0, n_rows;
};

/* Content depends on (seed, sequence) alone; `page_seed` scatters the pages. lengths: n_seqs sequences. */
static inline struct world *world_open(struct kernels *k, const struct layer_case *c, uint64_t seed, uint64_t page_seed,
                                       uint32_t n_seqs, const uint32_t *lengths) {
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->c = *c;
    w->page_stride = page_seed % 2 ? 3 : 1;
    w->stride = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    w->out_stride = c->n_heads * c->head_dim + 16;
    w->n_seqs = n_seqs;
    for (uint32_t s = 0; s < n_seqs; s++) w->n_pages += (uint32_t)div_up(lengths[s], KV_PAGE_TOKENS);
    w->kv = (struct kv_layer){.type = c->type, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    w->kv.layer_offset = WORLD_LAYER_OFFSET;
    w->kv.page_bytes = WORLD_LAYER_OFFSET + k->kv_layer_bytes(c->type, c->n_kv_heads, c->head_dim) + 64;
    w->kv.slab = aligned_alloc(64, w->n_pages * w->kv.page_bytes);
    assert_non_null(w->kv.slab);
    memset(w->kv.slab, 0xff, w->n_pages * w->kv.page_bytes);
    uint32_t *order = malloc(w->n_pages * sizeof *order), next = 0;
    struct rng r = {page_seed * 2 + 1};
    for (uint32_t i = 0; i < w->n_pages; i++) {
        uint32_t j = rng_below(&r, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t s = 0; s < n_seqs; s++) {
        struct sequence *q = &w->seq[s];
        q->n_tokens = lengths[s];
        q->rows = floats((size_t)lengths[s] * w->stride);
        q->out = floats((size_t)lengths[s] * c->n_heads * c->head_dim);
        uint32_t blocks = (uint32_t)div_up(lengths[s], KV_PAGE_TOKENS);
        q->pages = malloc((size_t)blocks * w->page_stride * sizeof *q->pages);
        memset(q->pages, 0xff, (size_t)blocks * w->page_stride * sizeof *q->pages);
        for (uint32_t b = 0; b < blocks; b++) q->pages[b * w->page_stride] = order[next++];
        struct rng content = {seed * 1000 + s + 1};
        for (size_t i = 0; i < (size_t)lengths[s] * w->stride; i++) q->rows[i] = rng_unit(&content);
    }
    free(order);
    return w;
}

static inline void world_close(struct world *w) {
    for (uint32_t s = 0; s < w->n_seqs; s++) {
        free(w->seq[s].rows);
        free(w->seq[s].pages);
        free(w->seq[s].out);
    }
    free(w->kv.slab);
    free(w);
}

/* The scale that attention usually has: scores of a few units. */
static inline float world_q_scale(const struct layer_case *c) {
    return 6.0f / sqrtf((float)c->head_dim);
}

/* Takes the pages that no row from pos0 on can see. */
static inline void world_release(struct world *w, uint32_t seq, uint32_t pos0) {
    if (!w->c.window || pos0 + 1 <= w->c.window) return;
    uint32_t passed = (pos0 + 1 - w->c.window) / KV_PAGE_TOKENS;
    for (uint32_t b = 0; b < passed; b++) {
        uint32_t *page = &w->seq[seq].pages[b * w->page_stride];
        if (*page == UINT32_MAX) continue;
        memset((uint8_t *)w->kv.slab + *page * w->kv.page_bytes, 0xff, w->kv.page_bytes);
        *page = UINT32_MAX;
    }
}

/* One step over n parts of different sequences; attend: false only writes K and V. */
static inline void world_step(struct world *w, struct kernels *k, const struct part *parts, uint32_t n, bool attend) {
    struct kv_rows rows[WORLD_SEQS];
    uint32_t total = 1, width = w->c.n_heads * w->c.head_dim;
    for (uint32_t i = 0; i < n; i++) {
        const struct part *p = &parts[i];
        world_release(w, p->seq, p->pos0);
        rows[i] = (struct kv_rows){total, p->n_rows, p->pos0, w->seq[p->seq].pages, w->page_stride};
        total += p->n_rows + 1; /* rows between parts belong to nobody */
    }
    float *qkv = floats((size_t)total * w->stride), *out = floats((size_t)total * w->out_stride);
    memset(out, 0x55, (size_t)total * w->out_stride * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(qkv + (size_t)rows[i].row0 * w->stride, w->seq[parts[i].seq].rows + (size_t)parts[i].pos0 * w->stride,
               (size_t)parts[i].n_rows * w->stride * sizeof *qkv);
    }
    struct qkv_post post = {.qkv = qkv, .stride = w->stride, .n_heads = w->c.n_heads, .q_scale = world_q_scale(&w->c)};
    post.kv = &w->kv;
    post.seqs = rows;
    post.n_seqs = n;
    k->qkv_post(k, &post);
    struct attention a = {qkv, w->stride, out, w->out_stride, w->c.n_heads, w->c.window, w->c.softcap, &w->kv, rows, n};
    if (attend) k->attention(k, &a);
    for (uint32_t i = 0; attend && i < n; i++) {
        for (uint32_t r = 0; r < parts[i].n_rows; r++) {
            const float *from = out + (size_t)(rows[i].row0 + r) * w->out_stride;
            memcpy(w->seq[parts[i].seq].out + (size_t)(parts[i].pos0 + r) * width, from, width * sizeof *from);
            assert_int_equal(f32_bits(from[width]), 0x55555555); /* nothing past the row */
        }
    }
    free(qkv);
    free(out);
}

/* The whole of sequence `seq` in chunks of `chunk` rows; rows below attend_from only write K and V. */
static inline void world_run(struct world *w, struct kernels *k, uint32_t seq, uint32_t chunk, uint32_t attend_from) {
    uint32_t n = w->seq[seq].n_tokens;
    for (uint32_t pos = 0; pos < n;) {
        uint32_t end = pos < attend_from ? attend_from : n;
        struct part p = {seq, pos, end - pos < chunk ? end - pos : chunk};
        world_step(w, k, &p, 1, pos >= attend_from);
        pos += p.n_rows;
    }
}

#endif
