/* config_gguf.c - a struct model_config from the metadata of a GGUF file.
 *
 * Every key under "ARCH." must be one that is read here (known_keys): a key that would change the arithmetic and
 * is not known is refused by name. Defaults are llama.cpp's.
 *
 * Owner: the thread that loads the model. No state, no allocation.
 */
#include "engine/model/config_int.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 96 };

struct source {
    const struct tensor_file *f;
    const struct family *family;
    struct err *e;
};

struct key {
    char text[KEY_BYTES];
};

static struct key key_of(const struct source *s, const char *suffix) {
    struct key key;
    snprintf(key.text, sizeof key.text, "%s.%s", s->family->arch, suffix);
    return key;
}

/* Suffixes beside those of config_fields. */
static const char *const known_keys[] = {
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.finetuned", /* says how the model was trained, not how it is run */
    "tensor_data_layout",     /* a note of old converters; the layout is the same */
};
static const char *const gemma_keys[] = {"attention.sliding_window", "attention.sliding_window_pattern",
                                         "rope.freq_base_swa", "final_logit_softcapping", "attn_logit_softcapping"};

static bool suffix_in(struct name suffix, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (strlen(list[i]) == suffix.n && memcmp(list[i], suffix.s, suffix.n) == 0) return true;
    }
    return false;
}

static bool check_keys(const struct source *s) {
    size_t n_arch = strlen(s->family->arch);
    for (size_t i = 0; i < gguf_key_count(s->f); i++) {
        size_t n;
        const char *key = gguf_key_at(s->f, i, &n);
        if (n <= n_arch || memcmp(key, s->family->arch, n_arch) != 0 || key[n_arch] != '.') continue;
        struct name suffix = name_of(key + n_arch + 1, n - n_arch - 1);
        bool known = suffix_in(suffix, known_keys, ARRAY_COUNT(known_keys)) ||
                     (s->family->gemma && suffix_in(suffix, gemma_keys, ARRAY_COUNT(gemma_keys)));
        for (size_t k = 0; k < FIELDS && !known; k++) known = suffix_in(suffix, &config_fields[k].gguf, 1);
        if (!known) {
            struct shown shown = name_shown(name_of(key, n));
            return load_err(s->e, name_of(key, n),
                            "Key '%s' is not known here: the model needs something that Choir does not have",
                            shown.text);
        }
    }
    return true;
}

/* ---- Typed reads. True: read, or absent and *out untouched. ---- */

static bool opt_u32(const struct source *s, const char *suffix, int64_t *out) {
    struct key key = key_of(s, suffix);
    uint32_t v;
    if (!gguf_has(s->f, key.text)) return true;
    if (!gguf_get_u32(s->f, key.text, &v)) {
        return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is not one integer from 0 to 4294967295", key.text);
    }
    *out = v;
    return true;
}

static bool opt_real(const struct source *s, const char *suffix, double min, double max, double *out) {
    struct key key = key_of(s, suffix);
    float v;
    if (!gguf_has(s->f, key.text)) return true;
    if (!gguf_get_f32(s->f, key.text, &v)) {
        return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is not a floating-point number", key.text);
    }
    *out = (double)v;
    return config_check_real(*out, min, max, key.text, s->e);
}

/* ---- Fields ---- */

static bool read_field(const struct source *s, struct model_config *c, enum field field, int64_t absent) {
    int64_t value = absent;
    struct key key = key_of(s, config_fields[field].gguf);
    if (!opt_u32(s, config_fields[field].gguf, &value)) return false;
    if (value < 0) return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is missing", key.text);
    return config_set_field(c, field, value, key.text, s->e);
}

