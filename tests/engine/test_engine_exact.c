/* The exactness contract at the engine's surface: what a request returns is a function of (model, request, seed)
 * and of nothing else. The reference is each request run alone, one token of prompt per step, on one thread with
 * the scalar kernels; everything else must equal it bit for bit. Small random checkpoints of several families. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/engine/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { N_REQUESTS = 12, LEN_MAX = 128 /* the shortest context among the models */ };

static const char *const models[] = {"tests/fixtures/models/llama3_f32", "tests/fixtures/models/qwen3_bf16",
                                     "tests/fixtures/models/llama_f16", "tests/fixtures/models/gemma3_bf16"};

static struct run_request requests[N_REQUESTS];
static struct run_result expected[N_REQUESTS], got[N_REQUESTS];

static struct engine_options base(void) {
    return (struct engine_options){.n_threads = 1, .isa = "auto", .kv_type = DT_F16, .prefix_cache = true, .max_seqs = 16, .max_model_len = LEN_MAX};
}

static void compare(const char *model, const char *what) {
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        if (!memcmp(&expected[i], &got[i], sizeof got[i])) continue;
        uint32_t t = 0;
        while (t < got[i].n && got[i].tokens[t] == expected[i].tokens[t] && got[i].logprobs[t] == expected[i].logprobs[t]) t++;
        fail_msg("%s, %s: request %u (prompt of %u) differs, first at output %u of %u (end %d, expected %d)", model, what, i,
                 requests[i].n_prompt, t, expected[i].n, got[i].end, expected[i].end);
    }
}

static void make_reference(const char *model, enum dtype kv_type) {
    struct engine_options o = base();
    o.isa = "scalar", o.prefix_cache = false, o.kv_type = kv_type, o.max_batch_tokens = 1, o.max_seqs = 1;
    struct engine *g = run_engine(model, o);
    run_make(requests, N_REQUESTS, engine_info(g)->n_vocab, LEN_MAX, 1234);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        run_all(g, &requests[i], &expected[i], 1, NULL);
        assert_int_equal(expected[i].end, FINISH_LENGTH);
        assert_int_equal(expected[i].n, requests[i].max_tokens);
    }
    engine_close(g);
}

static void run_variant(const char *model, struct engine_options o, const char *what, uint64_t shuffle, struct engine_stats *stats) {
    struct engine *g = run_engine(model, o);
    uint32_t order[N_REQUESTS];
    for (int round = 0; round < 2; round++) { /* the second round finds the first one's prefixes */
        for (uint32_t i = 0; i < N_REQUESTS; i++) order[i] = i;
        for (uint32_t i = N_REQUESTS - 1; i > 0; i--) {
            uint32_t j = (uint32_t)(run_random(&shuffle) % (i + 1)), t = order[i];
            order[i] = order[j], order[j] = t;
        }
        run_all(g, requests, got, N_REQUESTS, order);
        compare(model, what);
    }
    engine_stats_get(g, stats);
    assert_int_equal(stats->kv_pages_used, 0);
    assert_int_equal(stats->kv_pages_free + stats->kv_pages_cached, stats->kv_pages_total);
    engine_close(g);
}

static bool isa_is_here(const char *isa) {
    struct err e;
    struct kernels *k = kernels_cpu_open(&(struct kernels_options){.n_threads = 1, .isa = isa}, &e);
    if (k) k->close(k);
    return k != NULL;
}

static uint64_t kv_bytes_for(const char *model, uint32_t tokens) {
    struct engine *g = run_engine(model, base());
    const struct engine_info *i = engine_info(g);
    uint64_t per_block = i->kv_bytes / (i->kv_tokens_max / 32);
    engine_close(g);
    return per_block * div_up(tokens, 32);
}

static void every_mix_gives_the_bits_of_the_request_alone(void **state) {
    const char *model = *state;
    struct engine_stats st;
    make_reference(model, DT_F16);
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < ARRAY_COUNT(isas); i++) {
        struct engine_options o = base();
        o.isa = isas[i];
        if (isa_is_here(isas[i])) run_variant(model, o, isas[i], i, &st);
    }
    static const uint32_t chunks[] = {1, 2, 3, 5, 16, 17, 31, 32, 33, 64, 100, 512};
    for (size_t i = 0; i < ARRAY_COUNT(chunks); i++) {
        struct engine_options o = base();
        o.max_batch_tokens = chunks[i], o.max_seqs = 1 + (uint32_t)i;
        run_variant(model, o, "chunk size", 10 + i, &st);
    }
    for (uint32_t threads = 2; threads <= 5; threads++) {
        struct engine_options o = base();
        o.n_threads = threads;
        run_variant(model, o, "threads", threads, &st);
        assert_true(st.prefix_hits_tokens > 0);
    }
    struct engine_options o = base();
    o.prefix_cache = false;
    run_variant(model, o, "no prefix cache", 99, &st);
    assert_int_equal(st.prefix_hits_tokens, 0);
    o.kv_memory_bytes = kv_bytes_for(model, LEN_MAX), o.max_batch_tokens = 24;
    run_variant(model, o, "preemption", 5, &st);
    assert_true(st.preemptions > 0);
    o.prefix_cache = true;
    run_variant(model, o, "preemption and prefix cache", 6, &st);
    assert_true(st.preemptions > 0);
}

static void every_kv_type_is_exact_in_itself(void **state) {
    const char *model = *state;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_I8};
    struct engine_stats st;
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        make_reference(model, types[i]);
        struct engine_options o = base();
        o.kv_type = types[i], o.n_threads = 2, o.max_batch_tokens = 48;
        run_variant(model, o, dtype_name(types[i]), i, &st);
    }
}

int main(void) {
    struct CMUnitTest tests[2 * ARRAY_COUNT(models)];
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        struct stat st;
        if (stat(models[i], &st)) continue;
        tests[n++] = (struct CMUnitTest){models[i], every_mix_gives_the_bits_of_the_request_alone, NULL, NULL, (void *)models[i]};
        tests[n++] = (struct CMUnitTest){models[i], every_kv_type_is_exact_in_itself, NULL, NULL, (void *)models[i]};
    }
    return n ? _cmocka_run_group_tests("exact", tests, n, NULL, NULL) : 1;
}
