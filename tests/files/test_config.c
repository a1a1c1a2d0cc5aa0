/* test_config.c - configurations: transformers' rotary tables, layer types and defaults; refusal by name of what no
 * model has (reliability.md, row 44) and of what the layer loop does not know.
 */
#include "engine/model/config.h"
#include "tests/files/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#define FIXTURES "tests/fixtures/models/"

static struct model_config c; /* a few KiB: not on the stack of every test */

static void read_fixture(const char *path) {
    struct err e;
    struct tensor_file *f = tensor_file_open(path, &e);
    if (!f || !model_config_read(f, &c, &e)) fail_msg("%s: %s", path, e.message);
    tensor_file_close(f);
}

/* ---- Rope: transformers is the oracle ---- */

/* A folder of this config.json without a single tensor. */
static struct tensor_file *open_config(const json_t *config, struct err *e) {
    static const char empty[] = "\2\0\0\0\0\0\0\0{}";
    char *text = json_dumps(config, JSON_COMPACT);
    struct tensor_file *f = tensor_file_open_memory(empty, sizeof empty - 1, text, strlen(text), e);
    free(text);
    if (!f) fail_msg("%s", e->message);
    return f;
}

static void compare_rope(const char *name, const struct rope_config *rope, const json_t *table) {
    const json_t *inv_freq = json_object_get(table, "inv_freq");
    assert_int_equal(json_array_size(inv_freq), rope->dim / 2);
    assert_int_equal(rope->kind, ROPE_NEOX);
    for (size_t i = 0; i < rope->dim / 2; i++) {
        double want = json_number_value(json_array_get(inv_freq, i));
        /* fp32 there: a few units of 2^-24, more where the ramps subtract. */
        if (fabs(rope->inv_freq[i] - want) > 2e-6 * want)
            fail_msg("%s: inv_freq[%zu] %.9g, not %.9g", name, i, rope->inv_freq[i], want);
    }
    double mscale = json_number_value(json_object_get(table, "mscale"));
    if (fabs(rope->mscale - mscale) > 1e-6 * mscale) fail_msg("%s: mscale %.9g, not %.9g", name, rope->mscale, mscale);
}

static void rope_tables_equal_those_of_transformers(void **state) {
    (void)state;
    json_t *cases = json_load_file(FIXTURES "rope_cases.json", 0, NULL), *item;
    size_t i, k;
    assert_true(json_array_size(cases) >= 13);
    json_array_foreach(cases, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        struct err e;
        struct tensor_file *f = open_config(json_object_get(item, "config"), &e);
        if (!model_config_read(f, &c, &e)) fail_msg("%s: %s", name, e.message);
        compare_rope(name, &c.rope[LAYER_FULL], json_object_get(item, "full_attention"));
        compare_rope(name, &c.rope[LAYER_WINDOW], json_object_get(item, "sliding_attention"));
        json_t *types = json_object_get(item, "layer_types"), *type;
        json_array_foreach(types, k, type) {
            enum layer_kind kind = strcmp(json_string_value(type), "full_attention") == 0 ? LAYER_FULL : LAYER_WINDOW;
            if (c.layer_kind[k] != kind) fail_msg("%s: layer %zu", name, k);
        }
        tensor_file_close(f);
    }
    json_decref(cases);
}

/* rope_freqs.weight divides plain frequencies; config.json's llama3 scaling computes them: the same model. */
static void gguf_and_folder_of_one_model_agree(void **state) {
    (void)state;
    static struct model_config hf;
    read_fixture(FIXTURES "llama3_f32");
    hf = c;
    read_fixture(FIXTURES "llama3_gguf/model.gguf");
    assert_int_equal(hf.rope[LAYER_FULL].kind, ROPE_NEOX);
    assert_int_equal(c.rope[LAYER_FULL].kind, ROPE_INTERLEAVED);
    for (size_t i = 0; i < c.head_dim / 2; i++) {
        double want = hf.rope[LAYER_FULL].inv_freq[i];
        assert_true(fabs(c.rope[LAYER_FULL].inv_freq[i] - want) < 1e-6 * want);
    }
    memset(c.rope, 0, sizeof c.rope);
    memset(hf.rope, 0, sizeof hf.rope);
    assert_memory_equal(&c, &hf, sizeof c);
}

/* ---- What the fixtures and the default model say (their config.json; google/gemma-3-270m's config.json) ---- */

