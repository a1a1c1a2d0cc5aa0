/* config_hf.c - a struct model_config from a Hugging Face config.json.
 *
 * What transformers' configuration class of the model_type reads is read here, with the same defaults; what it
 * ignores is ignored. Members that would change the arithmetic in a way that the layer loop does not know are
 * refused by name unless they are null, false, zero or empty.
 *
 * Owner: the thread that loads the model. No state, no allocation.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const refused[] = {
    "attention_bias",
    "mlp_bias",
    "attention_out_bias",
    "use_bidirectional_attention",
    "is_encoder_decoder",
    "add_cross_attention",
    "quantization_config",
    "compression_config",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "no_rope_layers",
    "auto_map",
    "text_config",
    "vision_config",
    "pruned_heads",
};

static bool check_refused(const struct hf *s) {
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        if (hf_is_neutral(hf_member(s->config, refused[i]), false)) continue;
        return err_set_param(s->e, ERR_LOAD, refused[i],
                             "config.json: '%s' asks for something that Choir does not have", refused[i]);
    }
    if (!hf_is_neutral(hf_member(s->config, "partial_rotary_factor"), true)) {
        return err_set_param(s->e, ERR_LOAD, "partial_rotary_factor", "config.json: 'partial_rotary_factor' is not 1");
    }
    if (!s->family->hf_windows && !hf_is_neutral(hf_member(s->config, "sliding_window"), false)) {
        return err_set_param(s->e, ERR_LOAD, "sliding_window",
                             "config.json: 'sliding_window' has no meaning for model_type '%s'", s->family->model_type);
    }
    return true;
}

/* ---- Fields ---- */

/* Where config.json is silent: the class's default, or what follows from other fields. Those come first in `order`. */
static int64_t field_default(const struct hf *s, const struct model_config *c, enum field field) {
    int64_t value = s->family->hf_default[field];
    /* null is written to ask for the derived value */
    bool null = json_is_null(json_object_get(s->config, config_fields[field].hf));
    if (field == FIELD_KV_HEADS && (value == 0 || null)) return c->n_heads;
    if (field == FIELD_HEAD_DIM && (value == 0 || null))
        return c->dim % c->n_heads == 0 ? (int64_t)(c->dim / c->n_heads) : -1;
    return value;
}

static bool read_fields(const struct hf *s, struct model_config *c) {
    static const enum field order[FIELDS] = {FIELD_LAYERS, FIELD_DIM,     FIELD_HEADS,    FIELD_FF,
                                             FIELD_VOCAB,  FIELD_CONTEXT, FIELD_KV_HEADS, FIELD_HEAD_DIM};
    const char *names[FIELDS];
    for (size_t i = 0; i < FIELDS; i++) names[i] = config_fields[i].hf;
    for (size_t i = 0; i < FIELDS; i++) {
        enum field field = order[i];
        int64_t value = field_default(s, c, field);
        if (!hf_opt_integer(s, s->config, names[field], &value)) return false;
        if (value == -1 && !hf_member(s->config, names[field])) {
            return err_set_param(
                s->e, ERR_LOAD, "num_attention_heads",
                "config.json: 'num_attention_heads' does not divide 'hidden_size', and 'head_dim' is missing");
        }
        if (!config_set_field(c, field, value, names[field], s->e)) return false;
    }
    return config_check_fields(c, names, s->e);
}

static bool read_activation(const struct hf *s, struct model_config *c) {
    const char *key = s->family->gemma ? "hidden_activation" : "hidden_act";
    const char *name = s->family->gemma ? "gelu_pytorch_tanh" : "silu";
    if (!hf_opt_string(s, s->config, key, &name)) return false;
    if (strcmp(name, "silu") == 0) {
        c->activation = ACTIVATION_SILU;
    } else if (strcmp(name, "gelu_pytorch_tanh") == 0) {
        c->activation = ACTIVATION_GELU_TANH;
    } else {
        return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is '%s'; silu and gelu_pytorch_tanh can be loaded",
                             key, name_shown(name_of(name, strlen(name))).text);
    }
    return true;
}