/* The embedding's rows are the vocabulary; what else speaks of it must agree. */
static bool read_vocab(const struct source *s, struct model_config *c) {
    const struct tensor *embed = tensor_file_find(s->f, "token_embd.weight");
    if (!embed || embed->n_dims != 2) {
        return err_set_param(s->e, ERR_LOAD, "token_embd.weight",
                             "Tensor 'token_embd.weight' is missing or not a matrix");
    }
    int64_t rows = embed->shape[0] > VOCAB_MAX ? INT64_MAX : (int64_t)embed->shape[0], keyed = rows;
    struct key key = key_of(s, "vocab_size");
    if (!opt_u32(s, "vocab_size", &keyed)) return false;
    if (!config_set_field(c, FIELD_VOCAB, keyed, key.text, s->e)) return false;
    if (keyed != rows) {
        return err_set_param(s->e, ERR_LOAD, key.text,
                             "Key '%s' is %" PRId64 ", but 'token_embd.weight' has %" PRId64 " rows", key.text, keyed,
                             rows);
    }
    struct gguf_array tokens;
    if (gguf_get_array(s->f, "tokenizer.ggml.tokens", &tokens) && tokens.count != (uint64_t)rows) {
        return err_set_param(s->e, ERR_LOAD, "tokenizer.ggml.tokens",
                             "Key 'tokenizer.ggml.tokens' has %" PRIu64
                             " elements, but 'token_embd.weight' has %" PRId64 " rows",
                             tokens.count, rows);
    }
    return true;
}

static bool read_fields(const struct source *s, struct model_config *c) {
    struct key keys[FIELDS];
    const char *names[FIELDS];
    for (size_t i = 0; i < FIELDS; i++) {
        keys[i] = key_of(s, config_fields[i].gguf);
        names[i] = keys[i].text;
    }
    if (!read_field(s, c, FIELD_LAYERS, -1) || !read_field(s, c, FIELD_DIM, -1) || !read_field(s, c, FIELD_HEADS, -1) ||
        !read_field(s, c, FIELD_FF, -1) || !read_field(s, c, FIELD_CONTEXT, -1) || !read_vocab(s, c)) {
        return false;
    }
    if (!read_field(s, c, FIELD_KV_HEADS, c->n_heads)) return false;
    if (!gguf_has(s->f, names[FIELD_HEAD_DIM]) && c->dim % c->n_heads != 0) {
        return err_set_param(s->e, ERR_LOAD, names[FIELD_HEADS], "'%s' does not divide '%s', and '%s' is missing",
                             names[FIELD_HEADS], names[FIELD_DIM], names[FIELD_HEAD_DIM]);
    }
    if (!read_field(s, c, FIELD_HEAD_DIM, c->dim / c->n_heads)) return false;
    return config_check_fields(c, names, s->e);
}

/* Keys that repeat a field must agree with it; flags must say what the layer loop does. */
static bool check_echoes(const struct source *s, const struct model_config *c) {
    static const char *const heads[] = {"attention.value_length", "rope.dimension_count"};
    for (size_t i = 0; i < ARRAY_COUNT(heads); i++) {
        int64_t v = c->head_dim;
        struct key key = key_of(s, heads[i]);
        if (!opt_u32(s, heads[i], &v)) return false;
        if (v != c->head_dim) {
            return err_set_param(s->e, ERR_LOAD, key.text,
                                 "Key '%s' is %" PRId64 "; only the length of a whole head (%" PRIu32 ") can be loaded",
                                 key.text, v, c->head_dim);
        }
    }
    struct key causal = key_of(s, "attention.causal");
    bool is_causal = true;
    if (gguf_has(s->f, causal.text) && (!gguf_get_bool(s->f, causal.text, &is_causal) || !is_causal)) {
        return err_set_param(s->e, ERR_LOAD, causal.text, "Key '%s' is not true", causal.text);
    }
    const char *type;
    size_t n;
    if (gguf_has(s->f, "general.type") &&
        (!gguf_get_str(s->f, "general.type", &type, &n) || n != 5 || memcmp(type, "model", 5) != 0)) {
        return err_set_param(s->e, ERR_LOAD, "general.type", "Key 'general.type' is not 'model'");
    }
    uint32_t parts = 1;
    if (gguf_has(s->f, "split.count") && (!gguf_get_u32(s->f, "split.count", &parts) || parts > 1)) {
        return err_set_param(s->e, ERR_LOAD, "split.count",
                             "Key 'split.count': a model in several GGUF files cannot be loaded; join them first");
    }
    return true;
}

