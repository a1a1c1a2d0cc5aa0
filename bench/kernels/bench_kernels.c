/* bench_kernels.c - how fast the CPU backend multiplies, beside what the machine can do in the same minute.
 *
 *   bench_kernels [isa]
 *
 * GEMM: GMAC/s per type for T tokens on [2048][K]; best of several short runs, because neighbours share this kind of
 * machine. GEMV: GB/s of weights for one token out of DRAM (a 170 MB Q8_0 matrix), alternating with a plain read of
 * the same bytes by the same pool, both as medians; the ratio is what counts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/cpu/cpu.h"

enum { N_ROWS = 2048, REPS = 7, GEMV_ROWS = 262144, GEMV_COLS = 640, GEMV_REPS = 31 };

static double seconds(void) { return (double)time_now_ns() * 1e-9; }

static struct kernels *open_or_die(const char *isa, uint32_t n_threads) {
    struct err e = {0};
    struct kernels *k = kernels_cpu_open(&(struct kernels_options){.n_threads = n_threads, .isa = isa}, &e);
    if (!k) {
        fprintf(stderr, "%s\n", e.message);
        exit(1);
    }
    return k;
}

static struct weight *weight_make(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols) {
    struct err e = {0};
    const size_t bytes = dtype_row_bytes(t, n_cols) * n_rows;
    uint8_t *src = malloc(bytes);
    if (!src) exit(1);
    for (size_t i = 0; i < bytes; i++) src[i] = (uint8_t)(i * 2654435761u >> 13 & 0x3f); /* finite as any float type */
    const struct slices s = slices_single(n_cols);
    const double t0 = seconds();
    struct weight *w = k->weight_pack(k, t, n_rows, n_cols, src, dtype_row_bytes(t, n_cols), &s, &e);
    if (!w) {
        fprintf(stderr, "%s\n", e.message);
        exit(1);
    }
    if (bytes > 1 << 27) printf("repacking %.0f MB: %.3f s\n", (double)bytes * 1e-6, seconds() - t0);
    free(src);
    return w;
}

static struct act *act_make(struct kernels *k, const struct weight *w, uint32_t n_tokens) {
    const unsigned format = k->weight_act_format(w);
    struct act *a = k->act_alloc(k, n_tokens, w->n_cols, format);
    float *x = k->buf_alloc(k, (size_t)n_tokens * w->n_cols * sizeof(float));
    if (!a || !x) exit(1);
    for (size_t i = 0; i < (size_t)n_tokens * w->n_cols; i++) x[i] = (float)(i * 40503 % 1000) * 1e-3f - 0.5f;
    k->act_pack(k, x, w->n_cols, n_tokens, w->n_cols, a, format);
    k->buf_free(k, x, (size_t)n_tokens * w->n_cols * sizeof(float));
    return a;
}

/* ---- GEMM ---- */

static double gemm_rate(struct kernels *k, const struct weight *w, uint32_t n_tokens) {
    struct act *a = act_make(k, w, n_tokens);
    const size_t y_bytes = (size_t)n_tokens * w->n_rows * sizeof(float);
    float *y = k->buf_alloc(k, y_bytes);
    const struct matmul m = {.w = w, .y = y, .y_stride = w->n_rows};
    const double macs = (double)n_tokens * w->n_rows * w->n_cols;
    const int inner = (int)(1e8 / macs) + 1;
    double best = 1e9;
    for (int r = 0; r < REPS; r++) {
        const double t0 = seconds();
        for (int i = 0; i < inner; i++) k->matmul(k, &m, 1, a, n_tokens);
        const double t = (seconds() - t0) / inner;
        if (t < best) best = t;
    }
    k->buf_free(k, y, y_bytes);
    k->act_free(k, a);
    return macs / best * 1e-9;
}

