/* test_attention.c - attention against plain double arithmetic, and its bits under everything that must not matter:
 * instruction set, chunking, company in the batch, threads, pages, what lies in slots that are not seen.
 */
#include "kv_world.h"

static const char *const type_names[] = {[DT_F32] = "f32", [DT_F16] = "f16", [DT_BF16] = "bf16", [DT_I8] = "i8"};
static const enum dtype kv_types[] = {DT_F32, DT_F16, DT_BF16, DT_I8};

static const char *case_name(const struct layer_case *c) {
    static char text[128];
    snprintf(text, sizeof text, "%s heads %u/%u of %u, window %u, softcap %g", type_names[c->type], c->n_heads,
             c->n_kv_heads, c->head_dim, c->window, (double)c->softcap);
    return text;
}

static uint32_t width_of(const struct layer_case *c) {
    return c->n_heads * c->head_dim;
}

static struct kernels *best(uint32_t n_threads) {
    struct kernels *k = kernels_try("auto", n_threads);
    assert_non_null(k);
    return k;
}

/* ---- The oracle: double arithmetic on what the storage type makes of k and v ---- */

static double stored(enum dtype t, float x) {
    if (t == DT_F16) return (double)(_Float16)x;
    if (t == DT_BF16) { /* the nearer of the two neighbours, even on a tie */
        uint32_t low = f32_bits(x) & 0xffff0000u, up = low + 0x10000u;
        double below = f32_from_bits(low), above = f32_from_bits(up), d = fabs(x - below) - fabs(x - above);
        return d < 0 || (d == 0 && !(low & 0x10000u)) ? below : above;
    }
    return x;
}

static void head_stored(enum dtype t, const float *x, uint32_t n, double *y) {
    double amax = 0;
    for (uint32_t i = 0; i < n; i++) amax = fmax(amax, fabs(x[i]));
    for (uint32_t i = 0; i < n; i++) y[i] = t == DT_I8 ? rint(x[i] * 127 / amax) * (amax / 127) : stored(t, x[i]);
}

/* Row `pos`, head `h`. */
static void oracle(const struct world *w, const struct sequence *s, uint32_t pos, uint32_t h, double *out) {
    const struct layer_case *c = &w->c;
    uint32_t n = c->head_dim, lo = c->window && pos + 1 > c->window ? pos + 1 - c->window : 0;
    uint32_t kv_head = h / (c->n_heads / c->n_kv_heads);
    const float *q = s->rows + (size_t)pos * w->stride + h * n;
    double *score = calloc(pos + 1, sizeof *score), row[512], max = -INFINITY, sum = 0;
    for (uint32_t t = lo; t <= pos; t++) {
        head_stored(c->type, s->rows + (size_t)t * w->stride + (c->n_heads + kv_head) * n, n, row);
        for (uint32_t d = 0; d < n; d++) score[t] += (double)q[d] * world_q_scale(c) * row[d];
        if (c->softcap != 0) score[t] = c->softcap * tanh(score[t] / c->softcap);
        max = fmax(max, score[t]);
    }
    for (uint32_t t = lo; t <= pos; t++) sum += exp(score[t] - max);
    memset(out, 0, n * sizeof *out);
    for (uint32_t t = lo; t <= pos; t++) {
        head_stored(c->type, s->rows + (size_t)t * w->stride + (c->n_heads + c->n_kv_heads + kv_head) * n, n, row);
        for (uint32_t d = 0; d < n; d++) out[d] += exp(score[t] - max) / sum * row[d];
    }
    free(score);
}

