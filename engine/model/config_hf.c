/* config_hf.c - a struct model_config from a Hugging Face config.json.
 *
 * What transformers' configuration class of the model_type reads is read here, with the same defaults; what it
 * ignores is ignored. Members that would change the arithmetic in a way that the layer loop does not know are
 * refused by name unless they are null, false, zero or empty.
 *
 * Rope comes in two styles: rope_theta (+ rope_local_base_freq, rope_scaling), and rope_parameters, which is flat or
 * has one object per layer type.
 *
 * Owner: the thread that loads the model. No state, no allocation.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct source {
    const json_t *config;
    const struct family *family;
    struct err *e;
};

static const json_t *member(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v; /* null is absent */
}

/* null, false, 0, "", {}, [] and 1 where `one` says that 1 is neutral. */
static bool is_neutral(const json_t *v, bool one) {
    if (!v || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == (one ? 1.0 : 0.0);
    if (json_is_string(v)) return json_string_length(v) == 0;
    return (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0);
}

static const char *const refused[] = {
    "attention_bias", "mlp_bias", "attention_out_bias", "use_bidirectional_attention", "is_encoder_decoder",
    "add_cross_attention", "quantization_config", "compression_config", "num_experts", "num_local_experts",
    "n_routed_experts", "no_rope_layers", "auto_map", "text_config", "vision_config", "pruned_heads",
};

static bool check_refused(const struct source *s) {
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        if (is_neutral(member(s->config, refused[i]), false)) continue;
        return err_set_param(s->e, ERR_LOAD, refused[i], "config.json: '%s' asks for something that Choir does not have",
                             refused[i]);
    }
    if (!is_neutral(member(s->config, "partial_rotary_factor"), true)) {
        return err_set_param(s->e, ERR_LOAD, "partial_rotary_factor", "config.json: 'partial_rotary_factor' is not 1");
    }
    if (!s->family->hf_windows && !is_neutral(member(s->config, "sliding_window"), false)) {
        return err_set_param(s->e, ERR_LOAD, "sliding_window", "config.json: 'sliding_window' has no meaning for model_type '%s'",
                             s->family->model_type);
    }
    return true;
}

/* ---- Typed reads of a member of o. True: read, or absent and *out untouched. ---- */