static void fixtures_are_read(void **state) {
    (void)state;
    read_fixture(FIXTURES "llama_f16");
    assert_string_equal(c.arch, "llama");
    assert_true(c.n_layers == 2 && c.dim == 64 && c.n_heads == 4 && c.n_kv_heads == 4 && c.head_dim == 16 &&
                c.n_ff == 96);
    assert_true(c.n_vocab == 320 && c.context_len == 128 && c.norm_eps == 1e-5f && c.q_scale == 0.25f &&
                c.embed_scale == 1);
    assert_true(!c.tied_output && !c.qk_norm && !c.post_norms && c.activation == ACTIVATION_SILU && c.window == 0);
    read_fixture(FIXTURES "qwen3_bf16");
    assert_string_equal(c.arch, "qwen3");
    assert_true(c.qk_norm && c.tied_output && c.head_dim == 32 && !c.norm_plus_one && c.window == 0);
    read_fixture(FIXTURES "gemma3_bf16");
    assert_string_equal(c.arch, "gemma3");
    assert_true(c.qk_norm && c.tied_output && c.post_norms && c.norm_plus_one && c.window == 9 && c.embed_scale == 8);
    assert_true(c.activation == ACTIVATION_GELU_TANH && fabsf(c.q_scale - 0.20412415f) < 1e-7f);
    assert_true(c.layer_kind[0] == LAYER_WINDOW && c.layer_kind[1] == LAYER_FULL && c.layer_kind[3] == LAYER_FULL);
}

static void the_default_model_is_read(void **state) {
    (void)state;
    if (!default_model()) skip();
    read_fixture(default_model());
    assert_string_equal(c.arch, "gemma3");
    assert_true(c.n_layers == 18 && c.dim == 640 && c.n_heads == 4 && c.n_kv_heads == 1 && c.head_dim == 256 &&
                c.n_ff == 2048);
    assert_true(c.n_vocab == 262144 && c.context_len == 32768 && c.norm_eps == 1e-6f && c.q_scale == 0.0625f);
    assert_true(c.embed_scale == sqrtf(640) && c.tied_output && c.qk_norm && c.post_norms && !c.norm_plus_one &&
                c.window == 512);
    assert_true(c.rope[LAYER_FULL].kind == ROPE_NEOX && fabs(c.rope[LAYER_FULL].inv_freq[64] - 1e-3) < 1e-12);
    assert_true(fabs(c.rope[LAYER_WINDOW].inv_freq[64] - 1e-2) < 1e-11);
    for (uint32_t i = 0; i < 18; i++) assert_int_equal(c.layer_kind[i], i % 6 == 5 ? LAYER_FULL : LAYER_WINDOW);
}

/* Each role's tensor has the shape that the configuration says, in both formats; other shapes are refused by name. */
static void every_role_has_its_tensor(void **state) {
    (void)state;
    static const char *const paths[] = {FIXTURES "llama3_f32",  FIXTURES "llama3_gguf/model.gguf",
                                        FIXTURES "llama_f16",   FIXTURES "qwen3_bf16",
                                        FIXTURES "gemma3_bf16", NULL};
    for (size_t p = 0; p < ARRAY_COUNT(paths); p++) {
        const char *path = paths[p] ? paths[p] : default_model();
        if (!path) continue;
        struct err e;
        struct tensor_file *f = tensor_file_open(path, &e);
        if (!f || !model_config_read(f, &c, &e)) fail_msg("%s: %s", path, e.message);
        uint32_t q = c.n_heads * c.head_dim, kv = c.n_kv_heads * c.head_dim;
        const struct {
            enum tensor_role role;
            uint32_t n_rows, n_cols;
            bool there;
        } shapes[] = {{TENSOR_EMBED, c.n_vocab, c.dim, true},
                      {TENSOR_OUTPUT_NORM, c.dim, 0, true},
                      {TENSOR_OUTPUT, c.n_vocab, c.dim, true},
                      {TENSOR_ATTN_NORM, c.dim, 0, true},
                      {TENSOR_Q, q, c.dim, true},
                      {TENSOR_K, kv, c.dim, true},
                      {TENSOR_V, kv, c.dim, true},
                      {TENSOR_O, c.dim, q, true},
                      {TENSOR_Q_NORM, c.head_dim, 0, c.qk_norm},
                      {TENSOR_K_NORM, c.head_dim, 0, c.qk_norm},
                      {TENSOR_ATTN_POST_NORM, c.dim, 0, c.post_norms},
                      {TENSOR_FFN_NORM, c.dim, 0, true},
                      {TENSOR_GATE, c.n_ff, c.dim, true},
                      {TENSOR_UP, c.n_ff, c.dim, true},
                      {TENSOR_DOWN, c.dim, c.n_ff, true},
                      {TENSOR_FFN_POST_NORM, c.dim, 0, c.post_norms}};
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
            if (!shapes[i].there) continue;
            uint32_t layer = c.n_layers - 1, rows = shapes[i].n_rows, cols = shapes[i].n_cols;
            const struct tensor *t = model_tensor(f, &c, shapes[i].role, layer, rows, cols, &e);
            if (!t) fail_msg("%s: role %d: %s", path, shapes[i].role, e.message);
            assert_null(model_tensor(f, &c, shapes[i].role, layer, rows + 1, cols, &e));
            if (!strstr(e.message, t->name)) fail_msg("'%s' does not name %s", e.message, t->name);
            assert_null(model_tensor(f, &c, shapes[i].role, layer, rows, cols + 1, &e));
            if (cols) assert_null(model_tensor(f, &c, shapes[i].role, layer, rows, 0, &e));
        }
        if (c.tied_output)
            assert_ptr_equal(model_tensor(f, &c, TENSOR_OUTPUT, 0, c.n_vocab, c.dim, &e),
                             model_tensor(f, &c, TENSOR_EMBED, 0, c.n_vocab, c.dim, &e));
        assert_null(model_tensor(f, &c, TENSOR_Q, c.n_layers, q, c.dim, &e));
        tensor_file_close(f);
    }
}

