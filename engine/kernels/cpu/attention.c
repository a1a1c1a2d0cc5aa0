/* attention.c - cuts attention into independent pieces of work and hands them to the pool.
 *
 * Normal way: an item is a unit (attention_int.h), which walks its splits in ascending order and folds them into
 * the output rows. When there are too few units to occupy the threads (decode of few sequences over a long
 * context), an item is one split of one unit: partial results go to slots of the backend's memory, and a second
 * pass folds them in the same ascending order. Both ways do the same operations on every row, so the choice, which
 * depends on the batch and on the thread count, does not show in the result.
 *
 * pool_run is given one item per thread; each of these takes units from a counter of its own. So the item index
 * names a thread's scratch.
 *
 * Called by the backend's owner thread; inner functions run on pool threads.
 *
 * Invariants:
 * 1. An output row x head is written by one item at a time, and its splits are folded in ascending order.
 * 2. Positions of a row's sequence up to its own are written before attention is called (qkv_post).
 * 3. A unit's queries are ordered by position.
 */
#include "engine/kernels/cpu/attention_int.h"
#include "engine/kernels/cpu/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    UNITS_PER_THREAD = 4,     /* wanted, for balance: units shrink to ATTN_QUERIES_MIN for it */
    UNITS_PER_THREAD_FEW = 2, /* below so many of the smallest units splits are shared out */
    PARTIALS_PER_THREAD = 8,  /* partial results in flight; at least PARTIALS_PER_THREAD / FEW splits per unit */
};

/* Result of one split of one unit, or of all splits so far. */
struct partial {
    float m[ATTN_QUERIES_MIN], l[ATTN_QUERIES_MIN];
    float o[ATTN_QUERIES_MIN][ATTN_HEAD_DIM_MAX];
};

/* Virtual memory mostly: what decode touches of a partial are its first rows. */
struct attention_memory {
    uint32_t n_threads;
    struct attn_scratch *scratch;        /* [n_threads] */
    struct partial *partials;            /* [n_threads * PARTIALS_PER_THREAD] */
    float (*state)[2][ATTN_QUERIES_MIN]; /* [n_threads * UNITS_PER_THREAD_FEW]: m and l while splits are shared out */
};

struct attn_fns {
    attn_split_fn *split;
    attn_fold_fn *fold;
    attn_finish_fn *finish;
};

static const struct attn_fns fns_of_level[] = {
    [ISA_SCALAR] = {attn_split_scalar, attn_fold_scalar, attn_finish_scalar},
    [ISA_AVX2] = {attn_split_avx2, attn_fold_avx2, attn_finish_avx2},
    [ISA_AVX512] = {attn_split_avx512, attn_fold_avx512, attn_finish_avx512},
};

/* How one call is cut. Per sequence: n_kv_heads x head_chunks x row blocks units. */
struct plan {
    const struct attention *a;
    struct attention_memory *memory;
    const struct attn_fns *fns;
    struct kv_shape shape;
    uint32_t group;          /* query heads per KV head */
    uint32_t heads_per_unit; /* min(group, ATTN_QUERIES_MIN) */
    uint32_t head_chunks;    /* units that share the group */
    uint32_t rows_per_unit;
    uint32_t n_units;
    uint32_t round_split,
        round_splits; /* shared-out splits: this round does [round_split, + round_splits) of each unit */
    atomic_uint next; /* next item; relaxed: items share nothing else */
};

/* Where in the list of units a thread is: units are numbered by sequence. */
struct cursor {
    uint32_t seq, first_unit;
};

bool cpu_attention_open(struct cpu *c) {
    struct attention_memory *mem = calloc(1, sizeof *mem);
    if (!mem) return false;
    c->attention = mem;
    mem->n_threads = pool_threads(c->pool);
    mem->scratch = aligned_alloc(64, mem->n_threads * sizeof *mem->scratch);
    mem->partials = calloc((size_t)mem->n_threads * PARTIALS_PER_THREAD, sizeof *mem->partials);
    mem->state = calloc((size_t)mem->n_threads * UNITS_PER_THREAD_FEW, sizeof *mem->state);
    if (mem->scratch && mem->partials && mem->state) return true;
    cpu_attention_close(c);
    return false;
}

void cpu_attention_close(struct cpu *c) {
    if (!c->attention) return;
    free(c->attention->scratch);
    free(c->attention->partials);
    free(c->attention->state);
    free(c->attention);
    c->attention = NULL;
}

static uint32_t seq_units(const struct plan *p, const struct kv_rows *seq) {
    return p->shape.n_kv_heads * p->head_chunks * (uint32_t)div_up(seq->n_rows, p->rows_per_unit);
}