static void check_against_oracle(struct kernels *k, const struct layer_case *c, uint32_t n_tokens) {
    struct world *w = world_open(k, c, 7, 1, 1, &n_tokens);
    world_run(w, k, 0, 190, 0);
    const struct sequence *s = &w->seq[0];
    /* int8: fp32 and double may round a tie of the quantization differently. */
    double tolerance = c->type == DT_I8 ? 2e-4 : 4e-6, want[512];
    for (uint32_t pos = 0; pos < n_tokens; pos = pos * 3 / 2 + 1) {
        for (uint32_t h = 0; h < c->n_heads; h += 3) {
            oracle(w, s, pos, h, want);
            const float *got = s->out + (size_t)pos * width_of(c) + h * c->head_dim;
            for (uint32_t d = 0; d < c->head_dim; d++) {
                if (!(fabs(got[d] - want[d]) <= tolerance)) {
                    fail_msg("%s: position %u head %u [%u]: %g, not %g", case_name(c), pos, h, d, got[d], want[d]);
                }
            }
        }
    }
    world_close(w);
}

static void attention_equals_double_arithmetic(void **state) {
    (void)state;
    struct kernels *k = best(2);
    const uint32_t windows[] = {0, 1, 31, 32, 33, 300, 512}, dims[] = {16, 64, 80, 128, 256};
    const uint32_t heads[][2] = {{4, 1}, {4, 4}, {4, 2}, {8, 1}, {6, 2}, {7, 1}, {71, 1}};
    for (uint32_t t = 0; t < ARRAY_COUNT(kv_types); t++) {
        for (uint32_t i = 0; i < ARRAY_COUNT(windows); i++) {
            const uint32_t *h = heads[i % ARRAY_COUNT(heads)];
            struct layer_case c = {kv_types[t], h[0], h[1], dims[(t + i) % 5], windows[i], i == 2 || i == 5 ? 2.5f : 0};
            check_against_oracle(k, &c, 600);
        }
    }
    check_against_oracle(k, &(struct layer_case){DT_F16, 2, 1, 512, 0, 0}, 300);
    check_against_oracle(k, &(struct layer_case){DT_F16, 4, 1, 64, 0, 0}, 1500);
    k->close(k);
}

/* ---- Bits ---- */

static const struct layer_case bit_cases[] = {
    {DT_F16, 4, 1, 256, 0, 0},      {DT_F16, 4, 1, 64, 33, 0},   {DT_F32, 2, 2, 80, 0, 0},
    {DT_BF16, 8, 1, 16, 31, 0},     {DT_I8, 4, 1, 128, 0, 0},    {DT_I8, 7, 1, 16, 300, 0},
    {DT_F16, 3, 3, 64, 300, 30.0f}, {DT_F16, 2, 1, 16, 1, 0},    {DT_BF16, 4, 2, 128, 32, 0},
    {DT_F32, 10, 2, 48, 512, 0},    {DT_I8, 2, 2, 80, 33, 5.0f}, {DT_F32, 65, 1, 16, 0, 0},
};

/* Rows from `from` on of two runs of the same content. */
static void check_same(const struct world *a, const struct world *b, uint32_t seq_a, uint32_t seq_b, uint32_t from,
                       const char *what) {
    uint32_t n = a->seq[seq_a].n_tokens, width = width_of(&a->c);
    char text[256];
    snprintf(text, sizeof text, "%s (%s)", what, case_name(&a->c));
    assert_int_equal(n, b->seq[seq_b].n_tokens);
    const size_t at = (size_t)from * width;
    assert_same_bits(a->seq[seq_a].out + at, b->seq[seq_b].out + at, (size_t)(n - from) * width, text);
}

static void instruction_sets_give_the_same_bits(void **state) {
    (void)state;
    struct kernels *scalar = kernels_try("scalar", 1);
    assert_non_null(scalar);
    const char *const names[] = {"avx2", "avx512"};
    for (uint32_t l = 0; l < ARRAY_COUNT(names); l++) {
        struct kernels *k = kernels_try(names[l], 1);
        if (!k) continue;
        for (uint32_t i = 0; i < ARRAY_COUNT(bit_cases); i++) {
            const struct layer_case *c = &bit_cases[i];
            const struct {
                uint32_t n, from, chunk; /* rows below `from` only write K and V: the scalar path is slow */
            } runs[] = {{70, 0, 70}, {290, 250, 40}, {1500, 1493, 5}, {1500, 1495, 1}};
            for (uint32_t r = 0; r < ARRAY_COUNT(runs); r++) {
                struct world *a = world_open(scalar, c, i + 1, 4, 1, &runs[r].n);
                struct world *b = world_open(k, c, i + 1, 4, 1, &runs[r].n);
                world_run(a, scalar, 0, r ? runs[r].n : 70, runs[r].from);
                world_run(b, k, 0, runs[r].chunk, runs[r].from);
                check_same(a, b, 0, 0, runs[r].from, names[l]);
                world_close(a);
                world_close(b);
            }
        }
        k->close(k);
    }
    scalar->close(scalar);
}

