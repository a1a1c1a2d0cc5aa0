/* model.c - open a decoder, and the layer loop.
 *
 * The loop, per layer, with the collective where tensor parallelism will cut:
 *
 *   act = norm(h)                          norm_pack / residual_norm_pack
 *   qkv = [Wq Wk Wv] act                   matmul (column-parallel)
 *   q,k: norm, rope; K,V -> pages          qkv_post
 *   attn = attention(q, pages)             attention (heads are never split)
 *   y = Wo attn                            matmul over canonical slices, all-reduce
 *   h += y (or norm(y)); act = norm(h)     residual_norm_pack
 *   act_ff = f(Wgate act) * Wup act        matmul_gated
 *   y = Wdown act_ff                       matmul over canonical slices, all-reduce
 *   h += y (or norm(y)); act = next norm(h)
 *
 * Owner: the engine thread. Invariants:
 * 1. K and V of a row are written (in their storage type) before any row reads them.
 * 2. Nothing here depends on how rows are grouped into steps: each operation is row-independent (kernels.h).
 */
#include "engine/model/model_int.h"
#include "engine/kvcache/kvcache.h"
#include "engine/text/text.h"

#include <stdlib.h>

_Static_assert((int)KV_BLOCK_TOKENS == (int)KV_PAGE_TOKENS, "a block is one page deep");

static uint32_t gcd(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Layers of each kind are dealt to pages of gcd(layer counts) layers, so that all pages are equal. */
static void model_plan_kv(struct model *m, enum dtype kv_type) {
    const struct model_config *c = &m->c;
    uint32_t count[LAYER_KINDS] = {0};
    for (uint32_t i = 0; i < c->n_layers; i++) count[c->layer_kind[i]]++;
    uint32_t per_page = gcd(count[LAYER_FULL], count[LAYER_WINDOW]);
    struct model_kv_plan *p = &m->plan;
    size_t layer_bytes = m->k->kv_layer_bytes(kv_type, c->n_kv_heads, c->head_dim);
    p->layers_per_page = per_page;
    p->page_bytes = per_page * layer_bytes;
    for (uint32_t kind = 0; kind < LAYER_KINDS; kind++) {
        if (!count[kind]) continue;
        m->kind_of[kind] = p->n_kinds;
        p->units[p->n_kinds] = count[kind] / per_page;
        p->window[p->n_kinds++] = kind == LAYER_WINDOW ? c->window : 0;
    }
    uint32_t seen[LAYER_KINDS] = {0};
    for (uint32_t i = 0; i < c->n_layers; i++) {
        struct layer *y = &m->layers[i];
        uint32_t nth = seen[c->layer_kind[i]]++;
        y->kind = m->kind_of[c->layer_kind[i]];
        y->unit = nth / per_page;
        y->kv = (struct kv_layer){.page_bytes = p->page_bytes,
                                  .layer_offset = nth % per_page * layer_bytes,
                                  .type = kv_type,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = c->head_dim};
    }
}

static void *work_alloc(struct model *m, size_t count, size_t bytes, bool *ok) {
    void *p = *ok ? m->k->buf_alloc(m->k, count * bytes) : NULL;
    if (p) m->work_bytes += count * bytes;
    *ok = p != NULL;
    return p;
}

static struct act *work_act(struct model *m, uint32_t n_tokens, size_t n_cols, unsigned formats, bool *ok) {
    struct act *a = *ok ? m->k->act_alloc(m->k, n_tokens, (uint32_t)n_cols, formats) : NULL;
    if (a) m->work_bytes += m->k->act_bytes(a);
    *ok = a != NULL;
    return a;
}

static unsigned layer_in_format(const struct kernels *k, const struct layer *y) {
    return k->weight_act_format(y->q) | k->weight_act_format(y->k) | k->weight_act_format(y->v);
}

static unsigned layer_ff_format(const struct kernels *k, const struct layer *y) {
    return k->weight_act_format(y->gate) | k->weight_act_format(y->up);
}

/* Every buffer of a step, once. Formats of activations are what the weights that read them want. */
static bool model_alloc_work(struct model *m, struct err *e) {
    const struct model_config *c = &m->c;
    size_t t = m->n_tokens_max, q_dim = (size_t)c->n_heads * c->head_dim, kv_dim = (size_t)c->n_kv_heads * c->head_dim;
    bool ok = true;
    m->h = work_alloc(m, t * c->dim, sizeof(float), &ok);
    m->qkv = work_alloc(m, t * (q_dim + 2 * kv_dim), sizeof(float), &ok);
    m->attn = work_alloc(m, t * q_dim, sizeof(float), &ok);
    m->y = work_alloc(m, t * c->dim, sizeof(float), &ok);
    for (uint32_t kind = 0; kind < LAYER_KINDS; kind++) {
        m->rope_cos[kind] = work_alloc(m, t * HEAD_DIM_MAX / 2, sizeof(float), &ok);
        m->rope_sin[kind] = work_alloc(m, t * HEAD_DIM_MAX / 2, sizeof(float), &ok);
    }
    m->kv_rows = work_alloc(m, m->n_seqs_max, sizeof *m->kv_rows, &ok);
    m->out_h = work_alloc(m, (size_t)m->n_logit_rows_max * c->dim, sizeof(float), &ok);
    m->logits = work_alloc(m, (size_t)m->n_logit_rows_max * c->n_vocab, sizeof(float), &ok);
    unsigned in = 0, ff = 0;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct layer *y = &m->layers[i];
        in |= layer_in_format(m->k, y) | layer_ff_format(m->k, y) | m->k->weight_act_format(y->o);
        ff |= m->k->weight_act_format(y->down);
    }
    m->act = work_act(m, m->n_tokens_max, size_max(c->dim, q_dim), in, &ok);
    m->act_ff = work_act(m, m->n_tokens_max, c->n_ff, ff, &ok);
    m->out_act = work_act(m, m->n_logit_rows_max, c->dim, m->k->weight_act_format(m->output), &ok);
    if (!ok)
        return err_set(e, ERR_LOAD, "no memory for the work buffers of a step of %u tokens; lower --max-batch-tokens", m->n_tokens_max);
    return true;
}