static bool read_scalars(const struct hf *s, struct model_config *c) {
    double eps = 1e-6, scalar = s->family->gemma ? 256 : c->head_dim, attn = 0, final = 0;
    bool tied = s->family->hf_tied;
    if (!hf_opt_real(s, s->config, "rms_norm_eps", 1e-12, 0.1, &eps) || !hf_opt_bool(s, "tie_word_embeddings", &tied))
        return false;
    if (s->family->gemma && (!hf_opt_real(s, s->config, "query_pre_attn_scalar", 1e-3, 1e6, &scalar) ||
                             !hf_opt_real(s, s->config, "attn_logit_softcapping", 0, 1e6, &attn) ||
                             !hf_opt_real(s, s->config, "final_logit_softcapping", 0, 1e6, &final))) {
        return false;
    }
    c->norm_eps = (float)eps;
    c->q_scale = (float)(1 / sqrt(scalar));
    c->norm_plus_one = s->family->gemma;
    c->attn_softcap = (float)attn;
    c->final_softcap = (float) final;
    c->tied_output = tied;
    return true;
}

/* ---- Window layers ---- */

/* layer_types, or what the class makes of sliding_window_pattern (Gemma) or max_window_layers (Qwen). */
static bool read_layer_kinds(const struct hf *s, struct model_config *c, bool use_window) {
    const json_t *types = hf_member(s->config, "layer_types");
    int64_t period = 6, first = 28;
    if (types && (!json_is_array(types) || json_array_size(types) != c->n_layers)) {
        return err_set_param(s->e, ERR_LOAD, "layer_types",
                             "config.json: 'layer_types' is not an array of %" PRIu32 " strings", c->n_layers);
    }
    if (!hf_opt_integer(s, s->config, "sliding_window_pattern", &period)) return false;
    if (!hf_opt_integer(s, s->config, "max_window_layers", &first)) return false;
    if (period < 1)
        return err_set_param(s->e, ERR_LOAD, "sliding_window_pattern",
                             "config.json: 'sliding_window_pattern' is %" PRId64, period);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        bool window = use_window && (s->family->gemma ? (i + 1) % period != 0 : i >= first);
        if (types) {
            const char *type = json_string_value(json_array_get(types, i));
            window = type && strcmp(type, "sliding_attention") == 0;
            if (!window && (!type || strcmp(type, "full_attention") != 0)) {
                return err_set_param(s->e, ERR_LOAD, "layer_types",
                                     "config.json: 'layer_types' has something else than "
                                     "full_attention and sliding_attention for layer %" PRIu32,
                                     i);
            }
        }
        if (window && !use_window) {
            return err_set_param(s->e, ERR_LOAD, "layer_types",
                                 "config.json: 'layer_types' has sliding_attention without a 'sliding_window'");
        }
        c->layer_kind[i] = window ? LAYER_WINDOW : LAYER_FULL;
    }
    return true;
}

static bool read_windows(const struct hf *s, struct model_config *c) {
    if (!s->family->hf_windows) return true; /* all layers are LAYER_FULL, which is 0 */
    int64_t window = json_is_null(json_object_get(s->config, "sliding_window")) ? 0 : 4096;
    bool use_window = window != 0;
    if (!hf_opt_integer(s, s->config, "sliding_window", &window)) return false;
    if (!s->family->gemma) {
        bool asked = false;
        if (!hf_opt_bool(s, "use_sliding_window", &asked)) return false;
        use_window = use_window && asked;
    }
    if (use_window && (window < 1 || window > CONTEXT_MAX)) {
        return err_set_param(s->e, ERR_LOAD, "sliding_window",
                             "config.json: 'sliding_window' is %" PRId64 "; 1 to %d can be loaded", window,
                             CONTEXT_MAX);
    }
    if (!read_layer_kinds(s, c, use_window)) return false;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (c->layer_kind[i] == LAYER_WINDOW) c->window = (uint32_t)window;
    }
    return true;
}

bool config_read_hf(const struct tensor_file *f, struct model_config *c, struct err *e) {
    const char *model_type = json_string_value(json_object_get(f->config, "model_type"));
    struct hf s = {.config = f->config, .e = e};
    s.family = model_type ? config_family_of_model_type(model_type) : NULL;
    if (!s.family) {
        return err_set_param(e, ERR_LOAD, "model_type",
                             "config.json: 'model_type' is '%s'; llama, qwen3 and gemma3_text can be loaded",
                             model_type ? name_shown(name_of(model_type, strlen(model_type))).text : "missing");
    }
    if (!check_refused(&s) || !read_fields(&s, c)) return false;
    config_set_family(c, s.family);
    return read_activation(&s, c) && read_scalars(&s, c) && read_windows(&s, c) && config_read_hf_rope(&s, c);
}