/* Unit `index` of the call; indices given to one cursor ascend. */
static void unit_make(const struct plan *p, struct cursor *at, uint32_t index, struct attn_unit *u) {
    const struct attention *a = p->a;
    while (index - at->first_unit >= seq_units(p, &a->seqs[at->seq]))
        at->first_unit += seq_units(p, &a->seqs[at->seq++]);
    const struct kv_rows *seq = &a->seqs[at->seq];
    uint32_t in_seq = index - at->first_unit, per_block = p->shape.n_kv_heads * p->head_chunks;
    uint32_t blocks = (uint32_t)div_up(seq->n_rows, p->rows_per_unit);
    /* The last rows see the most: they go first, so that no thread is left with a big one at the end. */
    uint32_t row = (blocks - 1 - in_seq / per_block) * p->rows_per_unit;
    uint32_t rows_end = row + p->rows_per_unit < seq->n_rows ? row + p->rows_per_unit : seq->n_rows;
    uint32_t chunk = in_seq % per_block % p->head_chunks;
    u->a = a;
    u->seq = seq;
    u->shape = p->shape;
    u->kv_head = in_seq % per_block / p->head_chunks;
    u->n_queries = 0;
    uint32_t head0 = u->kv_head * p->group + chunk * p->heads_per_unit, head_end = head0 + p->heads_per_unit;
    if (head_end > (u->kv_head + 1) * p->group) head_end = (u->kv_head + 1) * p->group;
    for (; row < rows_end; row++) {
        uint32_t hi = seq->pos0 + row + 1;
        for (uint32_t h = head0; h < head_end; h++) {
            size_t at_row = seq->row0 + row, at_head = (size_t)h * p->shape.head_dim;
            u->query[u->n_queries++] = (struct attn_query){
                .q = a->q + at_row * a->q_stride + at_head,
                .out = a->out + at_row * a->out_stride + at_head,
                .lo = a->window && hi > a->window ? hi - a->window : 0,
                .hi = hi,
            };
        }
    }
    u->lo = u->query[0].lo;
    u->hi = u->query[u->n_queries - 1].hi;
}

static uint32_t unit_first_split(const struct attn_unit *u) {
    return u->lo / ATTN_SPLIT_TOKENS;
}
static uint32_t unit_n_splits(const struct attn_unit *u) {
    return (u->hi - 1) / ATTN_SPLIT_TOKENS + 1 - unit_first_split(u);
}

static void unit_acc(const struct attn_unit *u, struct attn_acc *acc, float *m, float *l) {
    acc->m = m;
    acc->l = l;
    for (uint32_t j = 0; j < u->n_queries; j++) acc->o[j] = u->query[j].out;
}

/* ---- Whole units ---- */

static void units_worker(void *arg, uint32_t thread) {
    struct plan *p = arg;
    struct attn_scratch *s = &p->memory->scratch[thread];
    struct cursor at = {0, 0};
    struct attn_unit u;
    struct attn_acc acc;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_units;) {
        unit_make(p, &at, i, &u);
        unit_acc(&u, &acc, s->acc_m, s->acc_l);
        uint32_t split = unit_first_split(&u), end = split + unit_n_splits(&u);
        for (; split < end; split++) p->fns->split(&u, split, false, s, &acc);
        for (uint32_t j = 0; j < u.n_queries; j++) p->fns->finish(u.query[j].out, acc.l[j], u.shape.head_dim);
    }
}

/* ---- Splits shared out ---- */

static struct partial *partial_of(const struct plan *p, uint32_t unit, uint32_t split_in_round) {
    return &p->memory->partials[(size_t)unit * p->round_splits + split_in_round];
}

static void splits_worker(void *arg, uint32_t thread) {
    struct plan *p = arg;
    struct attn_scratch *s = &p->memory->scratch[thread];
    struct cursor at = {0, 0};
    struct attn_unit u;
    struct attn_acc acc;
    uint32_t n = p->n_units * p->round_splits;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < n;) {
        uint32_t unit = i / p->round_splits, in_round = i % p->round_splits;
        unit_make(p, &at, unit, &u);
        uint32_t split = p->round_split + in_round;
        if (split >= unit_n_splits(&u)) continue;
        struct partial *out = partial_of(p, unit, in_round);
        acc.m = out->m;
        acc.l = out->l;
        for (uint32_t j = 0; j < u.n_queries; j++) acc.o[j] = out->o[j];
        p->fns->split(&u, unit_first_split(&u) + split, true, s, &acc);
    }
}

