/* The forward pass against transformers in fp32: small random checkpoints of each family, and the default model.
 *
 * The small ones have float weights; F32 and F16 weights meet fp32 activations, so only the order of sums differs.
 * BF16 weights meet activations rounded to bf16 (what the vdpbf16ps instruction takes), hence their wider bound. The
 * default model's weights are quantized, and so are its activations (int8 per 32 columns): there the bounds are on the
 * mean KL divergence and on how often the best token is the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model/model.h"
#include "engine/text/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 48, LOGIT_ROWS = 8 };

struct subject {
    const char *path, *answers;
    enum dtype kv_type;
    double tolerance;
};

static struct kernels *kernels;
static uint8_t *bytes;
static size_t at, n_bytes;

static void answers_load(const char *path, const char *magic) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    n_bytes = (size_t)ftell(f);
    rewind(f);
    bytes = malloc(n_bytes);
    assert_int_equal(fread(bytes, 1, n_bytes, f), n_bytes);
    fclose(f);
    assert_memory_equal(bytes, magic, 8);
    at = 8;
}
static const void *take(size_t n) {
    assert_true(at + n <= n_bytes);
    at += n;
    return bytes + at - n;
}
static uint32_t take_u32(void) {
    uint32_t v;
    memcpy(&v, take(4), 4);
    return v;
}

static struct model *open_model(const char *path, enum dtype kv_type, uint32_t n_blocks, struct tokenizer **t) {
    struct err e;
    struct model_options o = {.path = path, .kernels = kernels, .tp = tp_self_open(), .kv_type = kv_type, .n_tokens_max = CHUNK,
                              .n_seqs_max = 1, .n_logit_rows_max = LOGIT_ROWS};
    struct model *m = model_open(&o, t, &e);
    if (!m) fail_msg("%s: %s", path, e.message);
    uint32_t pages = 0;
    for (uint32_t kind = 0; kind < model_kv_plan(m)->n_kinds; kind++) pages += model_kv_plan(m)->units[kind] * n_blocks;
    assert_true(model_kv_alloc(m, pages, &e));
    return m;
}

/* Runs ids in chunks; calls row(arg, position, logits) for positions [first, n). */
static void run(struct model *m, const int32_t *ids, uint32_t n, uint32_t first, void (*row)(void *, uint32_t, const float *), void *arg) {
    const struct model_kv_plan *p = model_kv_plan(m);
    uint32_t n_blocks = (uint32_t)div_up(n, KV_PAGE_TOKENS), page = 0;
    uint32_t *table[LAYER_KINDS] = {NULL};
    for (uint32_t kind = 0; kind < p->n_kinds; kind++) {
        table[kind] = malloc(n_blocks * p->units[kind] * sizeof **table);
        for (uint32_t i = 0; i < n_blocks * p->units[kind]; i++) table[kind][i] = page++;
    }
    for (uint32_t pos = 0; pos < n; pos += CHUNK) {
        uint32_t rows = (uint32_t)size_min(CHUNK, n - pos), positions[CHUNK];
        for (uint32_t i = 0; i < rows; i++) positions[i] = pos + i;
        struct model_batch_seq s = {.n_rows = rows, .pos0 = pos};
        for (uint32_t kind = 0; kind < p->n_kinds; kind++) s.table[kind] = table[kind];
        model_forward(m, &(struct model_batch){rows, 1, ids + pos, positions, &s});
        for (uint32_t i = 0; i < rows; i++)
            if (pos + i >= first) row(arg, pos + i, model_logits(m, &i, 1));
    }
    for (uint32_t kind = 0; kind < p->n_kinds; kind++) free(table[kind]);
}

struct compare {
    const uint8_t *want;
    uint32_t first, n_vocab;
    double worst;
};
static void compare_row(void *arg, uint32_t position, const float *logits) {
    struct compare *c = arg;
    for (uint32_t i = 0; i < c->n_vocab; i++) {
        float want;
        memcpy(&want, c->want + ((size_t)(position - c->first) * c->n_vocab + i) * sizeof want, sizeof want);
        double off = fabs((double)logits[i] - (double)want);
        if (!(off <= c->worst)) c->worst = off; /* also when it is not a number */
    }
}

static void small_checkpoint_answers_as_transformers_does(void **state) {
    const struct subject *s = *state;
    char path[256];
    snprintf(path, sizeof path, "%s/answers.bin", s->answers);
    answers_load(path, "CHOIRANS");
    struct tokenizer *t;
    struct model *m = open_model(s->path, s->kv_type, 4, &t);
    uint32_t n_prompts = take_u32(), n_vocab = take_u32();
    assert_int_equal(n_vocab, model_config_of(m)->n_vocab);
    double worst = 0;
    for (uint32_t p = 0; p < n_prompts; p++) {
        uint32_t n = take_u32(), n_rows = take_u32();
        int32_t ids[256];
        assert_true(n <= 128);
        memcpy(ids, take(n * sizeof *ids), n * sizeof *ids);
        struct compare c = {take((size_t)n_rows * n_vocab * sizeof(float)), n - n_rows, n_vocab, 0};
        run(m, ids, n, n - n_rows, compare_row, &c);
        if (!(c.worst <= worst)) worst = c.worst;
    }
    printf("%s, KV %s: largest difference of a logit %.3g\n", s->path, dtype_name(s->kv_type), worst);
    assert_true(worst <= s->tolerance);
    tokenizer_close(t);
    model_close(m);
    free(bytes);
}