static void chunk_cuts_do_not_show(void **state) {
    (void)state;
    struct kernels *k = best(1);
    for (uint32_t i = 0; i < ARRAY_COUNT(bit_cases); i++) {
        const struct layer_case *c = &bit_cases[i];
        const uint32_t n = c->head_dim >= 128 ? 530 : 800;
        const uint32_t chunks[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 100, 255, 256, 257, 500};
        struct world *whole = world_open(k, c, 3, 2, 1, &n);
        world_run(whole, k, 0, n, 0);
        for (uint32_t j = 0; j < ARRAY_COUNT(chunks); j++) {
            struct world *w = world_open(k, c, 3, 2, 1, &n);
            world_run(w, k, 0, chunks[j], 0);
            char text[64];
            snprintf(text, sizeof text, "chunks of %u", chunks[j]);
            check_same(whole, w, 0, 0, 0, text);
            world_close(w);
        }
        world_close(whole);
    }
    k->close(k);
}

/* Every cut of a short sequence in two. */
static void every_cut_in_two_gives_the_same_bits(void **state) {
    (void)state;
    struct kernels *k = best(1);
    const struct layer_case c = {DT_F16, 4, 1, 64, 48, 0};
    const uint32_t n = 150;
    struct world *whole = world_open(k, &c, 3, 2, 1, &n);
    world_run(whole, k, 0, n, 0);
    for (uint32_t cut = 1; cut < n; cut++) {
        struct world *w = world_open(k, &c, 3, 2, 1, &n);
        world_step(w, k, &(struct part){0, 0, cut}, 1, true);
        world_step(w, k, &(struct part){0, cut, n - cut}, 1, true);
        check_same(whole, w, 0, 0, 0, "cut in two");
        world_close(w);
    }
    world_close(whole);
    k->close(k);
}

/* Six sequences in shuffled order, with chunks that change from step to step, against each one alone. */
static void company_and_threads_do_not_show(void **state) {
    (void)state;
    const uint32_t lengths[] = {700, 33, 1, 410, 256, 97}, n = ARRAY_COUNT(lengths), threads[] = {1, 2, 5};
    for (uint32_t i = 0; i < ARRAY_COUNT(bit_cases); i++) {
        struct kernels *one = best(1);
        struct world *alone = world_open(one, &bit_cases[i], 9, 3, n, lengths);
        for (uint32_t s = 0; s < n; s++) world_run(alone, one, s, lengths[s], 0);
        for (uint32_t t = 0; t < ARRAY_COUNT(threads); t++) {
            struct kernels *k = best(threads[t]);
            struct world *crowd = world_open(k, &bit_cases[i], 9, 12 + t, n, lengths);
            struct rng r = {77 + t};
            uint32_t done[ARRAY_COUNT(lengths)] = {0};
            for (uint32_t left = n; left;) {
                struct part parts[WORLD_SEQS];
                uint32_t n_parts = 0, first = rng_below(&r, n);
                for (uint32_t j = 0; j < n; j++) {
                    uint32_t s = (first + j) % n, rest = lengths[s] - done[s];
                    if (!rest || rng_below(&r, 4) == 0) continue;
                    uint32_t rows = rng_below(&r, 2) ? 1 + rng_below(&r, 200) : 1 + rng_below(&r, 20);
                    rows = rows < rest ? rows : rest;
                    parts[n_parts++] = (struct part){s, done[s], rows};
                    done[s] += rows;
                    left -= done[s] == lengths[s];
                }
                if (n_parts) world_step(crowd, k, parts, n_parts, true);
            }
            for (uint32_t s = 0; s < n; s++) check_same(alone, crowd, s, s, 0, "in company");
            world_close(crowd);
            k->close(k);
        }
        world_close(alone);
        one->close(one);
    }
}