/* ---- config.json: bad members ---- */

static const struct {
    const char *change, *expect; /* members laid over a good configuration */
} bad_members[] = {
    {"{\"model_type\":\"mixtral\"}", "'model_type' is 'mixtral'"},
    {"{\"model_type\":7}", "model_type"},
    {"{\"num_hidden_layers\":1000000}", "num_hidden_layers"},
    {"{\"num_hidden_layers\":0}", "num_hidden_layers"},
    {"{\"num_hidden_layers\":-1}", "num_hidden_layers"},
    {"{\"num_hidden_layers\":2.0}", "'num_hidden_layers' is not an integer"},
    {"{\"num_attention_heads\":0}", "num_attention_heads"},
    {"{\"num_attention_heads\":\"4\"}", "num_attention_heads"},
    {"{\"num_key_value_heads\":0}", "num_key_value_heads"},
    {"{\"num_key_value_heads\":3}", "num_key_value_heads"},
    {"{\"num_key_value_heads\":8}", "num_key_value_heads"},
    {"{\"head_dim\":0}", "head_dim"},
    {"{\"head_dim\":17}", "head_dim"},
    {"{\"head_dim\":24}", "head_dim"},
    {"{\"head_dim\":1024}", "head_dim"},
    {"{\"num_attention_heads\":6,\"num_key_value_heads\":6}", "num_attention_heads"},
    {"{\"hidden_size\":0}", "hidden_size"},
    {"{\"hidden_size\":1073741824}", "hidden_size"},
    {"{\"hidden_size\":72,\"head_dim\":16}", "hidden_size"},
    {"{\"intermediate_size\":0}", "intermediate_size"},
    {"{\"vocab_size\":2147483648}", "vocab_size"},
    {"{\"vocab_size\":0}", "vocab_size"},
    {"{\"max_position_embeddings\":0}", "max_position_embeddings"},
    {"{\"max_position_embeddings\":4294967296}", "max_position_embeddings"},
    {"{\"rms_norm_eps\":0}", "rms_norm_eps"},
    {"{\"rms_norm_eps\":-1e-6}", "rms_norm_eps"},
    {"{\"rms_norm_eps\":\"1e-6\"}", "'rms_norm_eps' is not a number"},
    {"{\"hidden_act\":\"relu\"}", "hidden_act"},
    {"{\"hidden_act\":[]}", "'hidden_act' is not a string"},
    {"{\"tie_word_embeddings\":1}", "tie_word_embeddings"},
    {"{\"attention_bias\":true}", "attention_bias"},
    {"{\"mlp_bias\":true}", "mlp_bias"},
    {"{\"num_local_experts\":8}", "num_local_experts"},
    {"{\"quantization_config\":{\"quant_method\":\"awq\"}}", "quantization_config"},
    {"{\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
    {"{\"auto_map\":{\"AutoModelForCausalLM\":\"x.Y\"}}", "auto_map"},
    {"{\"sliding_window\":512}", "sliding_window"},
    {"{\"rope_theta\":0}", "rope_theta"},
    {"{\"rope_theta\":1e400}", "not valid"},
    {"{\"rope_theta\":[1]}", "rope_theta"},
    {"{\"rope_scaling\":[]}", "rope_scaling"},
    {"{\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0}}", "'rope_type' is 'dynamic'"},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"factor\":2.0}}", "longrope"},
    {"{\"rope_scaling\":{\"rope_type\":\"linear\"}}", "factor"},
    {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", "factor"},
    {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":\"2\"}}", "factor"},
    {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2.0,\"short_factor\":[1]}}", "short_factor"},
    {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0}}", "'low_freq_factor' is missing"},
    {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":4.0,\"high_freq_factor\":4.0}}",
     "high_freq_factor"},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":8.0,\"truncate\":1}}", "truncate"},
    {"{\"rope_scaling\":{\"rope_type\":\"default\"},\"rope_parameters\":{\"rope_type\":\"default\"}}", "both"},
    {"{\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}}", "partial_rotary_factor"},
    {"{\"rope_parameters\":{\"full_attention\":7}}", "full_attention"},
    {"{\"model_type\":\"qwen3\",\"use_sliding_window\":true,\"sliding_window\":0}", "sliding_window"},
    {"{\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\"]}", "'layer_types' is not an array of 2"},
    {"{\"model_type\":\"qwen3\",\"max_window_layers\":\"1\"}", "max_window_layers"},
    {"{\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\",\"linear_attention\"]}", "layer_types"},
    {"{\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", "layer_types"},
    {"{\"model_type\":\"gemma3_text\",\"query_pre_attn_scalar\":0}", "query_pre_attn_scalar"},
    {"{\"model_type\":\"gemma3_text\",\"use_bidirectional_attention\":true}", "use_bidirectional_attention"},
    {"{\"model_type\":\"gemma3_text\",\"sliding_window_pattern\":0}", "sliding_window_pattern"},
    {"{\"model_type\":\"gemma3_text\",\"rope_parameters\":{\"rope_type\":\"default\"}}", "rope_parameters"},
};