static void gemm_table(const char *isa, uint32_t n_threads) {
    static const enum dtype types[] = {DT_Q8_0, DT_Q5_0, DT_Q4_0, DT_Q4_K, DT_Q5_K, DT_Q6_K, DT_BF16, DT_F16, DT_F32};
    static const uint32_t tokens[] = {1, 8, 16, 64, 512}, cols[] = {640, 2048};
    struct kernels *k = open_or_die(isa, n_threads);
    printf("\nGEMM, GMAC/s, %u thread(s), %s\n%-6s %5s", k->n_threads, k->isa, "type", "K");
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) printf("  T=%-5u", tokens[i]);
    printf("\n");
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        for (size_t j = 0; j < ARRAY_COUNT(cols); j++) {
            if (cols[j] % dtype_block_len(types[i])) continue;
            struct weight *w = weight_make(k, types[i], N_ROWS, cols[j]);
            printf("%-6s %5u", dtype_name(types[i]), cols[j]);
            for (size_t n = 0; n < ARRAY_COUNT(tokens); n++) printf("  %7.1f", gemm_rate(k, w, tokens[n]));
            printf("\n");
            fflush(stdout);
            k->weight_free(k, w);
        }
    }
    k->close(k);
}

/* ---- GEMV against a plain read ---- */

struct read_job {
    const uint8_t *base;
    size_t item_bytes;
    uint64_t *sums;
};

__attribute__((target("avx2"))) static void read_item(void *arg, uint32_t item) {
    typedef uint64_t vec __attribute__((vector_size(32)));
    const struct read_job *j = arg;
    const vec *p = (const vec *)(const void *)(j->base + item * j->item_bytes);
    vec s[4] = {{0}};
    for (size_t i = 0; i < j->item_bytes / sizeof(vec); i += 4) {
        for (int q = 0; q < 4; q++) s[q] += p[i + (size_t)q];
    }
    const vec t = s[0] + s[1] + s[2] + s[3];
    j->sums[item] = t[0] + t[1] + t[2] + t[3];
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void gemv_table(const char *isa, uint32_t n_threads) {
    struct kernels *k = open_or_die(isa, n_threads);
    struct weight *w = weight_make(k, DT_Q8_0, GEMV_ROWS, GEMV_COLS);
    const size_t bytes = k->weight_bytes(w);
    struct read_job j = {.base = w->panels, .item_bytes = w->panel_bytes * 4};
    const uint32_t n_items = w->n_panels / 4;
    j.sums = calloc(n_items, sizeof *j.sums);
    printf("\nGEMV out of DRAM, %.0f MB, %u thread(s), medians\n", (double)bytes * 1e-6, k->n_threads);
    for (uint32_t n_tokens = 1; n_tokens <= 8; n_tokens *= 2) {
        struct act *a = act_make(k, w, n_tokens);
        float *y = k->buf_alloc(k, (size_t)n_tokens * GEMV_ROWS * sizeof(float));
        const struct matmul m = {.w = w, .y = y, .y_stride = GEMV_ROWS};
        double read[GEMV_REPS], gemv[GEMV_REPS];
        for (int r = 0; r < GEMV_REPS; r++) {
            double t0 = seconds();
            k->parallel(k, n_items, read_item, &j);
            read[r] = (double)bytes / (seconds() - t0) * 1e-9;
            t0 = seconds();
            k->matmul(k, &m, 1, a, n_tokens);
            gemv[r] = (double)bytes / (seconds() - t0) * 1e-9;
        }
        qsort(read, GEMV_REPS, sizeof *read, by_value);
        qsort(gemv, GEMV_REPS, sizeof *gemv, by_value);
        const double g = gemv[GEMV_REPS / 2], b = read[GEMV_REPS / 2];
        printf("T=%u  read %5.1f GB/s  matmul %5.1f GB/s  ratio %.2f  best/best %.2f\n", n_tokens, b, g, g / b,
               gemv[GEMV_REPS - 1] / read[GEMV_REPS - 1]);
        k->buf_free(k, y, (size_t)n_tokens * GEMV_ROWS * sizeof(float));
        k->act_free(k, a);
    }
    free(j.sums);
    k->weight_free(k, w);
    k->close(k);
}

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : "auto";
    gemm_table(isa, 1);
    gemm_table(isa, 2);
    gemv_table(isa, 1);
    gemv_table(isa, 2);
    return 0;
}
