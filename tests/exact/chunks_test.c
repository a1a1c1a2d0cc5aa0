/* chunks_test.c - prefill in chunks of every size gives the logits of prefill at once, on the real model.
 *
 * The default model's logits after a prompt are computed with the whole prompt in one step, then in chunks of 1, 2, 3,
 * ... up to all of it, and in random mixtures, also beside another sequence. memcmp decides.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model/model.h"
#include "engine/text/text.h"

#include <stdlib.h>
#include <string.h>

enum { N = 128, LONG_N = 700, OTHER_N = 40, BLOCKS = LONG_N / KV_PAGE_TOKENS + 2, TABLES = 3 };

static struct model *m;
static uint32_t n_vocab;
static int32_t ids[LONG_N];
static float *expected;

/* Block tables of several sequences in disjoint pages; the sequences reuse them from test to test. */
static uint32_t *tables[TABLES][LAYER_KINDS];

static int open_model(void **state) {
    (void)state;
    struct err e;
    static struct kernels_options ko = {.n_threads = 2, .isa = "auto"};
    struct kernels *k = kernels_cpu_open(&ko, &e);
    assert_non_null(k);
    struct model_options o = {.path = getenv("CHOIR_TEST_MODEL"),
                              .kernels = k,
                              .tp = tp_self_open(),
                              .kv_type = DT_F16,
                              .n_tokens_max = LONG_N + OTHER_N,
                              .n_seqs_max = TABLES,
                              .n_logit_rows_max = 1};
    struct tokenizer *t = NULL;
    m = model_open(&o, &t, &e);
    if (!m) fail_msg("%s", e.message);
    tokenizer_close(t);
    n_vocab = model_config_of(m)->n_vocab;
    const struct model_kv_plan *plan = model_kv_plan(m);
    uint32_t n_pages = 0;
    for (int s = 0; s < TABLES; s++)
        for (uint32_t kind = 0; kind < plan->n_kinds; kind++) {
            tables[s][kind] = malloc(BLOCKS * plan->units[kind] * sizeof(uint32_t));
            for (uint32_t i = 0; i < BLOCKS * plan->units[kind]; i++) tables[s][kind][i] = n_pages++;
        }
    assert_true(model_kv_alloc(m, n_pages, &e));
    for (int i = 0; i < LONG_N; i++) ids[i] = i == 0 ? 2 : 1000 + (int32_t)((uint32_t)i * 2654435761u % 200000);
    expected = malloc(n_vocab * sizeof(float));
    return 0;
}

static struct model_batch_seq rows_of(int sequence, uint32_t row0, uint32_t pos0, uint32_t n_rows) {
    struct model_batch_seq s = {.row0 = row0, .n_rows = n_rows, .pos0 = pos0};
    for (uint32_t kind = 0; kind < model_kv_plan(m)->n_kinds; kind++) s.table[kind] = tables[sequence][kind];
    return s;
}

/* Positions [pos0, pos0 + n) of the prompt as one step; the logits of the last one. */
static const float *step(int sequence, uint32_t pos0, uint32_t n) {
    static uint32_t positions[LONG_N];
    for (uint32_t i = 0; i < n; i++) positions[i] = pos0 + i;
    struct model_batch_seq s = rows_of(sequence, 0, pos0, n);
    model_forward(
        m, &(struct model_batch){.n_tokens = n, .n_seqs = 1, .ids = ids + pos0, .positions = positions, .seqs = &s});
    return model_logits(m, &(uint32_t){n - 1}, 1);
}

static void expect_equal(const float *logits, const char *what, uint32_t size) {
    if (memcmp(logits, expected, n_vocab * sizeof(float)) == 0) return;
    uint32_t i = 0;
    while (memcmp(&logits[i], &expected[i], sizeof(float)) == 0) i++;
    fail_msg("%s %u: logit %u is %a, expected %a", what, size, i, (double)logits[i], (double)expected[i]);
}

static void every_chunk_size_gives_the_same_logits(void **state) {
    (void)state;
    memcpy(expected, step(0, 0, N), n_vocab * sizeof(float));
    for (uint32_t chunk = 1; chunk < N; chunk++) {
        const float *logits = NULL;
        for (uint32_t pos = 0; pos < N; pos += chunk) logits = step(1, pos, (uint32_t)size_min(chunk, N - pos));
        expect_equal(logits, "chunks of", chunk);
    }
}

static void random_chunks_past_window_and_splits(void **state) {
    (void)state;
    memcpy(expected, step(0, 0, LONG_N), n_vocab * sizeof(float));
    uint32_t random = 12345;
    for (uint32_t round = 0; round < 4; round++) {
        const float *logits = NULL;
        for (uint32_t pos = 0, n; pos < LONG_N; pos += n) {
            random = random * 1664525u + 1013904223u;
            n = (uint32_t)size_min(1 + (random >> 16) % (round % 2 ? 40 : 300), LONG_N - pos);
            logits = step(1, pos, n);
        }
        expect_equal(logits, "random chunks, round", round);
    }
}

/* The last chunk of the prompt shares its step with the rows of another sequence, before or behind it. */
static void beside_another_sequence(void **state) {
    (void)state;
    memcpy(expected, step(0, 0, N), n_vocab * sizeof(float));
    static int32_t mixed[N + OTHER_N];
    static uint32_t positions[N + OTHER_N];
    for (uint32_t tail = 1; tail <= N; tail += 7) {
        for (int behind = 0; behind < 2; behind++) {
            if (tail < N) step(1, 0, N - tail);
            uint32_t row0 = behind ? OTHER_N : 0, other0 = behind ? 0 : tail;
            for (uint32_t i = 0; i < tail; i++) {
                mixed[row0 + i] = ids[N - tail + i];
                positions[row0 + i] = N - tail + i;
            }
            for (uint32_t i = 0; i < OTHER_N; i++) {
                mixed[other0 + i] = ids[LONG_N - 1 - i];
                positions[other0 + i] = i;
            }
            struct model_batch_seq ours = rows_of(1, row0, N - tail, tail), other = rows_of(2, other0, 0, OTHER_N);
            struct model_batch_seq seqs[2] = {behind ? other : ours, behind ? ours : other};
            model_forward(
                m, &(struct model_batch){
                       .n_tokens = tail + OTHER_N, .n_seqs = 2, .ids = mixed, .positions = positions, .seqs = seqs});
            expect_equal(model_logits(m, &(uint32_t){row0 + tail - 1}, 1),
                         behind ? "behind another, tail" : "before another, tail", tail);
        }
    }
}

int main(void) {
    if (!getenv("CHOIR_TEST_MODEL")) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_chunk_size_gives_the_same_logits),
        cmocka_unit_test(random_chunks_past_window_and_splits),
        cmocka_unit_test(beside_another_sequence),
    };
    return cmocka_run_group_tests(tests, open_model, NULL);
}