struct divergence {
    const float *lse;    /* [n_tokens] */
    const int32_t *ids;  /* [n_tokens][n_top] */
    const float *logits; /* [n_tokens][n_top] */
    uint32_t n_top, n_vocab, n, same_best;
    double kld;
};
static void diverge_row(void *arg, uint32_t position, const float *logits) {
    struct divergence *d = arg;
    double max = -INFINITY, sum = 0, kld = 0, mass_p = 0, mass_q = 0;
    uint32_t best = 0;
    for (uint32_t i = 0; i < d->n_vocab; i++) {
        if ((double)logits[i] > max) max = (double)logits[i], best = i;
    }
    for (uint32_t i = 0; i < d->n_vocab; i++) sum += exp((double)logits[i] - max);
    const int32_t *ids = d->ids + (size_t)position * d->n_top;
    for (uint32_t i = 0; i < d->n_top; i++) {
        double log_p = (double)d->logits[(size_t)position * d->n_top + i] - (double)d->lse[position];
        double log_q = (double)logits[ids[i]] - max - log(sum);
        kld += exp(log_p) * (log_p - log_q);
        mass_p += exp(log_p), mass_q += exp(log_q);
    }
    /* what is below the top counts as one token: a lower bound of the whole divergence, close to it */
    if (mass_p < 1 && mass_q < 1) kld += (1 - mass_p) * (log(1 - mass_p) - log(1 - mass_q));
    d->kld += kld;
    d->same_best += best == (uint32_t)ids[0];
    d->n++;
}

static void default_model_stays_close_to_fp32(void **state) {
    (void)state;
    const char *path = getenv("CHOIR_TEST_MODEL");
    if (!path) {
        print_message("CHOIR_TEST_MODEL is not set\n");
        skip();
    }
    answers_load("tests/fixtures/default_model/logits.bin", "CHOIRTOP");
    uint32_t n = take_u32(), n_top = take_u32(), n_vocab = take_u32();
    int32_t *ids = malloc(n * sizeof *ids);
    memcpy(ids, take(n * sizeof *ids), n * sizeof *ids);
    struct divergence d = {.n_top = n_top, .n_vocab = n_vocab};
    d.lse = memcpy(malloc(n * 4), take(n * 4), n * 4);
    d.ids = memcpy(malloc((size_t)n * n_top * 4), take((size_t)n * n_top * 4), (size_t)n * n_top * 4);
    d.logits = memcpy(malloc((size_t)n * n_top * 4), take((size_t)n * n_top * 4), (size_t)n * n_top * 4);
    struct tokenizer *t;
    struct model *m = open_model(path, DT_F16, (uint32_t)div_up(n, KV_PAGE_TOKENS), &t);
    run(m, ids, n, 0, diverge_row, &d);
    double same = (double)d.same_best / d.n;
    printf("default model: mean KLD %.5f over %u positions, same best token %.1f %%\n", d.kld / d.n, d.n, 100 * same);
    assert_true(d.kld / d.n < 0.01); /* bench/peer has the full comparison with llama.cpp (0.0048 on longer text) */
    assert_true(same > 0.93);
    tokenizer_close(t);
    model_close(m);
    free(ids), free((void *)d.lse), free((void *)d.ids), free((void *)d.logits), free(bytes);
}

int main(void) {
    struct err e;
    kernels = kernels_cpu_open(&(struct kernels_options){.n_threads = 2, .isa = "auto"}, &e);
    ASSERT(kernels);
#define FOLDER "tests/fixtures/models/"
    static const struct subject subjects[] = {
        {FOLDER "llama3_f32", FOLDER "llama3_f32", DT_F32, 1e-3},
        {FOLDER "llama3_f32", FOLDER "llama3_f32", DT_F16, 2e-2},
        {FOLDER "llama3_f32", FOLDER "llama3_f32", DT_BF16, 2e-1},
        {FOLDER "llama3_f32", FOLDER "llama3_f32", DT_I8, 5e-1},
        {FOLDER "llama3_gguf/model.gguf", FOLDER "llama3_gguf", DT_F32, 1e-3},
        {FOLDER "llama_f16", FOLDER "llama_f16", DT_F32, 1e-3},
        {FOLDER "qwen3_bf16", FOLDER "qwen3_bf16", DT_F32, 1e-1},
        {FOLDER "gemma3_bf16", FOLDER "gemma3_bf16", DT_F32, 1e-1},
    };
    struct CMUnitTest tests[ARRAY_COUNT(subjects) + 1];
    for (size_t i = 0; i < ARRAY_COUNT(subjects); i++)
        tests[i] = (struct CMUnitTest){subjects[i].path, small_checkpoint_answers_as_transformers_does, NULL, NULL, (void *)&subjects[i]};
    tests[ARRAY_COUNT(subjects)] = (struct CMUnitTest)cmocka_unit_test(default_model_stays_close_to_fp32);
    int failed = _cmocka_run_group_tests("model logits", tests, ARRAY_COUNT(tests), NULL, NULL);
    kernels->close(kernels);
    return failed;
}