static const char good_config[] = "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":64,\"num_"
                                  "attention_heads\":4,\"num_key_value_heads\":2,"
                                  "\"intermediate_size\":64,\"vocab_size\":320,\"max_position_embeddings\":256,\"rms_"
                                  "norm_eps\":1e-6,\"unknown_to_all\":true}";

static void bad_members_are_refused_by_name(void **state) {
    (void)state;
    static const char empty[] = "\2\0\0\0\0\0\0\0{}";
    for (size_t i = 0; i < ARRAY_COUNT(bad_members); i++) {
        struct err e = {0};
        char text[1024]; /* the change in front: "{...change, ...rest}" minus the members that it replaces */
        json_t *config = json_loads(good_config, 0, NULL), *change = json_loads(bad_members[i].change, 0, NULL);
        assert_non_null(config);
        if (change) {
            json_object_update(config, change);
            size_t n = json_dumpb(config, text, sizeof text - 1, JSON_COMPACT);
            assert_in_range(n, 2, sizeof text - 1);
            text[n] = '\0';
        } else {
            snprintf(text, sizeof text, "%s", bad_members[i].change); /* a number that jansson refuses as well */
        }
        struct tensor_file *f = tensor_file_open_memory(empty, sizeof empty - 1, text, strlen(text), &e);
        if (f && model_config_read(f, &c, &e)) fail_msg("%s was not refused", bad_members[i].change);
        check_refused(bad_members[i].change, NULL, &e, bad_members[i].expect);
        tensor_file_close(f);
        json_decref(config);
        json_decref(change);
    }
    struct err e;
    json_t *config = json_loads(good_config, 0, NULL);
    struct tensor_file *f = open_config(config, &e);
    assert_true(model_config_read(f, &c, &e)); /* the rows fail because of their change */
    tensor_file_close(f);
    json_decref(config);
}

/* ---- GGUF: bad keys ---- */

struct key {
    const char *key;
    char kind; /* u32, f32, string, bool, A: array of u32, B: two bools of this value, X: leave the good one out */
    double number;
    const char *text;
};

