/* model_int.h - the model's data, private to engine/model/: every buffer with its shape. */
#ifndef CHOIR_MODEL_INT_H
#define CHOIR_MODEL_INT_H

#include "engine/model/model.h"

struct layer {
    struct weight *q, *k, *v, *o;       /* [n_heads*head_dim | n_kv*head_dim | n_kv*head_dim][dim], [dim][n_heads*head_dim] */
    struct weight *gate, *up, *down;    /* [n_ff][dim] twice, [dim][n_ff] */
    float *attn_norm, *ffn_norm;        /* [dim] */
    float *attn_post_norm, *ffn_post_norm; /* [dim] or NULL */
    float *q_norm, *k_norm;             /* [head_dim] or NULL */
    struct kv_layer kv;
    uint32_t kind, unit;                /* dense kind; which page of a block holds this layer */
};

struct model {
    struct kernels *k;
    struct tp *tp;
    struct model_config c;
    struct model_kv_plan plan;
    uint32_t n_tokens_max, n_seqs_max, n_logit_rows_max;
    uint32_t kind_of[LAYER_KINDS];      /* layer kind -> dense kind */

    struct weight *embed, *output;      /* [n_vocab][dim]; equal when tied */
    float *output_norm;                 /* [dim] */
    struct layer *layers;               /* [n_layers] */
    size_t weight_bytes, work_bytes;
    uint64_t n_params;
    uint8_t file_hash[16];

    void *slab;                         /* [n_pages][page_bytes] */
    size_t slab_bytes;

    /* one step's activations */
    float *h;                           /* [n_tokens][dim] residual stream */
    float *qkv;                         /* [n_tokens][(n_heads + 2 n_kv) * head_dim] */
    float *attn;                        /* [n_tokens][n_heads * head_dim] */
    float *y;                           /* [n_tokens][dim] */
    float *rope_cos[LAYER_KINDS], *rope_sin[LAYER_KINDS]; /* [n_tokens][rope dim / 2] by layer kind */
    struct act *act;                    /* [n_tokens][max(dim, n_heads * head_dim)] */
    struct act *act_ff;                 /* [n_tokens][n_ff] */
    struct kv_rows *kv_rows;            /* [n_seqs] */
    float *out_h;                       /* [n_logit_rows][dim] */
    struct act *out_act;                /* [n_logit_rows][dim] */
    float *logits;                      /* [n_logit_rows][n_vocab] */
};

/* load.c: fills config, weights and norms from the file. */
bool model_load(struct model *m, const struct model_options *o, const struct tensor_file *f, struct err *e);
void model_unload(struct model *m);

#endif