struct model *model_open(const struct model_options *o, struct tokenizer **tokenizer, struct err *e) {
    struct tensor_file *f = tensor_file_open(o->path, e);
    if (!f) return NULL;
    struct model *m = calloc(1, sizeof *m);
    ASSERT(m);
    m->k = o->kernels;
    m->tp = o->tp;
    m->n_tokens_max = o->n_tokens_max;
    m->n_seqs_max = o->n_seqs_max;
    m->n_logit_rows_max = o->n_logit_rows_max;
    *tokenizer = NULL;
    bool ok = model_config_read(f, &m->c, e);
    if (ok && m->c.final_softcap != 0)
        ok = err_set(e, ERR_LOAD, "this model caps its final logits (final_logit_softcapping), which is not supported yet");
    if (ok && o->on_progress) o->on_progress(o->progress_arg, "tokenizer", 0);
    ok = ok && (*tokenizer = tensor_file_tokenizer(f, e)) && model_load(m, o, f, e);
    if (ok && !tensor_file_unchanged(f)) ok = err_set(e, ERR_LOAD, "the model file changed while it was read; start again");
    if (ok) {
        model_plan_kv(m, o->kv_type);
        ok = model_alloc_work(m, e);
    }
    tensor_file_close(f);
    if (ok) return m;
    if (*tokenizer) tokenizer_close(*tokenizer);
    *tokenizer = NULL;
    model_close(m);
    return NULL;
}

static void work_free(struct model *m, void *p, size_t count, size_t bytes) {
    if (p) m->k->buf_free(m->k, p, count * bytes);
}

void model_close(struct model *m) {
    const struct model_config *c = &m->c;
    size_t t = m->n_tokens_max, q_dim = (size_t)c->n_heads * c->head_dim, kv_dim = (size_t)c->n_kv_heads * c->head_dim;
    model_unload(m);
    work_free(m, m->h, t * c->dim, sizeof(float));
    work_free(m, m->qkv, t * (q_dim + 2 * kv_dim), sizeof(float));
    work_free(m, m->attn, t * q_dim, sizeof(float));
    work_free(m, m->y, t * c->dim, sizeof(float));
    for (uint32_t kind = 0; kind < LAYER_KINDS; kind++) {
        work_free(m, m->rope_cos[kind], t * HEAD_DIM_MAX / 2, sizeof(float));
        work_free(m, m->rope_sin[kind], t * HEAD_DIM_MAX / 2, sizeof(float));
    }
    work_free(m, m->kv_rows, m->n_seqs_max, sizeof *m->kv_rows);
    work_free(m, m->out_h, (size_t)m->n_logit_rows_max * c->dim, sizeof(float));
    work_free(m, m->logits, (size_t)m->n_logit_rows_max * c->n_vocab, sizeof(float));
    work_free(m, m->slab, m->slab_bytes, 1);
    struct act *acts[] = {m->act, m->act_ff, m->out_act};
    for (size_t i = 0; i < ARRAY_COUNT(acts); i++)
        if (acts[i]) m->k->act_free(m->k, acts[i]);
    free(m);
}

bool model_kv_alloc(struct model *m, uint32_t n_pages, struct err *e) {
    m->slab_bytes = (size_t)n_pages * m->plan.page_bytes;
    m->slab = m->k->buf_alloc(m->k, m->slab_bytes);
    if (!m->slab) return err_set(e, ERR_LOAD, "no memory for %zu MiB of KV cache; lower --kv-memory", m->slab_bytes >> 20);
    for (uint32_t i = 0; i < m->c.n_layers; i++) m->layers[i].kv.slab = m->slab;
    return true;
}

/* ---- The layer loop ---- */