static const struct key good_keys[] = {
    {"general.architecture", 's', 0, "gemma3"},
    {"gemma3.block_count", 'u', 2, NULL},
    {"gemma3.embedding_length", 'u', 32, NULL},
    {"gemma3.attention.head_count", 'u', 2, NULL},
    {"gemma3.attention.head_count_kv", 'u', 1, NULL},
    {"gemma3.attention.key_length", 'u', 16, NULL},
    {"gemma3.feed_forward_length", 'u', 32, NULL},
    {"gemma3.context_length", 'u', 64, NULL},
    {"gemma3.attention.layer_norm_rms_epsilon", 'f', 1e-6, NULL},
    {"gemma3.attention.sliding_window", 'u', 8, NULL},
};

static const struct {
    struct key key; /* replaces the good one of that name, or is one more */
    const char *expect;
} bad_keys[] = {
    {{"general.architecture", 'X', 0, NULL}, "'general.architecture' is missing"},
    {{"general.architecture", 's', 0, "mamba"}, "'general.architecture' is 'mamba'"},
    {{"general.architecture", 'u', 1, NULL}, "general.architecture"},
    {{"general.type", 's', 0, "adapter"}, "general.type"},
    {{"split.count", 'u', 2, NULL}, "split.count"},
    {{"gemma3.block_count", 'X', 0, NULL}, "'gemma3.block_count' is missing"},
    {{"gemma3.block_count", 'u', 1000000, NULL}, "'gemma3.block_count' is 1000000"},
    {{"gemma3.block_count", 'u', 0, NULL}, "gemma3.block_count"},
    {{"gemma3.block_count", 's', 0, "2"}, "gemma3.block_count"},
    {{"gemma3.attention.head_count", 'u', 0, NULL}, "gemma3.attention.head_count"},
    {{"gemma3.attention.head_count", 'A', 2, NULL}, "gemma3.attention.head_count"},
    {{"gemma3.attention.head_count", 'u', 3, NULL}, NULL}, /* fine: 3 % 1 */
    {{"gemma3.attention.head_count_kv", 'u', 0, NULL}, "gemma3.attention.head_count_kv"},
    {{"gemma3.attention.head_count_kv", 'u', 4, NULL}, "gemma3.attention.head_count_kv"},
    {{"gemma3.attention.key_length", 'u', 0, NULL}, "gemma3.attention.key_length"},
    {{"gemma3.attention.key_length", 'u', 24, NULL}, "gemma3.attention.key_length"},
    {{"gemma3.attention.value_length", 'u', 32, NULL}, "gemma3.attention.value_length"},
    {{"gemma3.rope.dimension_count", 'u', 7, NULL}, "gemma3.rope.dimension_count"},
    {{"gemma3.rope.dimension_count", 'u', 8, NULL}, "gemma3.rope.dimension_count"},
    {{"gemma3.embedding_length", 'u', 4294967295.0, NULL}, "gemma3.embedding_length"},
    {{"gemma3.context_length", 'u', 0, NULL}, "gemma3.context_length"},
    {{"gemma3.vocab_size", 'u', 2147483648.0, NULL}, "gemma3.vocab_size"},
    {{"gemma3.vocab_size", 'u', 23, NULL}, "gemma3.vocab_size"},
    {{"tokenizer.ggml.tokens", 'A', 3, NULL}, "tokenizer.ggml.tokens"},
    {{"gemma3.attention.layer_norm_rms_epsilon", 'X', 0, NULL}, "layer_norm_rms_epsilon"},
    {{"gemma3.attention.layer_norm_rms_epsilon", 'f', 0, NULL}, "layer_norm_rms_epsilon"},
    {{"gemma3.attention.layer_norm_rms_epsilon", 'f', NAN, NULL}, "layer_norm_rms_epsilon"},
    {{"gemma3.attention.layer_norm_rms_epsilon", 'u', 1, NULL}, "layer_norm_rms_epsilon"},
    {{"gemma3.attention.sliding_window", 'u', 0, NULL}, "gemma3.attention.sliding_window"},
    {{"gemma3.attention.sliding_window_pattern", 'A', 2, NULL}, "gemma3.attention.sliding_window_pattern"},
    {{"gemma3.attention.sliding_window_pattern", 's', 0, "x"}, "gemma3.attention.sliding_window_pattern"},
    {{"gemma3.attention.sliding_window_pattern", 'B', 7, NULL}, "gemma3.attention.sliding_window_pattern"},
    {{"gemma3.attention.sliding_window_pattern", 'B', 1, NULL}, NULL}, /* fine: both layers */
    {{"gemma3.attn_logit_softcapping", 'f', -1, NULL}, "attn_logit_softcapping"},
    {{"gemma3.final_logit_softcapping", 'f', NAN, NULL}, "final_logit_softcapping"},
    {{"gemma3.attention.causal", 'b', 0, NULL}, "gemma3.attention.causal"},
    {{"gemma3.rope.freq_base", 'f', 0, NULL}, "gemma3.rope.freq_base"},
    {{"gemma3.rope.freq_base", 'f', INFINITY, NULL}, "gemma3.rope.freq_base"},
    {{"gemma3.rope.freq_base_swa", 'f', 0, NULL}, "gemma3.rope.freq_base_swa"},
    {{"gemma3.rope.scaling.original_context_length", 'u', 0, NULL}, "original_context_length"},
    {{"gemma3.rope.scaling.yarn_beta_fast", 'f', 0, NULL}, "yarn_beta_fast"},
    {{"gemma3.rope.scaling.type", 's', 0, "longrope"}, "'gemma3.rope.scaling.type' is 'longrope'"},
    {{"gemma3.rope.scaling.factor", 'f', -1, NULL}, "gemma3.rope.scaling.factor"},
    {{"gemma3.rope.scaling.attn_factor", 'f', 2, NULL}, "gemma3.rope.scaling.attn_factor"},
    {{"gemma3.expert_count", 'u', 0, NULL}, "'gemma3.expert_count' is not known"},
    {{"gemma3.some_new_scale", 'f', 2, NULL}, "'gemma3.some_new_scale' is not known"},
    {{"llama.some_other", 'f', 2, NULL}, NULL}, /* fine: not of this architecture */
};

