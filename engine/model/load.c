/* load.c - from a checked tensor file to weights in the kernels' layout.
 *
 * Each tensor is repacked once and its file pages are dropped, so peak memory is one copy of the weights plus the
 * tensor in flight. Row-parallel matrices (o, down) carry the canonical slices of DESIGN "Exactness"; all others
 * are never split along the reduction.
 */
#include "engine/model/model_int.h"

#include <stdlib.h>

struct loader {
    struct model *m;
    const struct tensor_file *f;
    const struct model_options *o;
    struct err *e;
    uint32_t layer;
    uint64_t params_done, params_all;
};

static void loader_progress(struct loader *l, uint64_t params) {
    l->params_done += params;
    l->m->n_params += params;
    if (l->o->on_progress)
        l->o->on_progress(l->o->progress_arg, "weights", (double)l->params_done / (double)l->params_all);
}

/* A matrix [n_rows][n_cols]; split: its columns are cut by tensor parallelism. */
static struct weight *load_matrix(struct loader *l, enum tensor_role role, uint32_t n_rows, uint32_t n_cols, bool split) {
    const struct tensor *t = model_tensor(l->f, &l->m->c, role, l->layer, n_rows, n_cols, l->e);
    if (!t) return NULL;
    struct slices s = split ? slices_canonical(t->type, n_cols) : slices_single(n_cols);
    struct kernels *k = l->m->k;
    struct weight *w = k->weight_pack(k, t->type, n_rows, n_cols, t->data, dtype_row_bytes(t->type, n_cols), &s, l->e);
    if (!w) {
        struct err cause = *l->e;
        err_set(l->e, cause.code, "tensor \"%s\": %s", t->name, cause.message);
        return NULL;
    }
    tensor_file_drop(l->f, t);
    l->m->weight_bytes += k->weight_bytes(w);
    loader_progress(l, (uint64_t)n_rows * n_cols);
    return w;
}

static float *load_norm(struct loader *l, enum tensor_role role, uint32_t n) {
    const struct tensor *t = model_tensor(l->f, &l->m->c, role, l->layer, n, 0, l->e);
    if (!t) return NULL;
    float *x = l->m->k->buf_alloc(l->m->k, n * sizeof *x);
    if (!x) {
        err_set(l->e, ERR_LOAD, "no memory for tensor \"%s\"", t->name);
        return NULL;
    }
    dtype_to_f32(t->type, t->data, x, n);
    if (l->m->c.norm_plus_one)
        for (uint32_t i = 0; i < n; i++) x[i] += 1.0f;
    l->m->weight_bytes += n * sizeof *x;
    loader_progress(l, n);
    return x;
}

static bool load_layer(struct loader *l, struct layer *y) {
    const struct model_config *c = &l->m->c;
    uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    bool ok = (y->attn_norm = load_norm(l, TENSOR_ATTN_NORM, c->dim)) && (y->ffn_norm = load_norm(l, TENSOR_FFN_NORM, c->dim));
    if (c->post_norms)
        ok = ok && (y->attn_post_norm = load_norm(l, TENSOR_ATTN_POST_NORM, c->dim)) &&
             (y->ffn_post_norm = load_norm(l, TENSOR_FFN_POST_NORM, c->dim));
    if (c->qk_norm)
        ok = ok && (y->q_norm = load_norm(l, TENSOR_Q_NORM, c->head_dim)) && (y->k_norm = load_norm(l, TENSOR_K_NORM, c->head_dim));
    return ok && (y->q = load_matrix(l, TENSOR_Q, q_dim, c->dim, false)) && (y->k = load_matrix(l, TENSOR_K, kv_dim, c->dim, false)) &&
           (y->v = load_matrix(l, TENSOR_V, kv_dim, c->dim, false)) && (y->o = load_matrix(l, TENSOR_O, c->dim, q_dim, true)) &&
           (y->gate = load_matrix(l, TENSOR_GATE, c->n_ff, c->dim, false)) &&
           (y->up = load_matrix(l, TENSOR_UP, c->n_ff, c->dim, false)) && (y->down = load_matrix(l, TENSOR_DOWN, c->dim, c->n_ff, true));
}

bool model_load(struct model *m, const struct model_options *o, const struct tensor_file *f, struct err *e) {
    struct loader l = {.m = m, .f = f, .o = o, .e = e};
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const struct tensor *t = tensor_file_at(f, i);
        if (t->type < DT_COUNT) l.params_all += t->n_bytes / dtype_block_bytes(t->type) * dtype_block_len(t->type);
    }
    tensor_file_hash(f, m->file_hash);
    loader_progress(&l, 0);
    m->layers = calloc(m->c.n_layers, sizeof *m->layers);
    if (!m->layers) return err_set(e, ERR_LOAD, "no memory for %u layers", m->c.n_layers);
    if (!(m->embed = load_matrix(&l, TENSOR_EMBED, m->c.n_vocab, m->c.dim, false))) return false;
    for (l.layer = 0; l.layer < m->c.n_layers; l.layer++)
        if (!load_layer(&l, &m->layers[l.layer])) return false;
    if (!(m->output_norm = load_norm(&l, TENSOR_OUTPUT_NORM, m->c.dim))) return false;
    m->output = m->c.tied_output ? m->embed : load_matrix(&l, TENSOR_OUTPUT, m->c.n_vocab, m->c.dim, false);
    return m->output != NULL;
}

static void norm_free(struct model *m, float *x, uint32_t n) {
    if (x) m->k->buf_free(m->k, x, n * sizeof *x);
}

static void weight_free(struct model *m, struct weight *w) {
    if (w) m->k->weight_free(m->k, w);
}

void model_unload(struct model *m) {
    for (uint32_t i = 0; m->layers && i < m->c.n_layers; i++) {
        struct layer *y = &m->layers[i];
        struct weight *all[] = {y->q, y->k, y->v, y->o, y->gate, y->up, y->down};
        for (size_t j = 0; j < ARRAY_COUNT(all); j++) weight_free(m, all[j]);
        float *norms[] = {y->attn_norm, y->ffn_norm, y->attn_post_norm, y->ffn_post_norm};
        for (size_t j = 0; j < ARRAY_COUNT(norms); j++) norm_free(m, norms[j], m->c.dim);
        norm_free(m, y->q_norm, m->c.head_dim);
        norm_free(m, y->k_norm, m->c.head_dim);
    }
    free(m->layers);
    norm_free(m, m->output_norm, m->c.dim);
    if (m->output != m->embed) weight_free(m, m->output);
    weight_free(m, m->embed);
}
