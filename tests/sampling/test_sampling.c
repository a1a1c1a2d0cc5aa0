/* Sampling against a plain double-precision reference written from the definitions, and Philox against the
 * known-answer vectors that its authors publish (Random123, kat_vectors). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/sampling/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 20000 };

static struct kernels *k;
static struct sampler *sampler;
static float logits[N_VOCAB];

static uint64_t rng_state = 1;
static uint64_t rng(void) {
    rng_state += 0x9E3779B97F4A7C15u;
    uint64_t z = rng_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static double rng_unit(void) { return (double)(rng() >> 11) * 0x1p-53; }
static float rng_normal(void) {
    double u = 0;
    for (int i = 0; i < 12; i++) u += rng_unit();
    return (float)(u - 6.0);
}
static void logits_fill(float spread) {
    for (int i = 0; i < N_VOCAB; i++) logits[i] = spread * rng_normal();
}

static struct sampling_params plain(void) {
    return (struct sampling_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static struct sample_output draw(const struct sampling_params *p, const int32_t *tokens, uint32_t n_prompt, uint32_t n_tokens) {
    struct sample_output out;
    struct sample_input in = {.logits = logits, .n_vocab = N_VOCAB, .params = p, .tokens = tokens, .n_prompt = n_prompt,
                              .n_tokens = n_tokens, .position = n_tokens - n_prompt, .n_logprobs = -1};
    sampler_draw(sampler, &in, &out);
    return out;
}

/* ---- Reference: probabilities after all cuts, from the definitions, in double ---- */
struct ref {
    double p;
    int id;
};
static struct ref ref[N_VOCAB];
static int ref_compare(const void *a, const void *b) {
    const struct ref *x = a, *y = b;
    return x->p != y->p ? (x->p > y->p ? -1 : 1) : x->id - y->id;
}
/* Fills ref (sorted) and returns how many tokens may be drawn. */
static int ref_cut(const struct sampling_params *p) {
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < N_VOCAB; i++) max = fmax(max, logits[i]);
    for (int i = 0; i < N_VOCAB; i++) ref[i] = (struct ref){exp((logits[i] - max) / p->temperature), i};
    qsort(ref, N_VOCAB, sizeof *ref, ref_compare);
    int n = N_VOCAB;
    if (p->top_k && (int)p->top_k < n) n = (int)p->top_k;
    while (n > 1 && ref[n - 1].p < p->min_p) n--;
    for (int i = 0; i < n; i++) sum += ref[i].p;
    double below = 0;
    if (p->top_p < 1)
        for (int i = 0; i < n; i++) {
            below += ref[i].p;
            if (below >= p->top_p * sum) n = i + 1;
        }
    return n;
}

static void check_cuts_and_frequencies(struct sampling_params p, int draws) {
    int n = ref_cut(&p);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += ref[i].p;
    int *hits = calloc(N_VOCAB, sizeof *hits);
    for (int i = 0; i < draws; i++) {
        p.seed = rng();
        struct sample_output out = draw(&p, NULL, 0, 0);
        assert_false(out.bad);
        hits[out.id]++;
    }
    int outside = 0;
    double chi = 0;
    int cells = 0;
    for (int i = 0; i < N_VOCAB; i++) {
        double want = i < n ? draws * ref[i].p / sum : 0;
        if (i >= n) outside += hits[ref[i].id];
        if (want >= 8) chi += (hits[ref[i].id] - want) * (hits[ref[i].id] - want) / want, cells++;
    }
    assert_true(outside <= draws / 1000); /* only a token on the very edge of a cut may differ from double */
    if (cells > 1) assert_true(chi < cells + 6 * sqrt(2.0 * cells)); /* chi-square, six sigma */
    free(hits);
}