/* ---- Rope ---- */

static bool read_scaling(const struct source *s, const struct model_config *c, struct rope_spec *rope) {
    struct key key = key_of(s, "rope.scaling.type");
    const char *type = "linear"; /* what llama.cpp takes when only a factor is there */
    size_t n = 6;
    if (gguf_has(s->f, key.text) && !gguf_get_str(s->f, key.text, &type, &n)) {
        return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is not a string", key.text);
    }
    double factor = 1, attn_factor = 1;
    int64_t original = c->context_len;
    if (!opt_real(s, "rope.scale_linear", 0, 1e6, &factor) || !opt_real(s, "rope.scaling.factor", 0, 1e6, &factor) ||
        !opt_real(s, "rope.scaling.attn_factor", 1, 1, &attn_factor) ||
        !opt_u32(s, "rope.scaling.original_context_length", &original)) {
        return false;
    }
    if (original < 1 || original > CONTEXT_MAX) {
        return err_set_param(s->e, ERR_LOAD, "rope.scaling.original_context_length",
                             "Key '%s.rope.scaling.original_context_length' is %" PRId64, s->family->arch, original);
    }
    rope->factor = factor == 0 ? 1 : factor; /* 0 is written for "none" */
    rope->original_len = (double)original;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    if (!opt_real(s, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &rope->beta_fast) ||
        !opt_real(s, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &rope->beta_slow)) {
        return false;
    }
    if (n == 4 && memcmp(type, "none", 4) == 0) {
        rope->scaling = ROPE_PLAIN;
    } else if (n == 6 && memcmp(type, "linear", 6) == 0) {
        rope->scaling = ROPE_LINEAR;
    } else if (n == 4 && memcmp(type, "yarn", 4) == 0) {
        rope->scaling = ROPE_YARN;
    } else {
        return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is '%s'; none, linear and yarn can be loaded",
                             key.text, name_shown(name_of(type, n)).text);
    }
    return true;
}

/* Llama 3's scaling, stored as one divisor per frequency. */
static bool read_divisors(const struct source *s, const struct model_config *c, const float **out) {
    static const char name[] = "rope_freqs.weight";
    const struct tensor *t = tensor_file_find(s->f, name);
    if (!t) return true;
    if (t->type != DT_F32 || t->n_dims != 1 || t->shape[0] != c->head_dim / 2 ||
        (uintptr_t)t->data % sizeof(float) != 0) {
        return err_set_param(s->e, ERR_LOAD, name, "Tensor '%s' is not a vector of %" PRIu32 " F32", name,
                             c->head_dim / 2);
    }
    *out = t->data;
    return true;
}

static bool read_rope(const struct source *s, struct model_config *c) {
    struct rope_spec full = {.theta = 10000}, window = {.theta = 10000};
    struct key base = key_of(s, "rope.freq_base"), base_window = key_of(s, "rope.freq_base_swa");
    if (!opt_real(s, "rope.freq_base", 1.5, 1e12, &full.theta) || !read_scaling(s, c, &full) ||
        !read_divisors(s, c, &full.divisors)) {
        return false;
    }
    if (s->family->gemma) {
        /* Window layers have a base of their own and are never scaled. */
        if (!opt_real(s, "rope.freq_base_swa", 1.5, 1e12, &window.theta)) return false;
    } else {
        window = full;
    }
    enum rope_kind kind = s->family->gguf_rope;
    return rope_config_fill(&c->rope[LAYER_FULL], &full, c->head_dim, kind, base.text, s->e) &&
           rope_config_fill(&c->rope[LAYER_WINDOW], &window, c->head_dim, kind, base_window.text, s->e);
}

