/* tensor_names.c - which tensor of a file plays which role, in GGUF's names and in Hugging Face's.
 *
 * Owner: the thread that loads the model. No state.
 *
 * Invariants
 * 1. A tensor that model_tensor returns has the asked shape, a type of DT_F32..DT_Q6_K, and data aligned for it.
 * 2. After tensor_names_check no tensor of the file goes unread, but those named in `unread`.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 96 };

/* Names after "blk.N." / "model.layers.N." where the role belongs to a layer. */
static const struct role {
    const char *gguf, *hf;
    const char *hf_post_norms; /* the other name in models with post norms, or NULL */
} roles[TENSOR_ROLES] = {
    [TENSOR_EMBED] = {"token_embd.weight", "model.embed_tokens.weight", NULL},
    [TENSOR_OUTPUT_NORM] = {"output_norm.weight", "model.norm.weight", NULL},
    [TENSOR_OUTPUT] = {"output.weight", "lm_head.weight", NULL},
    [TENSOR_ATTN_NORM] = {"attn_norm.weight", "input_layernorm.weight", NULL},
    [TENSOR_Q] = {"attn_q.weight", "self_attn.q_proj.weight", NULL},
    [TENSOR_K] = {"attn_k.weight", "self_attn.k_proj.weight", NULL},
    [TENSOR_V] = {"attn_v.weight", "self_attn.v_proj.weight", NULL},
    [TENSOR_O] = {"attn_output.weight", "self_attn.o_proj.weight", NULL},
    [TENSOR_Q_NORM] = {"attn_q_norm.weight", "self_attn.q_norm.weight", NULL},
    [TENSOR_K_NORM] = {"attn_k_norm.weight", "self_attn.k_norm.weight", NULL},
    [TENSOR_ATTN_POST_NORM] = {"post_attention_norm.weight", "post_attention_layernorm.weight", NULL},
    [TENSOR_FFN_NORM] = {"ffn_norm.weight", "post_attention_layernorm.weight", "pre_feedforward_layernorm.weight"},
    [TENSOR_GATE] = {"ffn_gate.weight", "mlp.gate_proj.weight", NULL},
    [TENSOR_UP] = {"ffn_up.weight", "mlp.up_proj.weight", NULL},
    [TENSOR_DOWN] = {"ffn_down.weight", "mlp.down_proj.weight", NULL},
    [TENSOR_FFN_POST_NORM] = {"post_ffw_norm.weight", "post_feedforward_layernorm.weight", NULL},
};

static bool role_in_layer(enum tensor_role role) {
    return role >= TENSOR_ATTN_NORM;
}

/* Whether a model of this configuration reads such a tensor at all. */
static bool role_used(const struct model_config *c, enum tensor_role role) {
    switch (role) {
    case TENSOR_OUTPUT:
        return !c->tied_output;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM:
        return c->qk_norm;
    case TENSOR_ATTN_POST_NORM:
    case TENSOR_FFN_POST_NORM:
        return c->post_norms;
    default:
        return true;
    }
}

static void role_name(const struct tensor_file *f, const struct model_config *c, enum tensor_role role, uint32_t layer,
                      char out[NAME_BYTES]) {
    const struct role *r = &roles[role];
    const char *name = f->gguf ? r->gguf : c->post_norms && r->hf_post_norms ? r->hf_post_norms : r->hf;
    if (!role_in_layer(role)) {
        snprintf(out, NAME_BYTES, "%s", name);
    } else {
        snprintf(out, NAME_BYTES, "%s%" PRIu32 ".%s", f->gguf ? "blk." : "model.layers.", layer, name);
    }
}

static const struct tensor *tensor_refuse(const char *name, struct err *e, const char *why) {
    err_set_param(e, ERR_LOAD, name, "Tensor '%s' %s", name, why);
    return NULL;
}