static void put_key(struct bytes *b, const struct key *k) {
    switch (k->kind) {
    case 'u':
        key_u32(b, k->key, (uint32_t)k->number);
        break;
    case 'f':
        key_f32(b, k->key, (float)k->number);
        break;
    case 's':
        key_str(b, k->key, k->text);
        break;
    case 'b':
        key_bool(b, k->key, (uint8_t)k->number);
        break;
    case 'B':
        key_array(b, k->key, GGUF_BOOL, 2);
        bytes_put(b, (uint8_t[]){(uint8_t)k->number, (uint8_t)k->number}, 2);
        break;
    case 'A':
        key_array(b, k->key, GGUF_U32, (uint64_t)k->number);
        bytes_put(b, NULL, 4 * (size_t)k->number);
        break;
    default:
        fail();
    }
}

/* The good keys with up to two changes, and up to two tensors: the embedding and `extra`, a vector of 8 or the
 * embedding's shape. */
struct gguf_case {
    const struct key *change, *also;
    const char *extra;
    const float *extra_vector; /* [8] */
    bool no_embedding;
};

static const struct key *changed(const struct gguf_case *g, const char *key) {
    if (g->change && strcmp(g->change->key, key) == 0) return g->change;
    return g->also && strcmp(g->also->key, key) == 0 ? g->also : NULL;
}

static struct tensor_file *build_gguf(struct bytes *b, const struct gguf_case *g) {
    uint64_t n_keys = 0, ne[] = {32, 24}, ne_vector[] = {8}, n_embedding = 4 * 32 * 24;
    struct bytes keys = {0};
    struct err e;
    bool replaced = false;
    for (size_t i = 0; i < ARRAY_COUNT(good_keys); i++) {
        const struct key *other = changed(g, good_keys[i].key);
        replaced = replaced || (other && other == g->change);
        if (other && other->kind == 'X') continue;
        put_key(&keys, other ? other : &good_keys[i]);
        n_keys++;
    }
    if (g->change && !replaced) {
        put_key(&keys, g->change);
        n_keys++;
    }
    put_header(b, !g->no_embedding + (g->extra != NULL), n_keys);
    bytes_put(b, keys.data, keys.n);
    bytes_free(&keys);
    if (!g->no_embedding) put_tensor(b, "token_embd.weight", 2, ne, 0, 0);
    if (g->extra && g->extra_vector) put_tensor(b, g->extra, 1, ne_vector, 0, n_embedding);
    if (g->extra && !g->extra_vector) put_tensor(b, g->extra, 2, ne, 0, n_embedding);
    put_pad(b, 32);
    bytes_put(b, NULL, n_embedding);
    bytes_put(b, g->extra_vector, g->extra_vector ? 32 : n_embedding);
    struct tensor_file *f = tensor_file_open_memory(b->data, b->n, NULL, 0, &e);
    if (!f) fail_msg("%s", e.message);
    return f;
}

