/* qkv_post.c - what happens to q, k, v between their matmul and attention, row by row on the pool.
 *
 * An item is up to ITEM_POSITIONS consecutive positions of one sequence, cut at multiples of that, so that two
 * threads rarely write into the same cache lines of a page (K has 32 tokens side by side).
 *
 * Called by the backend's owner thread; rows run on pool threads. The arithmetic is in qkv_post_body.h.
 *
 * Invariant: a row is written by one item; pages of different sequences are different where rows are written.
 */
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/qkv_post_int.h"

#include <stdatomic.h>

enum { ITEM_POSITIONS = 16 };

struct plan {
    const struct qkv_post *a;
    struct kv_shape shape;
    qkv_row_fn *row;
    uint32_t n_items;
    atomic_uint next; /* next item; relaxed: items share nothing else */
};

static qkv_row_fn *const row_of_level[] = {
    [ISA_SCALAR] = qkv_row_scalar, [ISA_AVX2] = qkv_row_avx2, [ISA_AVX512] = qkv_row_avx512};

static uint32_t seq_items(const struct kv_rows *s) {
    if (s->n_rows == 0) return 0;
    return (s->pos0 + s->n_rows - 1) / ITEM_POSITIONS - s->pos0 / ITEM_POSITIONS + 1;
}

/* Takes items until none is left. Item numbers ascend, so the search for the sequence goes on where it was. */
static void rows_worker(void *arg, uint32_t thread) {
    struct plan *p = arg;
    const struct kv_rows *seq = p->a->seqs;
    uint32_t first_item = 0;
    (void)thread;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_items;) {
        while (i - first_item >= seq_items(seq)) first_item += seq_items(seq++);
        uint32_t begin = (seq->pos0 / ITEM_POSITIONS + i - first_item) * ITEM_POSITIONS;
        uint32_t end = begin + ITEM_POSITIONS, pos_end = seq->pos0 + seq->n_rows;
        if (begin < seq->pos0) begin = seq->pos0;
        if (end > pos_end) end = pos_end;
        for (uint32_t t = begin; t < end; t++) p->row(p->a, &p->shape, seq, seq->row0 + t - seq->pos0, t);
    }
}

size_t cpu_kv_layer_bytes(enum dtype t, uint32_t n_kv_heads, uint32_t head_dim) {
    return kv_shape_of(t, n_kv_heads, head_dim).bytes;
}

void cpu_qkv_post(struct kernels *k, const struct qkv_post *a) {
    struct cpu *c = cpu_of(k);
    const struct kv_layer *kv = a->kv;
    ASSERT(kv->head_dim % 16 == 0 && kv->head_dim <= QKV_HEAD_DIM_MAX);
    ASSERT(a->rope_dim % 2 == 0 && a->rope_dim <= kv->head_dim);
    ASSERT(a->stride >= (a->n_heads + 2 * kv->n_kv_heads) * kv->head_dim);
    ASSERT(kv->layer_offset % 64 == 0 && kv->page_bytes % 64 == 0);
    struct plan p = {.a = a, .row = row_of_level[c->isa.level]};
    p.shape = kv_shape_of(kv->type, kv->n_kv_heads, kv->head_dim);
    for (uint32_t i = 0; i < a->n_seqs; i++) p.n_items += seq_items(&a->seqs[i]);
    if (p.n_items == 0) return;
    uint32_t n_threads = pool_threads(c->pool);
    pool_run(c->pool, p.n_items < n_threads ? p.n_items : n_threads, rows_worker, &p);
}