static void draws_follow_the_distribution(void **state) {
    (void)state;
    const struct { float t, top_p, min_p; uint32_t top_k; } cases[] = {
        {1, 1, 0, 0}, {0.5f, 1, 0, 0}, {1, 1, 0, 5}, {1, 1, 0, 1}, {2, 1, 0, 64}, {0.7f, 0.9f, 0, 0}, {1, 0.5f, 0, 0},
        {1, 0.95f, 0, 40}, {1, 1, 0.05f, 0}, {0.8f, 0.9f, 0.02f, 50}, {1, 0.01f, 0, 0}, {1, 1, 1, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        logits_fill(i % 2 ? 1.0f : 3.5f);
        struct sampling_params p = plain();
        p.temperature = cases[i].t, p.top_p = cases[i].top_p, p.min_p = cases[i].min_p, p.top_k = cases[i].top_k;
        check_cuts_and_frequencies(p, 3000);
    }
}

static void greedy_takes_the_maximum_and_the_lower_id_of_ties(void **state) {
    (void)state;
    logits_fill(1);
    logits[11000] = logits[7] = logits[19999] = 50;
    struct sampling_params p = plain();
    p.temperature = 0;
    assert_int_equal(draw(&p, NULL, 0, 0).id, 7);
}

static void a_draw_depends_on_seed_and_position_only(void **state) {
    (void)state;
    logits_fill(0.5f);
    struct sampling_params p = plain();
    p.seed = 42;
    int32_t history[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    int32_t first = draw(&p, history, 4, 6).id;
    for (int i = 0; i < 50; i++) { /* other work on the same scratch between */
        struct sampling_params other = plain();
        other.seed = rng(), other.top_k = (uint32_t)(rng() % 100), other.repetition_penalty = 1.3f;
        draw(&other, history, 2, 8);
        assert_int_equal(draw(&p, history, 4, 6).id, first);
        assert_int_equal(draw(&p, history, 2, 4).id, first); /* same output position, other prompt length */
    }
    int differ = 0;
    for (uint32_t n = 0; n < 8; n++) differ += draw(&p, history, 0, n).id != first;
    assert_true(differ >= 6);
}

static void penalties_equal_their_formulas(void **state) {
    (void)state;
    logits_fill(0.1f);
    int32_t history[] = {10, 11, 10, 20, 20, 20}; /* prompt 10 11 10, output 20 20 20 */
    logits[10] = 5.0f, logits[20] = 5.2f, logits[30] = 4.4f;
    struct sampling_params p = plain();
    p.temperature = 0;
    assert_int_equal(draw(&p, history, 3, 6).id, 20);
    p.frequency_penalty = 0.2f; /* 5.2 - 3 * 0.2 = 4.6 < 5.0: prompt tokens are not counted */
    assert_int_equal(draw(&p, history, 3, 6).id, 10);
    p.frequency_penalty = 0, p.presence_penalty = 0.3f; /* 4.9 */
    assert_int_equal(draw(&p, history, 3, 6).id, 10);
    p.presence_penalty = 0.1f; /* 5.1 */
    assert_int_equal(draw(&p, history, 3, 6).id, 20);
    p.presence_penalty = 0, p.repetition_penalty = 1.25f; /* 4.0, 4.16: prompt and output alike */
    assert_int_equal(draw(&p, history, 3, 6).id, 30);
    p.repetition_penalty = 1.1f; /* 4.545.., 4.727.. > 4.4 */
    assert_int_equal(draw(&p, history, 3, 6).id, 20);
    for (int i = 0; i < N_VOCAB; i++) logits[i] = -9.0f;
    logits[10] = -1.0f, logits[30] = -1.5f; /* negative logits are multiplied */
    p.repetition_penalty = 2.0f;
    assert_int_equal(draw(&p, history, 3, 6).id, 30);
}

static void bias_allow_list_and_bar_decide_what_can_be_drawn(void **state) {
    (void)state;
    logits_fill(1);
    logits[100] = 30;
    struct sampling_params p = plain();
    p.temperature = 0;
    struct logit_bias bias[] = {{100, -100}, {200, 40}};
    p.bias = bias, p.n_bias = 1;
    assert_int_not_equal(draw(&p, NULL, 0, 0).id, 100);
    p.n_bias = 2;
    assert_int_equal(draw(&p, NULL, 0, 0).id, 200);
    int32_t allowed[] = {5, 6, 7};
    p.n_bias = 0, p.allowed = allowed, p.n_allowed = 3, p.temperature = 5;
    for (uint64_t seed = 0; seed < 200; seed++) {
        p.seed = seed;
        int32_t id = draw(&p, NULL, 0, 0).id;
        assert_true(id >= 5 && id <= 7);
    }
    int32_t barred[] = {5, 6, 7};
    struct sample_output out;
    struct sample_input in = {.logits = logits, .n_vocab = N_VOCAB, .params = &p, .barred = barred, .n_barred = 2, .n_logprobs = -1};
    sampler_draw(sampler, &in, &out);
    assert_int_equal(out.id, 7);
    in.n_barred = 3; /* nothing is left */
    sampler_draw(sampler, &in, &out);
    assert_true(out.bad);
}

static void not_a_number_is_reported(void **state) {
    (void)state;
    logits_fill(1);
    logits[12345] = NAN;
    struct sampling_params p = plain();
    assert_true(draw(&p, NULL, 0, 0).bad);
    p.temperature = 0;
    assert_true(draw(&p, NULL, 0, 0).bad);
    p.top_p = 0.5f, p.temperature = 1;
    assert_true(draw(&p, NULL, 0, 0).bad);
}

static void logprobs_come_from_raw_logits(void **state) {
    (void)state;
    logits_fill(2);
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < N_VOCAB; i++) max = fmax(max, logits[i]);
    for (int i = 0; i < N_VOCAB; i++) sum += exp(logits[i] - max);
    struct sampling_params p = plain();
    p.temperature = 1;
    ref_cut(&p);
    struct logit_bias bias = {17, 60};
    p.bias = &bias, p.n_bias = 1;
    struct sample_output out;
    struct sample_input in = {.logits = logits, .n_vocab = N_VOCAB, .params = &p, .n_logprobs = 20};
    sampler_draw(sampler, &in, &out);
    assert_int_equal(out.id, 17);
    assert_true(fabs(out.drawn.logprob - (logits[17] - max - log(sum))) < 2e-5);
    assert_int_equal(out.n_top, 20);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(out.top[i].id, ref[i].id);
        assert_true(fabs(out.top[i].logprob - (logits[ref[i].id] - max - log(sum))) < 2e-5);
        assert_int_equal(out.top[i].rank, i + 1);
    }
    uint32_t rank = 1;
    for (int i = 0; i < N_VOCAB; i++) rank += logits[i] > logits[17];
    assert_int_equal(out.drawn.rank, rank);
}

static void philox_gives_the_published_vectors(void **state) {
    (void)state;
    const struct { uint32_t counter[4], key[2], out[4]; } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    for (size_t i = 0; i < ARRAY_COUNT(kat); i++) {
        uint32_t out[4];
        philox4x32(kat[i].counter, kat[i].key, out);
        assert_memory_equal(out, kat[i].out, sizeof out);
    }
}

static int open_all(void **state) {
    (void)state;
    struct err e;
    k = kernels_cpu_open(&(struct kernels_options){.n_threads = 1, .isa = "auto"}, &e);
    sampler = k ? sampler_open(k, N_VOCAB) : NULL;
    return sampler ? 0 : -1;
}
static int close_all(void **state) {
    (void)state;
    sampler_close(sampler);
    k->close(k);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(greedy_takes_the_maximum_and_the_lower_id_of_ties),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(a_draw_depends_on_seed_and_position_only),
        cmocka_unit_test(penalties_equal_their_formulas),
        cmocka_unit_test(bias_allow_list_and_bar_decide_what_can_be_drawn),
        cmocka_unit_test(not_a_number_is_reported),
        cmocka_unit_test(logprobs_come_from_raw_logits),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