/* Folds the round's splits of one unit into its output rows; its last round finishes them. */
static void fold_unit(const struct plan *p, uint32_t unit, const struct attn_unit *u) {
    float *m = p->memory->state[unit][0], *l = p->memory->state[unit][1];
    uint32_t n_splits = unit_n_splits(u), end = p->round_split + p->round_splits;
    if (p->round_split >= n_splits) return;
    for (uint32_t split = p->round_split; split < end && split < n_splits; split++) {
        const struct partial *part = partial_of(p, unit, split - p->round_split);
        uint32_t absolute = unit_first_split(u) + split;
        for (uint32_t j = 0; j < u->n_queries; j++) {
            const struct attn_query *q = &u->query[j];
            struct attn_span in = attn_span_in(q->lo, q->hi, absolute);
            if (in.a >= in.b) continue;
            if (q->lo / ATTN_SPLIT_TOKENS == absolute) {
                m[j] = part->m[j];
                l[j] = part->l[j];
                memcpy(q->out, part->o[j], u->shape.head_dim * sizeof(float));
            } else {
                p->fns->fold(&m[j], &l[j], q->out, part->m[j], part->l[j], part->o[j], u->shape.head_dim);
            }
        }
    }
    if (end < n_splits) return;
    for (uint32_t j = 0; j < u->n_queries; j++) p->fns->finish(u->query[j].out, l[j], u->shape.head_dim);
}

static void fold_worker(void *arg, uint32_t thread) {
    struct plan *p = arg;
    struct cursor at = {0, 0};
    struct attn_unit u;
    (void)thread;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_units;) {
        unit_make(p, &at, i, &u);
        fold_unit(p, i, &u);
    }
}

/* ---- The operation ---- */

/* Units as large as leaves UNITS_PER_THREAD of them. */
static void plan_units(struct plan *p) {
    for (uint32_t queries = ATTN_QUERIES; queries >= ATTN_QUERIES_MIN; queries /= 2) {
        p->rows_per_unit = queries / p->heads_per_unit;
        p->n_units = 0;
        for (uint32_t i = 0; i < p->a->n_seqs; i++) p->n_units += seq_units(p, &p->a->seqs[i]);
        if (p->n_units >= p->memory->n_threads * UNITS_PER_THREAD) return;
    }
}

static uint32_t plan_n_splits_max(const struct plan *p) {
    struct cursor at = {0, 0};
    struct attn_unit u;
    uint32_t max = 0;
    for (uint32_t i = 0; i < p->n_units; i++) {
        unit_make(p, &at, i, &u);
        max = unit_n_splits(&u) > max ? unit_n_splits(&u) : max;
    }
    return max;
}

static void plan_run(struct plan *p, struct pool *pool, uint32_t n_items, void (*worker)(void *, uint32_t)) {
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    pool_run(pool, n_items < p->memory->n_threads ? n_items : p->memory->n_threads, worker, p);
}

void cpu_attention(struct kernels *k, const struct attention *a) {
    struct cpu *c = cpu_of(k);
    const struct kv_layer *kv = a->kv;
    ASSERT(c->attention && kv->head_dim % 16 == 0 && kv->head_dim <= ATTN_HEAD_DIM_MAX);
    ASSERT(kv->n_kv_heads > 0 && a->n_heads > 0 && a->n_heads % kv->n_kv_heads == 0);
    ASSERT(kv->layer_offset % 64 == 0 && kv->page_bytes % 64 == 0);
    struct plan p = {.a = a, .memory = c->attention, .fns = &fns_of_level[c->isa.level]};
    p.shape = kv_shape_of(kv->type, kv->n_kv_heads, kv->head_dim);
    p.group = a->n_heads / kv->n_kv_heads;
    p.heads_per_unit = p.group < ATTN_QUERIES_MIN ? p.group : ATTN_QUERIES_MIN;
    p.head_chunks = (uint32_t)div_up(p.group, p.heads_per_unit);
    plan_units(&p);
    if (p.n_units == 0) return;
    uint32_t n_threads = p.memory->n_threads;
    uint32_t n_splits = n_threads > 1 && p.n_units < n_threads * UNITS_PER_THREAD_FEW ? plan_n_splits_max(&p) : 1;
    if (n_splits <= 1) {
        plan_run(&p, c->pool, p.n_units, units_worker);
        return;
    }
    p.round_splits = n_threads * PARTIALS_PER_THREAD / p.n_units;
    p.round_splits = p.round_splits < n_splits ? p.round_splits : n_splits;
    for (; p.round_split < n_splits; p.round_split += p.round_splits) {
        plan_run(&p, c->pool, p.n_units * p.round_splits, splits_worker);
        plan_run(&p, c->pool, p.n_units, fold_worker);
    }
}
