/* config.c - the families that the layer loop knows, the ranges of their dimensions, and the way to read both
 * formats into a struct model_config.
 *
 * To add a family: a row in `families`, what it needs in the two readers, its tensor names in tensor_names.c, and
 * a checkpoint in tests/fixtures/models.
 *
 * Owner: the thread that loads the model. No state.
 *
 * Invariants
 * 1. A model_config that was read has every count within config_fields, n_heads a multiple of n_kv_heads,
 *    head_dim a multiple of 16, and both ropes filled.
 * 2. Nothing here allocates.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

const struct field_info config_fields[FIELDS] = {
    [FIELD_LAYERS] = {"block_count", "num_hidden_layers", offsetof(struct model_config, n_layers), 1, LAYERS_MAX},
    [FIELD_DIM] = {"embedding_length", "hidden_size", offsetof(struct model_config, dim), 16, DIM_MAX},
    [FIELD_HEADS] = {"attention.head_count", "num_attention_heads", offsetof(struct model_config, n_heads), 1,
                     HEADS_MAX},
    [FIELD_KV_HEADS] = {"attention.head_count_kv", "num_key_value_heads", offsetof(struct model_config, n_kv_heads), 1,
                        HEADS_MAX},
    [FIELD_HEAD_DIM] = {"attention.key_length", "head_dim", offsetof(struct model_config, head_dim), 16, HEAD_DIM_MAX},
    [FIELD_FF] = {"feed_forward_length", "intermediate_size", offsetof(struct model_config, n_ff), 16, FF_MAX},
    [FIELD_VOCAB] = {"vocab_size", "vocab_size", offsetof(struct model_config, n_vocab), 1, VOCAB_MAX},
    [FIELD_CONTEXT] = {"context_length", "max_position_embeddings", offsetof(struct model_config, context_len), 1,
                       CONTEXT_MAX},
};

static const struct family families[] = {
    {
        .arch = "llama",
        .model_type = "llama",
        .gguf_rope = ROPE_INTERLEAVED,
        .activation = ACTIVATION_SILU,
        .hf_default = {[FIELD_LAYERS] = 32,
                       [FIELD_DIM] = 4096,
                       [FIELD_HEADS] = 32,
                       [FIELD_FF] = 11008,
                       [FIELD_VOCAB] = 32000,
                       [FIELD_CONTEXT] = 2048},
    },
    {
        .arch = "qwen3",
        .model_type = "qwen3",
        .gguf_rope = ROPE_NEOX,
        .activation = ACTIVATION_SILU,
        .qk_norm = true,
        .hf_windows = true,
        .hf_default = {[FIELD_LAYERS] = 32,
                       [FIELD_DIM] = 4096,
                       [FIELD_HEADS] = 32,
                       [FIELD_KV_HEADS] = 32,
                       [FIELD_HEAD_DIM] = 128,
                       [FIELD_FF] = 22016,
                       [FIELD_VOCAB] = 151936,
                       [FIELD_CONTEXT] = 32768},
    },
    {
        .arch = "gemma3",
        .model_type = "gemma3_text",
        .gguf_rope = ROPE_NEOX,
        .activation = ACTIVATION_GELU_TANH,
        .qk_norm = true,
        .gemma = true,
        .hf_windows = true,
        .hf_tied = true,
        .hf_default = {[FIELD_LAYERS] = 26,
                       [FIELD_DIM] = 2304,
                       [FIELD_HEADS] = 8,
                       [FIELD_KV_HEADS] = 4,
                       [FIELD_HEAD_DIM] = 256,
                       [FIELD_FF] = 9216,
                       [FIELD_VOCAB] = 262208,
                       [FIELD_CONTEXT] = 131072},
    },
};

const struct family *config_family_of_arch(const char *arch, size_t n) {
    for (size_t i = 0; i < ARRAY_COUNT(families); i++) {
        if (strlen(families[i].arch) == n && memcmp(families[i].arch, arch, n) == 0) return &families[i];
    }
    return NULL;
}

const struct family *config_family_of_model_type(const char *model_type) {
    for (size_t i = 0; i < ARRAY_COUNT(families); i++) {
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    }
    return NULL;
}

void config_set_family(struct model_config *c, const struct family *family) {
    memcpy(c->arch, family->arch, strlen(family->arch) + 1);
    c->activation = family->activation;
    c->qk_norm = family->qk_norm;
    c->post_norms = family->gemma;
    /* transformers casts the factor to the type of the weights; the reference here is fp32. */
    c->embed_scale = family->gemma ? (float)sqrt((double)c->dim) : 1.0f;
}

uint32_t *config_field(struct model_config *c, enum field field) {
    return (uint32_t *)(void *)((char *)c + config_fields[field].offset);
}

bool config_set_field(struct model_config *c, enum field field, int64_t value, const char *key, struct err *e) {
    const struct field_info *info = &config_fields[field];
    if (value < info->min || value > info->max) {
        return err_set_param(e, ERR_LOAD, key, "'%s' is %" PRId64 "; %" PRIu32 " to %" PRIu32 " can be loaded", key,
                             value, info->min, info->max);
    }
    *config_field(c, field) = (uint32_t)value;
    return true;
}

bool config_check_real(double v, double min, double max, const char *key, struct err *e) {
    if (v >= min && v <= max) return true;
    return err_set_param(e, ERR_LOAD, key, "'%s' is %g; %g to %g can be loaded", key, v, min, max);
}

bool config_check_fields(const struct model_config *c, const char *const *keys, struct err *e) {
    if (c->n_heads % c->n_kv_heads != 0) {
        return err_set_param(e, ERR_LOAD, keys[FIELD_KV_HEADS], "'%s' (%" PRIu32 ") does not divide '%s' (%" PRIu32 ")",
                             keys[FIELD_KV_HEADS], c->n_kv_heads, keys[FIELD_HEADS], c->n_heads);
    }
    if (c->head_dim % 16 != 0) {
        return err_set_param(e, ERR_LOAD, keys[FIELD_HEAD_DIM], "'%s' is %" PRIu32 ", not a multiple of 16",
                             keys[FIELD_HEAD_DIM], c->head_dim);
    }
    if (c->dim % 16 != 0) {
        return err_set_param(e, ERR_LOAD, keys[FIELD_DIM], "'%s' is %" PRIu32 ", not a multiple of 16", keys[FIELD_DIM],
                             c->dim);
    }
    return true;
}

bool model_config_read(const struct tensor_file *f, struct model_config *c, struct err *e) {
    *c = (struct model_config){0};
    bool ok = tensor_file_is_gguf(f) ? config_read_gguf(f, c, e) : config_read_hf(f, c, e);
    return ok && tensor_names_check(f, c, e);
}