static void layer_attention(struct model *m, const struct layer *y, uint32_t layer_kind, const struct model_batch *b) {
    const struct model_config *c = &m->c;
    struct kernels *k = m->k;
    uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim, stride = q_dim + 2 * kv_dim;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct model_batch_seq *s = &b->seqs[i];
        m->kv_rows[i] = (struct kv_rows){.row0 = s->row0,
                                         .n_rows = s->n_rows,
                                         .pos0 = s->pos0,
                                         .pages = s->table[y->kind] + y->unit,
                                         .page_stride = m->plan.units[y->kind]};
    }
    struct matmul qkv[3] = {{y->q, m->qkv, stride}, {y->k, m->qkv + q_dim, stride}, {y->v, m->qkv + q_dim + kv_dim, stride}};
    k->matmul(k, qkv, 3, m->act, b->n_tokens);

    const struct rope_config *rope = &c->rope[layer_kind];
    struct qkv_post post = {.qkv = m->qkv, .stride = stride, .n_heads = c->n_heads, .q_norm = y->q_norm, .k_norm = y->k_norm,
                            .norm_eps = c->norm_eps, .rope = rope->kind, .rope_dim = rope->dim, .cos = m->rope_cos[layer_kind],
                            .sin = m->rope_sin[layer_kind], .q_scale = c->q_scale, .kv = &y->kv, .seqs = m->kv_rows, .n_seqs = b->n_seqs};
    k->qkv_post(k, &post);

    struct attention a = {.q = m->qkv, .q_stride = stride, .out = m->attn, .out_stride = q_dim, .n_heads = c->n_heads,
                          .window = layer_kind == LAYER_WINDOW ? c->window : 0, .softcap = c->attn_softcap, .kv = &y->kv,
                          .seqs = m->kv_rows, .n_seqs = b->n_seqs};
    k->attention(k, &a);

    k->act_pack(k, m->attn, q_dim, b->n_tokens, q_dim, m->act, k->weight_act_format(y->o));
    k->matmul(k, &(struct matmul){y->o, m->y, c->dim}, 1, m->act, b->n_tokens);
    m->tp->all_reduce(m->tp, m->y, (size_t)b->n_tokens * c->dim);
}

void model_forward(struct model *m, const struct model_batch *b) {
    const struct model_config *c = &m->c;
    struct kernels *k = m->k;
    ASSERT(b->n_tokens <= m->n_tokens_max && b->n_seqs <= m->n_seqs_max);
    for (uint32_t kind = 0; kind < LAYER_KINDS; kind++)
        if (c->rope[kind].dim)
            k->rope_table(k, b->positions, b->n_tokens, c->rope[kind].inv_freq, c->rope[kind].dim / 2, c->rope[kind].mscale,
                          m->rope_cos[kind], m->rope_sin[kind]);
    k->embed(k, m->embed, b->ids, b->n_tokens, c->embed_scale, m->h);
    k->norm_pack(k, m->h, m->layers[0].attn_norm, c->norm_eps, b->n_tokens, c->dim, m->act, layer_in_format(k, &m->layers[0]));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct layer *y = &m->layers[i];
        const struct layer *next = i + 1 < c->n_layers ? y + 1 : NULL;
        layer_attention(m, y, c->layer_kind[i], b);
        k->residual_norm_pack(k, m->h, m->y, y->attn_post_norm, y->ffn_norm, c->norm_eps, b->n_tokens, c->dim, m->act,
                              layer_ff_format(k, y));
        k->matmul_gated(k, y->gate, y->up, c->activation, m->act, b->n_tokens, m->act_ff, k->weight_act_format(y->down));
        k->matmul(k, &(struct matmul){y->down, m->y, c->dim}, 1, m->act_ff, b->n_tokens);
        m->tp->all_reduce(m->tp, m->y, (size_t)b->n_tokens * c->dim);
        k->residual_norm_pack(k, m->h, m->y, y->ffn_post_norm, next ? next->attn_norm : NULL, c->norm_eps, b->n_tokens, c->dim, m->act,
                              next ? layer_in_format(k, next) : 0);
    }
}

const float *model_logits(struct model *m, const uint32_t *rows, uint32_t n_rows) {
    const struct model_config *c = &m->c;
    struct kernels *k = m->k;
    ASSERT(n_rows <= m->n_logit_rows_max);
    k->gather_rows(k, m->h, rows, n_rows, c->dim, m->out_h);
    k->norm_pack(k, m->out_h, m->output_norm, c->norm_eps, n_rows, c->dim, m->out_act, k->weight_act_format(m->output));
    k->matmul(k, &(struct matmul){m->output, m->logits, c->n_vocab}, 1, m->out_act, n_rows);
    return m->logits;
}

const struct model_config *model_config_of(const struct model *m) { return &m->c; }
const struct model_kv_plan *model_kv_plan(const struct model *m) { return &m->plan; }
size_t model_weight_bytes(const struct model *m) { return m->weight_bytes; }
size_t model_work_bytes(const struct model *m) { return m->work_bytes; }
uint64_t model_n_params(const struct model *m) { return m->n_params; }
const uint8_t *model_file_hash(const struct model *m) { return m->file_hash; }
