/* config.h - what distinguishes one decoder family from another, as data.
 *
 * model_config_read fills it from GGUF metadata or a Hugging Face config.json (older rope_theta/rope_scaling,
 * newer rope_parameters) and refuses values that no model has (zero heads, odd rope dims, counts over the
 * limits below) before anything is sized by them. What the layer loop does not know (biases, experts, a rope type, a
 * tensor that nobody would read) is refused by name, never ignored. The layer loop (model.c) has no family names in it.
 */
#ifndef CHOIR_MODEL_CONFIG_H
#define CHOIR_MODEL_CONFIG_H

#include "engine/model/tensor_file.h"

enum {
    LAYERS_MAX = 512,
    DIM_MAX = 1 << 17,
    FF_MAX = 1 << 20,
    HEADS_MAX = 1024,
    HEAD_DIM_MAX = 512,
    VOCAB_MAX = 1 << 22,
    CONTEXT_MAX = 1 << 24,
    ROPE_KINDS_MAX = 2,
};

enum layer_kind { LAYER_FULL, LAYER_WINDOW, LAYER_KINDS };

struct rope_config {
    uint32_t dim; /* rotated dimensions of a head */
    enum rope_kind kind;
    float mscale;                      /* factor on cos and sin (yarn); 1 otherwise */
    double inv_freq[HEAD_DIM_MAX / 2]; /* [dim / 2], scaling (linear, llama3, yarn, rope_freqs.weight) applied */
};

struct model_config {
    char arch[32]; /* "gemma3", "llama", "qwen3": for people */
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
    uint32_t context_len;
    float norm_eps;
    float embed_scale; /* Gemma: sqrt(dim), else 1 */
    float q_scale;     /* 1/sqrt(head_dim), or the file's query_pre_attn_scalar */
    enum activation activation;
    bool qk_norm;
    bool post_norms;    /* a norm after attention and after the MLP, before the residual (Gemma) */
    bool norm_plus_one; /* norm weights in the file lack the +1 (Gemma safetensors), q_norm and k_norm too */
    bool tied_output;   /* lm_head is the embedding */
    float attn_softcap, final_softcap; /* 0: none */
    uint32_t window;                   /* positions a LAYER_WINDOW layer sees, its own included; 0 when there is none */
    uint8_t layer_kind[LAYERS_MAX];    /* [n_layers] of enum layer_kind */
    struct rope_config rope[LAYER_KINDS]; /* by layer kind; both are always filled */
};

bool model_config_read(const struct tensor_file *f, struct model_config *c, struct err *e);

/* Names of a layer's tensors in this file ("blk.3.attn_q.weight" or "model.layers.3.self_attn.q_proj.weight"). */
enum tensor_role {
    TENSOR_EMBED,
    TENSOR_OUTPUT_NORM,
    TENSOR_OUTPUT,
    TENSOR_ATTN_NORM,
    TENSOR_Q,
    TENSOR_K,
    TENSOR_V,
    TENSOR_O,
    TENSOR_Q_NORM,
    TENSOR_K_NORM,
    TENSOR_ATTN_POST_NORM,
    TENSOR_FFN_NORM,
    TENSOR_GATE,
    TENSOR_UP,
    TENSOR_DOWN,
    TENSOR_FFN_POST_NORM,
    TENSOR_ROLES
};
/* Finds and checks [n_rows][n_cols] (n_cols 0: a vector of n_rows), a type that kernels read, and data aligned for it.
 * NULL with *e naming the tensor. TENSOR_OUTPUT of a model with tied_output is its embedding. */
const struct tensor *model_tensor(const struct tensor_file *f, const struct model_config *c, enum tensor_role role,
                                  uint32_t layer, uint32_t n_rows, uint32_t n_cols, struct err *e);

#endif
