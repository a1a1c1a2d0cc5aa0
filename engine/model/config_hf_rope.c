/* config_hf_rope.c - how a config.json says that layers rotate.
 *
 * Two styles: rope_theta (+ rope_local_base_freq, rope_scaling), and rope_parameters, which is flat or has one object
 * per layer type. Any member that is not read here is refused by name.
 *
 * No state; the thread that loads the model.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <string.h>

static const struct {
    const char *name;
    enum rope_scaling scaling;
} rope_types[] = {{"default", ROPE_PLAIN}, {"linear", ROPE_LINEAR}, {"llama3", ROPE_LLAMA3}, {"yarn", ROPE_YARN}};

/* Members of a rope object that are read; any other that is not neutral is refused. */
static const char *const rope_members[] = {"rope_type",
                                           "type",
                                           "rope_theta",
                                           "factor",
                                           "original_max_position_embeddings",
                                           "low_freq_factor",
                                           "high_freq_factor",
                                           "beta_fast",
                                           "beta_slow",
                                           "attention_factor",
                                           "mscale",
                                           "mscale_all_dim",
                                           "truncate"};

static bool check_rope_members(const struct hf *s, const json_t *o) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, key, value) {
        bool known = json_is_null(value) || (strcmp(key, "partial_rotary_factor") == 0 && hf_is_neutral(value, true));
        for (size_t i = 0; i < ARRAY_COUNT(rope_members) && !known; i++) known = strcmp(rope_members[i], key) == 0;
        if (!known) {
            struct name name = name_of(key, strlen(key));
            return load_err(s->e, name,
                            "config.json: the rope parameter '%s' asks for something that Choir does not have",
                            name_shown(name).text);
        }
    }
    return true;
}

static bool require(const struct hf *s, const json_t *o, const char *key) {
    return hf_member(o, key) ||
           err_set_param(s->e, ERR_LOAD, key, "config.json: the rope parameter '%s' is missing", key);
}

static bool read_llama3(const struct hf *s, const json_t *o, struct rope_spec *rope) {
    if (!require(s, o, "factor") || !require(s, o, "low_freq_factor") || !require(s, o, "high_freq_factor"))
        return false;
    if (!hf_opt_real(s, o, "low_freq_factor", 1e-3, 1e6, &rope->low_freq_factor) ||
        !hf_opt_real(s, o, "high_freq_factor", 1e-3, 1e6, &rope->high_freq_factor)) {
        return false;
    }
    return rope->low_freq_factor < rope->high_freq_factor ||
           err_set_param(s->e, ERR_LOAD, "high_freq_factor",
                         "config.json: 'high_freq_factor' is not above 'low_freq_factor'");
}

static bool read_yarn(const struct hf *s, const json_t *o, struct rope_spec *rope) {
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    const json_t *truncate = hf_member(o, "truncate");
    if (truncate && !json_is_boolean(truncate)) {
        return err_set_param(s->e, ERR_LOAD, "truncate", "config.json: 'truncate' is not true or false");
    }
    rope->no_truncate = truncate && json_is_false(truncate);
    return require(s, o, "factor") && hf_opt_real(s, o, "beta_fast", 1e-3, 1e6, &rope->beta_fast) &&
           hf_opt_real(s, o, "beta_slow", 1e-3, 1e6, &rope->beta_slow) &&
           hf_opt_real(s, o, "attention_factor", 1e-3, 1e3, &rope->attention_factor) &&
           hf_opt_real(s, o, "mscale", 0, 1e3, &rope->mscale) &&
           hf_opt_real(s, o, "mscale_all_dim", 0, 1e3, &rope->mscale_all_dim);
}

/* One rope object (NULL: none); theta is what the members around it say. */
static bool read_rope_object(const struct hf *s, const struct model_config *c, const json_t *o, double theta,
                             struct rope_spec *rope) {
    *rope = (struct rope_spec){.theta = theta, .factor = 1, .original_len = c->context_len};
    if (!o) return true;
    const char *type = "default";
    if (!check_rope_members(s, o)) return false;
    if (!hf_opt_string(s, o, "type", &type) || !hf_opt_string(s, o, "rope_type", &type)) return false;
    size_t t = 0;
    while (t < ARRAY_COUNT(rope_types) && strcmp(rope_types[t].name, type) != 0) t++;
    if (t == ARRAY_COUNT(rope_types)) {
        return err_set_param(s->e, ERR_LOAD, "rope_type",
                             "config.json: 'rope_type' is '%s'; default, linear, llama3 and yarn can be loaded",
                             name_shown(name_of(type, strlen(type))).text);
    }
    rope->scaling = rope_types[t].scaling;
    if (!hf_opt_real(s, o, "rope_theta", 1.5, 1e12, &rope->theta) ||
        !hf_opt_real(s, o, "factor", 1e-3, 1e6, &rope->factor) ||
        !hf_opt_real(s, o, "original_max_position_embeddings", 1, CONTEXT_MAX, &rope->original_len) ||
        !hf_opt_real(s, s->config, "original_max_position_embeddings", 1, CONTEXT_MAX, &rope->original_len)) {
        return false;
    }
    switch (rope->scaling) {
    case ROPE_PLAIN:
        return true;
    case ROPE_LINEAR:
        return require(s, o, "factor");
    case ROPE_LLAMA3:
        return read_llama3(s, o, rope);
    case ROPE_YARN:
        return read_yarn(s, o, rope);
    }
    return false;
}

static bool rope_object(const struct hf *s, const json_t *parent, const char *key, const json_t **out) {
    *out = hf_member(parent, key);
    if (!*out || json_is_object(*out)) return true;
    return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not an object", key);
}

bool config_read_hf_rope(const struct hf *s, struct model_config *c) {
    const json_t *newer, *older, *full, *window;
    double theta = s->family->gemma ? 1e6 : 1e4, theta_window = 1e4;
    if (!rope_object(s, s->config, "rope_parameters", &newer) || !rope_object(s, s->config, "rope_scaling", &older) ||
        !hf_opt_real(s, s->config, "rope_theta", 1.5, 1e12, &theta) ||
        !hf_opt_real(s, s->config, "rope_local_base_freq", 1.5, 1e12, &theta_window)) {
        return false;
    }
    if (newer && older) {
        return err_set_param(s->e, ERR_LOAD, "rope_scaling",
                             "config.json: both 'rope_parameters' and 'rope_scaling' are there");
    }
    full = newer ? newer : older;
    window = s->family->gemma ? NULL : full; /* Gemma's window layers are not scaled by a flat object */
    if (!s->family->gemma) theta_window = theta;
    bool nested = newer && (json_object_get(newer, "full_attention") || json_object_get(newer, "sliding_attention"));
    if (nested &&
        (!rope_object(s, newer, "full_attention", &full) || !rope_object(s, newer, "sliding_attention", &window))) {
        return false;
    }
    if (newer && !nested && s->family->gemma) {
        return err_set_param(s->e, ERR_LOAD, "rope_parameters",
                             "config.json: 'rope_parameters' has no 'full_attention' and 'sliding_attention'");
    }
    struct rope_spec spec[LAYER_KINDS];
    return read_rope_object(s, c, full, theta, &spec[LAYER_FULL]) &&
           read_rope_object(s, c, window, theta_window, &spec[LAYER_WINDOW]) &&
           rope_config_fill(&c->rope[LAYER_FULL], &spec[LAYER_FULL], c->head_dim, ROPE_NEOX, "rope_theta", s->e) &&
           rope_config_fill(&c->rope[LAYER_WINDOW], &spec[LAYER_WINDOW], c->head_dim, ROPE_NEOX, "rope_theta", s->e);
}