static void bad_keys_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad_keys); i++) {
        struct bytes b = {0};
        struct err e = {0};
        struct tensor_file *f = build_gguf(&b, &(struct gguf_case){.change = &bad_keys[i].key});
        bool ok = model_config_read(f, &c, &e);
        if (ok != (bad_keys[i].expect == NULL)) fail_msg("row %zu (%s): %s", i, bad_keys[i].key.key, e.message);
        if (!ok) check_refused(bad_keys[i].key.key, NULL, &e, bad_keys[i].expect);
        tensor_file_close(f);
        bytes_free(&b);
    }
}

/* Biases, experts, a second head: what nobody would read is refused, not left out of the sum. */
static void a_tensor_that_nobody_reads_is_refused(void **state) {
    (void)state;
    static const char *const names[] = {"blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.2.attn_q.weight",
                                        "cls.output.weight", "blk.00.attn_q.weight"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct bytes b = {0};
        struct err e = {0};
        struct tensor_file *f = build_gguf(&b, &(struct gguf_case){.extra = names[i]});
        assert_false(model_config_read(f, &c, &e));
        check_refused(names[i], NULL, &e, names[i]);
        tensor_file_close(f);
        bytes_free(&b);
    }
}

static void bad_rope_divisors_are_refused_by_name(void **state) {
    (void)state;
    static const float good[8] = {1, 1, 1, 1, 2, 4, 8, 8}, zero[8] = {1}, nan[8] = {1, 1, 1, NAN, 1, 1, 1, 1},
                       negative[8] = {1, 1, 1, 1, 1, 1, 1, -1};
    static const struct {
        const float *vector;
        const char *expect;
    } rows[] = {{good, NULL},
                {zero, "dimension 1"},
                {nan, "dimension 3"},
                {negative, "dimension 7"},
                {NULL, "'rope_freqs.weight' is not a vector of 8 F32"}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct bytes b = {0};
        struct err e = {0};
        struct tensor_file *f =
            build_gguf(&b, &(struct gguf_case){.extra = "rope_freqs.weight", .extra_vector = rows[i].vector});
        bool ok = model_config_read(f, &c, &e);
        if (ok != (rows[i].expect == NULL)) fail_msg("row %zu: %s", i, e.message);
        if (!ok) check_refused("rope_freqs", NULL, &e, rows[i].expect);
        tensor_file_close(f);
        bytes_free(&b);
    }
}

/* 32 dimensions, 3 heads, and no key that says how long a head is. */
static void a_head_length_that_does_not_follow_is_refused(void **state) {
    (void)state;
    static const struct key heads = {"gemma3.attention.head_count", 'u', 3, NULL},
                            length = {"gemma3.attention.key_length", 'X', 0, NULL};
    struct bytes b = {0};
    struct err e = {0};
    struct tensor_file *f = build_gguf(&b, &(struct gguf_case){.change = &heads, .also = &length});
    assert_false(model_config_read(f, &c, &e));
    check_refused("head length", NULL, &e, "'gemma3.attention.key_length' is missing");
    tensor_file_close(f);
    bytes_free(&b);
}

static void a_file_without_an_embedding_is_refused(void **state) {
    (void)state;
    struct bytes b = {0};
    struct err e = {0};
    struct tensor_file *f = build_gguf(&b, &(struct gguf_case){.no_embedding = true});
    assert_false(model_config_read(f, &c, &e));
    check_refused("no embedding", NULL, &e, "token_embd.weight");
    tensor_file_close(f);
    bytes_free(&b);
}

static void window_patterns_are_those_of_llama_cpp(void **state) {
    (void)state;
    static const struct {
        double period;
        const char *kinds; /* of two layers */
    } rows[] = {{0, "ww"}, {1, "ff"}, {2, "wf"}, {3, "ww"}, {6, "ww"}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct bytes b = {0};
        struct err e = {0};
        struct key key = {"gemma3.attention.sliding_window_pattern", 'u', rows[i].period, NULL};
        struct tensor_file *f = build_gguf(&b, &(struct gguf_case){.change = &key});
        assert_true(model_config_read(f, &c, &e));
        for (int k = 0; k < 2; k++)
            assert_int_equal(c.layer_kind[k], rows[i].kinds[k] == 'w' ? LAYER_WINDOW : LAYER_FULL);
        tensor_file_close(f);
        bytes_free(&b);
    }
}