static bool opt_integer(const struct source *s, const json_t *o, const char *key, int64_t *out) {
    const json_t *v = member(o, key);
    if (!v) return true;
    if (!json_is_integer(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not an integer", key);
    *out = json_integer_value(v);
    return true;
}

static bool opt_real(const struct source *s, const json_t *o, const char *key, double min, double max, double *out) {
    const json_t *v = member(o, key);
    if (!v) return true;
    if (!json_is_number(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not a number", key);
    *out = json_number_value(v);
    return config_check_real(*out, min, max, key, s->e);
}

static bool opt_bool(const struct source *s, const char *key, bool *out) {
    const json_t *v = member(s->config, key);
    if (!v) return true;
    if (!json_is_boolean(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not true or false", key);
    *out = json_is_true(v);
    return true;
}

static bool opt_string(const struct source *s, const json_t *o, const char *key, const char **out) {
    const json_t *v = member(o, key);
    if (!v) return true;
    if (!json_is_string(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not a string", key);
    *out = json_string_value(v);
    return true;
}

/* ---- Fields ---- */

/* Where config.json is silent: the class's default, or what follows from other fields. Those come first in `order`. */
static int64_t field_default(const struct source *s, const struct model_config *c, enum field field) {
    int64_t value = s->family->hf_default[field];
    bool null = json_is_null(json_object_get(s->config, config_fields[field].hf)); /* written out: asks for the derived one */
    if (field == FIELD_KV_HEADS && (value == 0 || null)) return c->n_heads;
    if (field == FIELD_HEAD_DIM && (value == 0 || null)) return c->dim % c->n_heads == 0 ? (int64_t)(c->dim / c->n_heads) : -1;
    return value;
}

static bool read_fields(const struct source *s, struct model_config *c) {
    static const enum field order[FIELDS] = {FIELD_LAYERS, FIELD_DIM,     FIELD_HEADS,    FIELD_FF,
                                             FIELD_VOCAB,  FIELD_CONTEXT, FIELD_KV_HEADS, FIELD_HEAD_DIM};
    const char *names[FIELDS];
    for (size_t i = 0; i < FIELDS; i++) names[i] = config_fields[i].hf;
    for (size_t i = 0; i < FIELDS; i++) {
        enum field field = order[i];
        int64_t value = field_default(s, c, field);
        if (!opt_integer(s, s->config, names[field], &value)) return false;
        if (value == -1 && !member(s->config, names[field])) {
            return err_set_param(s->e, ERR_LOAD, "num_attention_heads",
                                 "config.json: 'num_attention_heads' does not divide 'hidden_size', and 'head_dim' is missing");
        }
        if (!config_set_field(c, field, value, names[field], s->e)) return false;
    }
    return config_check_fields(c, names, s->e);
}

static bool read_activation(const struct source *s, struct model_config *c) {
    const char *key = s->family->gemma ? "hidden_activation" : "hidden_act";
    const char *name = s->family->gemma ? "gelu_pytorch_tanh" : "silu";
    if (!opt_string(s, s->config, key, &name)) return false;
    if (strcmp(name, "silu") == 0) {
        c->activation = ACTIVATION_SILU;
    } else if (strcmp(name, "gelu_pytorch_tanh") == 0) {
        c->activation = ACTIVATION_GELU_TANH;
    } else {
        return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is '%s'; silu and gelu_pytorch_tanh can be loaded", key,
                             name_shown(name_of(name, strlen(name))).text);
    }
    return true;
}

static bool read_scalars(const struct source *s, struct model_config *c) {
    double eps = 1e-6, scalar = s->family->gemma ? 256 : c->head_dim, attn = 0, final = 0;
    bool tied = s->family->hf_tied;
    if (!opt_real(s, s->config, "rms_norm_eps", 1e-12, 0.1, &eps) || !opt_bool(s, "tie_word_embeddings", &tied)) return false;
    if (s->family->gemma && (!opt_real(s, s->config, "query_pre_attn_scalar", 1e-3, 1e6, &scalar) ||
                             !opt_real(s, s->config, "attn_logit_softcapping", 0, 1e6, &attn) ||
                             !opt_real(s, s->config, "final_logit_softcapping", 0, 1e6, &final))) {
        return false;
    }
    c->norm_eps = (float)eps;
    c->q_scale = (float)(1 / sqrt(scalar));
    c->norm_plus_one = s->family->gemma;
    c->attn_softcap = (float)attn;
    c->final_softcap = (float)final;
    c->tied_output = tied;
    return true;
}

/* ---- Window layers ---- */

/* layer_types, or what the class makes of sliding_window_pattern (Gemma) or max_window_layers (Qwen). */
static bool read_layer_kinds(const struct source *s, struct model_config *c, bool use_window) {
    const json_t *types = member(s->config, "layer_types");
    int64_t period = 6, first = 28;
    if (types && (!json_is_array(types) || json_array_size(types) != c->n_layers)) {
        return err_set_param(s->e, ERR_LOAD, "layer_types", "config.json: 'layer_types' is not an array of %" PRIu32 " strings",
                             c->n_layers);
    }
    if (!opt_integer(s, s->config, "sliding_window_pattern", &period)) return false;
    if (!opt_integer(s, s->config, "max_window_layers", &first)) return false;
    if (period < 1) return err_set_param(s->e, ERR_LOAD, "sliding_window_pattern", "config.json: 'sliding_window_pattern' is %" PRId64, period);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        bool window = use_window && (s->family->gemma ? (i + 1) % period != 0 : i >= first);
        if (types) {
            const char *type = json_string_value(json_array_get(types, i));
            window = type && strcmp(type, "sliding_attention") == 0;
            if (!window && (!type || strcmp(type, "full_attention") != 0)) {
                return err_set_param(s->e, ERR_LOAD, "layer_types", "config.json: 'layer_types' has something else than "
                                     "full_attention and sliding_attention for layer %" PRIu32, i);
            }
        }
        if (window && !use_window) {
            return err_set_param(s->e, ERR_LOAD, "layer_types", "config.json: 'layer_types' has sliding_attention without a 'sliding_window'");
        }
        c->layer_kind[i] = window ? LAYER_WINDOW : LAYER_FULL;
    }
    return true;
}

static bool read_windows(const struct source *s, struct model_config *c) {
    if (!s->family->hf_windows) return true; /* all layers are LAYER_FULL, which is 0 */
    int64_t window = json_is_null(json_object_get(s->config, "sliding_window")) ? 0 : 4096;
    bool use_window = window != 0;
    if (!opt_integer(s, s->config, "sliding_window", &window)) return false;
    if (!s->family->gemma) {
        bool asked = false;
        if (!opt_bool(s, "use_sliding_window", &asked)) return false;
        use_window = use_window && asked;
    }
    if (use_window && (window < 1 || window > CONTEXT_MAX)) {
        return err_set_param(s->e, ERR_LOAD, "sliding_window", "config.json: 'sliding_window' is %" PRId64 "; 1 to %d can be loaded",
                             window, CONTEXT_MAX);
    }
    if (!read_layer_kinds(s, c, use_window)) return false;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (c->layer_kind[i] == LAYER_WINDOW) c->window = (uint32_t)window;
    }
    return true;
}

/* ---- Rope ---- */

static const struct {
    const char *name;
    enum rope_scaling scaling;
} rope_types[] = {{"default", ROPE_PLAIN}, {"linear", ROPE_LINEAR}, {"llama3", ROPE_LLAMA3}, {"yarn", ROPE_YARN}};

/* Members of a rope object that are read; any other that is not neutral is refused. */
static const char *const rope_members[] = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
};

static bool check_rope_members(const struct source *s, const json_t *o) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value) {
        bool known = json_is_null(value) || (strcmp(key, "partial_rotary_factor") == 0 && is_neutral(value, true));
        for (size_t i = 0; i < ARRAY_COUNT(rope_members) && !known; i++) known = strcmp(rope_members[i], key) == 0;
        if (!known) {
            struct name name = name_of(key, strlen(key));
            return load_err(s->e, name, "config.json: the rope parameter '%s' asks for something that Choir does not have",
                            name_shown(name).text);
        }
    }
    return true;
}

static bool require(const struct source *s, const json_t *o, const char *key) {
    return member(o, key) || err_set_param(s->e, ERR_LOAD, key, "config.json: the rope parameter '%s' is missing", key);
}

static bool read_llama3(const struct source *s, const json_t *o, struct rope_spec *rope) {
    if (!require(s, o, "factor") || !require(s, o, "low_freq_factor") || !require(s, o, "high_freq_factor")) return false;
    if (!opt_real(s, o, "low_freq_factor", 1e-3, 1e6, &rope->low_freq_factor) ||
        !opt_real(s, o, "high_freq_factor", 1e-3, 1e6, &rope->high_freq_factor)) {
        return false;
    }
    return rope->low_freq_factor < rope->high_freq_factor ||
           err_set_param(s->e, ERR_LOAD, "high_freq_factor", "config.json: 'high_freq_factor' is not above 'low_freq_factor'");
}

static bool read_yarn(const struct source *s, const json_t *o, struct rope_spec *rope) {
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    const json_t *truncate = member(o, "truncate");
    if (truncate && !json_is_boolean(truncate)) {
        return err_set_param(s->e, ERR_LOAD, "truncate", "config.json: 'truncate' is not true or false");
    }
    rope->no_truncate = truncate && json_is_false(truncate);
    return require(s, o, "factor") && opt_real(s, o, "beta_fast", 1e-3, 1e6, &rope->beta_fast) &&
           opt_real(s, o, "beta_slow", 1e-3, 1e6, &rope->beta_slow) &&
           opt_real(s, o, "attention_factor", 1e-3, 1e3, &rope->attention_factor) &&
           opt_real(s, o, "mscale", 0, 1e3, &rope->mscale) && opt_real(s, o, "mscale_all_dim", 0, 1e3, &rope->mscale_all_dim);
}

/* One rope object (NULL: none); theta is what the members around it say. */
static bool read_rope_object(const struct source *s, const struct model_config *c, const json_t *o, double theta,
                             struct rope_spec *rope) {
    *rope = (struct rope_spec){.theta = theta, .factor = 1, .original_len = c->context_len};
    if (!o) return true;
    const char *type = "default";
    if (!check_rope_members(s, o)) return false;
    if (!opt_string(s, o, "type", &type) || !opt_string(s, o, "rope_type", &type)) return false;
    size_t t = 0;
    while (t < ARRAY_COUNT(rope_types) && strcmp(rope_types[t].name, type) != 0) t++;
    if (t == ARRAY_COUNT(rope_types)) {
        return err_set_param(s->e, ERR_LOAD, "rope_type", "config.json: 'rope_type' is '%s'; default, linear, llama3 and yarn can be loaded",
                             name_shown(name_of(type, strlen(type))).text);
    }
    rope->scaling = rope_types[t].scaling;
    if (!opt_real(s, o, "rope_theta", 1.5, 1e12, &rope->theta) || !opt_real(s, o, "factor", 1e-3, 1e6, &rope->factor) ||
        !opt_real(s, o, "original_max_position_embeddings", 1, CONTEXT_MAX, &rope->original_len) ||
        !opt_real(s, s->config, "original_max_position_embeddings", 1, CONTEXT_MAX, &rope->original_len)) {
        return false;
    }
    switch (rope->scaling) {
    case ROPE_PLAIN: return true;
    case ROPE_LINEAR: return require(s, o, "factor");
    case ROPE_LLAMA3: return read_llama3(s, o, rope);
    case ROPE_YARN: return read_yarn(s, o, rope);
    }
    return false;
}

static bool rope_object(const struct source *s, const json_t *parent, const char *key, const json_t **out) {
    *out = member(parent, key);
    if (!*out || json_is_object(*out)) return true;
    return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not an object", key);
}

static bool read_rope(const struct source *s, struct model_config *c) {
    const json_t *newer, *older, *full, *window;
    double theta = s->family->gemma ? 1e6 : 1e4, theta_window = 1e4;
    if (!rope_object(s, s->config, "rope_parameters", &newer) || !rope_object(s, s->config, "rope_scaling", &older) ||
        !opt_real(s, s->config, "rope_theta", 1.5, 1e12, &theta) ||
        !opt_real(s, s->config, "rope_local_base_freq", 1.5, 1e12, &theta_window)) {
        return false;
    }
    if (newer && older) {
        return err_set_param(s->e, ERR_LOAD, "rope_scaling", "config.json: both 'rope_parameters' and 'rope_scaling' are there");
    }
    full = newer ? newer : older;
    window = s->family->gemma ? NULL : full; /* Gemma's window layers are not scaled by a flat object */
    if (!s->family->gemma) theta_window = theta;
    bool nested = newer && (json_object_get(newer, "full_attention") || json_object_get(newer, "sliding_attention"));
    if (nested && (!rope_object(s, newer, "full_attention", &full) || !rope_object(s, newer, "sliding_attention", &window))) {
        return false;
    }
    if (newer && !nested && s->family->gemma) {
        return err_set_param(s->e, ERR_LOAD, "rope_parameters", "config.json: 'rope_parameters' has no 'full_attention' and 'sliding_attention'");
    }
    struct rope_spec spec[LAYER_KINDS];
    return read_rope_object(s, c, full, theta, &spec[LAYER_FULL]) &&
           read_rope_object(s, c, window, theta_window, &spec[LAYER_WINDOW]) &&
           rope_config_fill(&c->rope[LAYER_FULL], &spec[LAYER_FULL], c->head_dim, ROPE_NEOX, "rope_theta", s->e) &&
           rope_config_fill(&c->rope[LAYER_WINDOW], &spec[LAYER_WINDOW], c->head_dim, ROPE_NEOX, "rope_theta", s->e);
}

bool config_read_hf(const struct tensor_file *f, struct model_config *c, struct err *e) {
    const char *model_type = json_string_value(json_object_get(f->config, "model_type"));
    struct source s = {.config = f->config, .e = e};
    s.family = model_type ? config_family_of_model_type(model_type) : NULL;
    if (!s.family) {
        return err_set_param(e, ERR_LOAD, "model_type", "config.json: 'model_type' is '%s'; llama, qwen3 and gemma3_text can be loaded",
                             model_type ? name_shown(name_of(model_type, strlen(model_type))).text : "missing");
    }
    if (!check_refused(&s) || !read_fields(&s, c)) return false;
    config_set_family(c, s.family);
    return read_activation(&s, c) && read_scalars(&s, c) && read_windows(&s, c) && read_rope(&s, c);
}