/* ---- Gemma ---- */

/* Which layers have a window: a period p (layers p, 2p, .. counted from 1 are full), or one bool per layer. */
static bool read_pattern(const struct source *s, struct model_config *c) {
    struct key key = key_of(s, "attention.sliding_window_pattern");
    struct gguf_array per_layer;
    int64_t period = 6;
    bool is_array = gguf_get_array(s->f, key.text, &per_layer);
    if (is_array && (per_layer.type != GGUF_BOOL || per_layer.count != c->n_layers)) {
        return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is not %" PRIu32 " bools, one per layer", key.text,
                             c->n_layers);
    }
    if (!is_array && !opt_u32(s, "attention.sliding_window_pattern", &period)) return false;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        int64_t window = period == 0 || i % period < period - 1; /* period 0: all, as in llama.cpp */
        if (is_array && (!gguf_array_i64(&per_layer, i, &window) || window > 1)) {
            return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' has an element that is not a bool", key.text);
        }
        c->layer_kind[i] = window ? LAYER_WINDOW : LAYER_FULL;
    }
    return true;
}

static bool read_gemma(const struct source *s, struct model_config *c) {
    struct key key = key_of(s, "attention.sliding_window");
    if (gguf_has(s->f, key.text)) {
        int64_t window = 0;
        if (!opt_u32(s, "attention.sliding_window", &window)) return false;
        if (window < 1 || window > CONTEXT_MAX) {
            return err_set_param(s->e, ERR_LOAD, key.text, "Key '%s' is %" PRId64 "; 1 to %d can be loaded", key.text,
                                 window, CONTEXT_MAX);
        }
        c->window = (uint32_t)window;
        if (!read_pattern(s, c)) return false;
    }
    double attn = 0, final = 0;
    if (!opt_real(s, "attn_logit_softcapping", 0, 1e6, &attn) ||
        !opt_real(s, "final_logit_softcapping", 0, 1e6, &final)) {
        return false;
    }
    c->attn_softcap = (float)attn;
    c->final_softcap = (float) final;
    /* GGUF has no key for query_pre_attn_scalar. It is head_dim in every Gemma 3 but the 27B (62 layers), which has
     * dim / n_heads = 168: https://github.com/google/gemma_pytorch, gemma/config.py. */
    if (c->n_layers == 62) c->q_scale = (float)(1 / sqrt((double)c->dim / c->n_heads));
    return true;
}

bool config_read_gguf(const struct tensor_file *f, struct model_config *c, struct err *e) {
    const char *arch;
    size_t n;
    if (!gguf_get_str(f, "general.architecture", &arch, &n)) {
        return err_set_param(e, ERR_LOAD, "general.architecture",
                             "Key 'general.architecture' is missing or not a string");
    }
    struct source s = {.f = f, .family = config_family_of_arch(arch, n), .e = e};
    if (!s.family) {
        return err_set_param(e, ERR_LOAD, "general.architecture",
                             "Key 'general.architecture' is '%s'; llama, qwen3 and gemma3 can be loaded",
                             name_shown(name_of(arch, n)).text);
    }
    double eps = NAN;
    struct key eps_key = key_of(&s, "attention.layer_norm_rms_epsilon");
    if (!check_keys(&s) || !read_fields(&s, c) || !check_echoes(&s, c)) return false;
    config_set_family(c, s.family);
    if (!gguf_has(f, eps_key.text))
        return err_set_param(e, ERR_LOAD, eps_key.text, "Key '%s' is missing", eps_key.text);
    if (!opt_real(&s, "attention.layer_norm_rms_epsilon", 1e-12, 0.1, &eps)) return false;
    c->norm_eps = (float)eps;
    c->q_scale = (float)(1 / sqrt((double)c->head_dim));
    c->tied_output = tensor_file_find(f, "output.weight") == NULL;
    return read_rope(&s, c) && (!s.family->gemma || read_gemma(&s, c));
}