/* ---- Tensors of the wrong kind ---- */

#define ENTRY(name, dtype, shape, begin, end)                                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void weights_of_other_types_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *header, *expect;
        size_t n_data;
    } rows[] = {
        {"{" ENTRY("model.norm.weight", "I64", "[64]", "0", "512") "}", "'model.norm.weight' is of type I64", 512},
        {"{" ENTRY("model.norm.weight", "F64", "[64]", "0", "512") "}", "'model.norm.weight' is of type F64", 512},
        {"{" ENTRY("model.norm.weight", "F32", "[1,64]", "0", "256") "}", "'model.norm.weight' has 2 dimensions", 256},
        {"{" ENTRY("model.norm.weight", "F32", "[]", "0", "4") "}", "'model.norm.weight' has 0 dimensions", 4},
        {"{}", "'model.norm.weight' is missing", 0},
        {"{" ENTRY("lm_head.weight", "BOOL", "[1]", "0", "1") "," ENTRY("model.norm.weight", "F32", "[64]", "1",
                                                                        "257") "}",
         "'model.norm.weight' does not start", 257},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct bytes b = {0};
        struct err e = {0};
        put_safetensors(&b, rows[i].header, rows[i].n_data);
        uint8_t *aligned = aligned_alloc(8, round_up(b.n, 8)); /* so that misalignment is the file's */
        memcpy(aligned, b.data, b.n);
        struct tensor_file *f = tensor_file_open_memory(aligned, b.n, good_config, sizeof good_config - 1, &e);
        if (!f || !model_config_read(f, &c, &e)) fail_msg("row %zu: %s", i, e.message);
        assert_null(model_tensor(f, &c, TENSOR_OUTPUT_NORM, 0, 64, 0, &e));
        check_refused("type", NULL, &e, rows[i].expect);
        tensor_file_close(f);
        free(aligned);
        bytes_free(&b);
    }
}

/* tie_word_embeddings with both matrices in the file: equal bytes are one matrix, other bytes are a contradiction. */
static void a_tied_head_must_equal_the_embedding(void **state) {
    (void)state;
    static const char header[] = "{" ENTRY("lm_head.weight", "F32", "[2]", "0",
                                           "8") "," ENTRY("model.embed_tokens.weight", "F32", "[2]", "8", "16") "}";
    json_t *config = json_loads(good_config, 0, NULL);
    json_object_set_new(config, "tie_word_embeddings", json_true());
    char *text = json_dumps(config, 0);
    for (int differ = 0; differ < 2; differ++) {
        struct bytes b = {0};
        struct err e = {0};
        put_safetensors(&b, header, 16);
        b.data[b.n - 1] = (uint8_t)differ;
        struct tensor_file *f = tensor_file_open_memory(b.data, b.n, text, strlen(text), &e);
        assert_non_null(f);
        assert_int_equal(model_config_read(f, &c, &e), !differ);
        if (differ) check_refused("tied", NULL, &e, "tie_word_embeddings");
        tensor_file_close(f);
        bytes_free(&b);
    }
    free(text);
    json_decref(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rope_tables_equal_those_of_transformers),
        cmocka_unit_test(gguf_and_folder_of_one_model_agree),
        cmocka_unit_test(fixtures_are_read),
        cmocka_unit_test(the_default_model_is_read),
        cmocka_unit_test(every_role_has_its_tensor),
        cmocka_unit_test(bad_members_are_refused_by_name),
        cmocka_unit_test(bad_keys_are_refused_by_name),
        cmocka_unit_test(a_tensor_that_nobody_reads_is_refused),
        cmocka_unit_test(bad_rope_divisors_are_refused_by_name),
        cmocka_unit_test(a_head_length_that_does_not_follow_is_refused),
        cmocka_unit_test(a_file_without_an_embedding_is_refused),
        cmocka_unit_test(window_patterns_are_those_of_llama_cpp),
        cmocka_unit_test(weights_of_other_types_are_refused_by_name),
        cmocka_unit_test(a_tied_head_must_equal_the_embedding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