const struct tensor *model_tensor(const struct tensor_file *f, const struct model_config *c, enum tensor_role role,
                                  uint32_t layer, uint32_t n_rows, uint32_t n_cols, struct err *e) {
    char name[NAME_BYTES], why[160];
    if (role == TENSOR_OUTPUT && c->tied_output) role = TENSOR_EMBED;
    role_name(f, c, role, layer, name);
    const struct tensor *t = tensor_file_find(f, name);
    if (!t) return tensor_refuse(name, e, "is missing");
    bool vector = n_cols == 0;
    if (t->n_dims != (vector ? 1 : 2) || t->shape[0] != n_rows || (!vector && t->shape[1] != n_cols)) {
        snprintf(why, sizeof why,
                 "has %" PRIu32 " dimensions [%" PRIu64 "][%" PRIu64 "], not [%" PRIu32 "][%" PRIu32
                 "] as the configuration says",
                 t->n_dims, t->shape[0], t->shape[1], n_rows, n_cols);
        return tensor_refuse(name, e, why);
    }
    bool plain = t->type == DT_F32 || t->type == DT_F16 || t->type == DT_BF16;
    if (t->type == DT_COUNT || t->type == DT_I8 || (vector && !plain)) {
        snprintf(why, sizeof why, "is of type %s, which cannot be loaded as %s", t->type_name,
                 vector ? "a vector" : "a matrix");
        return tensor_refuse(name, e, why);
    }
    /* Blocks of quantized weights hold 16-bit scales. */
    if ((uintptr_t)t->data % (t->type == DT_F32 ? 4 : 2) != 0) {
        return tensor_refuse(name, e,
                             "does not start at a multiple of its element's size in the file; write the file anew");
    }
    return t;
}

/* ---- Tensors that nobody reads ---- */

/* Buffers that old checkpoints carry, which follow from the configuration. rope_freqs.weight: config_gguf.c has it. */
static bool unread(const struct tensor_file *f, const struct model_config *c, const char *name) {
    static const char buffer[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name), n_buffer = sizeof buffer - 1;
    if (f->gguf) return strcmp(name, "rope_freqs.weight") == 0;
    if (c->tied_output && strcmp(name, roles[TENSOR_OUTPUT].hf) == 0) return true; /* check_tied */
    return n > n_buffer && strcmp(name + n - n_buffer, buffer) == 0;
}

/* A folder may store the tied matrix under both names; then they must be the same bytes. */
static bool check_tied(const struct tensor_file *f, struct err *e) {
    const struct tensor *head = tensor_file_find(f, roles[TENSOR_OUTPUT].hf);
    const struct tensor *embed = tensor_file_find(f, roles[TENSOR_EMBED].hf);
    if (!head || !embed) return true;
    if (head->type == embed->type && head->n_bytes == embed->n_bytes &&
        memcmp(head->data, embed->data, head->n_bytes) == 0) {
        return true;
    }
    return err_set_param(
        e, ERR_LOAD, "tie_word_embeddings",
        "config.json: 'tie_word_embeddings' is true, but 'lm_head.weight' differs from 'model.embed_tokens.weight'");
}

bool tensor_names_check(const struct tensor_file *f, const struct model_config *c, struct err *e) {
    bool *read = calloc(f->n_tensors + 1, sizeof *read);
    if (!read) return err_set(e, ERR_LOAD, "No memory for the list of tensors");
    for (int role = 0; role < TENSOR_ROLES; role++) {
        if (!role_used(c, (enum tensor_role)role)) continue;
        uint32_t n_layers = role_in_layer((enum tensor_role)role) ? c->n_layers : 1;
        for (uint32_t layer = 0; layer < n_layers; layer++) {
            char name[NAME_BYTES];
            role_name(f, c, (enum tensor_role)role, layer, name);
            const struct tensor *t = tensor_file_find(f, name);
            if (t) read[t - f->tensors] = true;
        }
    }
    bool ok = f->gguf || !c->tied_output || check_tied(f, e);
    for (size_t i = 0; ok && i < f->n_tensors; i++) {
        if (read[i] || unread(f, c, f->tensors[i].name)) continue;
        ok = load_err(e, f->tensor_names[i],
                      "Tensor '%s' is not known here: the model needs something that Choir does not have",
                      name_shown(f->tensor_names[i]).text);
    }
    free(read);
    return ok;
}