/* Few rows over long contexts: with several threads the splits are shared out, here in several rounds. */
static void sharing_out_splits_does_not_show(void **state) {
    (void)state;
    const uint32_t lengths[] = {6000, 1500, 300};
    const struct layer_case cases[] = {{DT_F16, 4, 1, 64, 0, 0}, {DT_I8, 2, 1, 32, 0, 0}, {DT_F16, 2, 1, 32, 1100, 9}};
    for (uint32_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct kernels *one = best(1);
        struct world *a = world_open(one, &cases[i], 5, 2, 3, lengths);
        for (uint32_t s = 0; s < 3; s++) world_run(a, one, s, 6000, lengths[s] - 20);
        for (uint32_t threads = 2; threads <= 5; threads += 3) {
            struct kernels *k = best(threads);
            struct world *b = world_open(k, &cases[i], 5, 2, 3, lengths);
            for (uint32_t s = 0; s < 3; s++) {
                world_step(b, k, &(struct part){s, 0, lengths[s] - 20}, 1, false);
            }
            for (uint32_t row = 0; row < 20; row += row < 4 ? 1 : 16) {
                struct part parts[3];
                for (uint32_t s = 0; s < 3; s++) parts[s] = (struct part){s, lengths[s] - 20 + row, row < 4 ? 1 : 16};
                uint32_t n_parts = 1 + row % 3;
                world_step(b, k, parts, n_parts, true);
                for (uint32_t s = n_parts; s < 3; s++) world_step(b, k, &parts[s], 1, true);
            }
            for (uint32_t s = 0; s < 3; s++) check_same(a, b, s, s, lengths[s] - 20, "splits shared out");
            world_close(b);
            k->close(k);
        }
        world_close(a);
        one->close(one);
    }
}

/* A row whose k and v overflow or are NaN is seen by itself and later rows, never by earlier ones of the same call. */
static void a_poisoned_row_does_not_reach_earlier_ones(void **state) {
    (void)state;
    const uint32_t n = 400, poisoned = 290;
    const char *const names[] = {"scalar", "avx2", "avx512"};
    for (uint32_t l = 0; l < ARRAY_COUNT(names); l++) {
        struct kernels *k = kernels_try(names[l], 1);
        if (!k) continue;
        for (uint32_t t = 0; t < ARRAY_COUNT(kv_types); t++) {
            const struct layer_case c = {kv_types[t], 2, 1, 16, 40, 0};
            struct world *a = world_open(k, &c, 2, 2, 1, &n), *b = world_open(k, &c, 2, 2, 1, &n);
            float *row = b->seq[0].rows + (size_t)poisoned * b->stride;
            row[2 * 16] = NAN;
            row[3 * 16] = INFINITY;
            row[3 * 16 + 1] = -1e30f;
            world_run(a, k, 0, n, 0);
            world_run(b, k, 0, n, 0);
            const float *x = a->seq[0].out, *y = b->seq[0].out;
            assert_same_bits(x, y, poisoned * 32, "before the poisoned row");
            for (uint32_t p = poisoned; p < poisoned + 40; p++) {
                for (uint32_t h = 0; h < 2; h++) assert_true(isnan(y[p * 32 + h * 16]));
            }
            assert_same_bits(x + (poisoned + 40) * 32, y + (poisoned + 40) * 32, (n - poisoned - 40) * 32,
                             "window passed");
            world_close(a);
            world_close(b);
        }
        k->close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_equals_double_arithmetic),
        cmocka_unit_test(instruction_sets_give_the_same_bits),
        cmocka_unit_test(chunk_cuts_do_not_show),
        cmocka_unit_test(every_cut_in_two_gives_the_same_bits),
        cmocka_unit_test(company_and_threads_do_not_show),
        cmocka_unit_test(sharing_out_splits_does_not_show),
        cmocka_unit_test(a_poisoned_row_does_not_reach_earlier_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
