/* bench_kernels.c - how fast the CPU backend multiplies, beside what the machine can do in the same minute.
 *
 *   bench_kernels [auto|scalar|avx2|avx512 [gemm|gemv]]
 *
 * GEMM: GMAC/s per type for T tokens on [2048][K]; best of several short runs, because neighbours share this kind of
 * machine. GEMV: GB/s of weights for one token out of DRAM (Q8_0 in the shape of a 262144-word lm_head), alternating
 * with a plain read of the same bytes by the same pool, both as medians of the samples in which the process was not
 * interrupted; the ratio is what counts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/kernels/cpu/cpu.h"

enum { N_ROWS = 2048, REPS = 7, GEMV_ROWS = 262144, GEMV_COLS = 640, GEMV_WINDOWS = 16, GEMV_REPS = 320 };

static double seconds(void) {
    return (double)time_now_ns() * 1e-9;
}

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
    struct weight *w = k->weight_pack(k, t, n_rows, n_cols, src, dtype_row_bytes(t, n_cols), &s, &e);
    if (!w) {
        fprintf(stderr, "%s\n", e.message);
        exit(1);
    }
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

/* A matrix in windows, each short enough to be measured between two interruptions, all together too large for any
 * cache. The read of a window and the product of the window half way round alternate. */
struct gemv {
    struct kernels *k;
    struct weight window[GEMV_WINDOWS];
    struct act *x;
    float *y;
    struct read_job read;
    uint32_t n_tokens;
};

static void read_run(struct gemv *g, const struct weight *w) {
    g->read.base = w->panels;
    g->k->parallel(g->k, w->n_panels / 4, read_item, &g->read);
}

static void product_run(struct gemv *g, const struct weight *w) {
    const struct matmul m = {.w = w, .y = g->y, .y_stride = w->n_rows};
    g->k->matmul(g->k, &m, 1, g->x, g->n_tokens);
}

static long interruptions(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_nivcsw;
}

/* GB/s of one run over w, or 0 if the process was interrupted meanwhile. */
static double window_rate(struct gemv *g, const struct weight *w, void (*run)(struct gemv *, const struct weight *)) {
    read_run(g, &(struct weight){.panels = w->panels, .n_panels = 64}); /* wakes the threads */
    const long before = interruptions();
    const double t0 = seconds();
    run(g, w);
    const double t = seconds() - t0;
    return interruptions() == before ? (double)g->k->weight_bytes(w) / t * 1e-9 : 0;
}

static double median(double *v, size_t n) {
    qsort(v, n, sizeof *v, by_value);
    return n ? v[n / 2] : 0;
}

static void gemv_line(struct kernels *k, const struct weight *w, uint32_t n_tokens) {
    struct gemv g = {.k = k, .n_tokens = n_tokens, .x = act_make(k, w, n_tokens)};
    const uint32_t n_panels = w->n_panels / GEMV_WINDOWS;
    for (uint32_t i = 0; i < GEMV_WINDOWS; i++) {
        g.window[i] = *w;
        g.window[i].panels += (size_t)i * n_panels * w->panel_bytes;
        g.window[i].n_panels = n_panels;
        g.window[i].n_rows = n_panels * ROW_PANEL;
    }
    const size_t y_bytes = (size_t)n_tokens * n_panels * ROW_PANEL * sizeof(float);
    g.y = k->buf_alloc(k, y_bytes);
    g.read = (struct read_job){.item_bytes = w->panel_bytes * 4, .sums = calloc(n_panels, sizeof *g.read.sums)};
    if (!g.y || !g.read.sums) exit(1);
    double read[GEMV_REPS], product[GEMV_REPS];
    size_t n_read = 0, n_product = 0;
    for (uint32_t r = 0; r < GEMV_REPS; r++) {
        const double a = window_rate(&g, &g.window[r % GEMV_WINDOWS], read_run);
        const double b = window_rate(&g, &g.window[(r + GEMV_WINDOWS / 2) % GEMV_WINDOWS], product_run);
        if (a > 0) read[n_read++] = a;
        if (b > 0) product[n_product++] = b;
    }
    const double a = median(read, n_read), b = median(product, n_product);
    printf("%-6s %4.0f MB  T=%u  read %5.1f  matmul %5.1f GB/s  ratio %.2f  (%zu and %zu clean samples)\n",
           dtype_name(w->type), (double)k->weight_bytes(w) * 1e-6, n_tokens, a, b, b / a, n_read, n_product);
    fflush(stdout);
    k->buf_free(k, g.y, y_bytes);
    k->act_free(k, g.x);
    free(g.read.sums);
}

static void gemv_table(const char *isa, uint32_t n_threads) {
    static const enum dtype types[] = {DT_Q8_0, DT_Q5_0, DT_Q4_K, DT_Q6_K, DT_BF16};
    struct kernels *k = open_or_die(isa, n_threads);
    printf("\nGEMV out of DRAM, %u thread(s), medians\n", k->n_threads);
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        const bool lm_head = types[i] == DT_Q8_0;
        struct weight *w = weight_make(k, types[i], lm_head ? GEMV_ROWS : 65536, lm_head ? GEMV_COLS : 2048);
        gemv_line(k, w, 1);
        for (uint32_t n_tokens = 2; lm_head && n_tokens <= 8; n_tokens *= 2) gemv_line(k, w, n_tokens);
        k->weight_free(k, w);
    }
    k->close(k);
}

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : "auto";
    const char *part = argc > 2 ? argv[2] : "";
    for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
        if (strcmp(part, "gemv") != 0) gemm_table(isa, n_threads);
        if (strcmp(part, "gemm") != 0) gemv_table(isa, n_threads);
    }
    return 0;
}
