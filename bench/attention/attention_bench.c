/* attention_bench.c - speed of attention, and of the row functions over a vocabulary, beside the machine's limits.
 *
 *     bench_attention [THREADS [ISA [KV_TYPE [HEADS KV_HEADS HEAD_DIM]]]]
 *
 * Defaults are the default model's layer: 1 thread, auto, f16, 4 heads, 1 KV head, head_dim 256. Prefill counts the
 * multiply-adds that the causal mask and the window leave (QK and PV), in chunks of 512 rows; decode is one row,
 * counted by the bytes of K and V that it must read, over layers enough that the caches do not hold them. Each figure
 * is the best of some repetitions, since other work on the machine only slows it down; the fma and read rates of this
 * machine are measured in the same run.
 */
#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/kernels.h"

#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 512, CONTEXT_MAX = 8192, DECODE_BYTES = 256 << 20, VOCAB = 262144, REPEATS = 5 };

static struct kernels *k;
static enum dtype kv_type = DT_F16;
static uint32_t n_heads = 4, n_kv_heads = 1, head_dim = 256;

/* Wall time; with one thread its CPU time, so that other work on the machine counts less. */
static double seconds(void) {
    if (!k || k->n_threads > 1) return (double)time_now_ns() * 1e-9;
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- The machine ---- */

/* Eight chains: a result is ready after four cycles, and one (512 bits) or two (256 bits) start per cycle. */
#define FMA_RATE(name, isa, type, set1, fmadd, lanes, reg)                                                             \
    __attribute__((target(isa))) static double name(void) {                                                            \
        type a = set1(1.0f), b = a, c = a, d = a, e = a, f = a, g = a, h = a, x = set1(0.5f), y = set1(0.25f);         \
        double start = seconds();                                                                                      \
        for (int n = 0; n < 4000000; n++) {                                                                            \
            a = fmadd(a, x, y), b = fmadd(b, x, y), c = fmadd(c, x, y), d = fmadd(d, x, y);                            \
            e = fmadd(e, x, y), f = fmadd(f, x, y), g = fmadd(g, x, y), h = fmadd(h, x, y);                            \
            __asm__ volatile("" : "+" reg(a), "+" reg(b), "+" reg(c), "+" reg(d));                                     \
            __asm__ volatile("" : "+" reg(e), "+" reg(f), "+" reg(g), "+" reg(h));                                     \
        }                                                                                                              \
        return 4000000.0 * 8 * (lanes) / (seconds() - start) * 1e-9;                                                   \
    }
FMA_RATE(fma_rate_512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 16, "v")
FMA_RATE(fma_rate_256, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 8, "x")

static double fma_rate(void) {
    double best = 0;
    for (int i = 0; i < 3; i++) {
        double r = __builtin_cpu_supports("avx512f") ? fma_rate_512()
                   : __builtin_cpu_supports("fma")   ? fma_rate_256()
                                                     : 0;
        best = fmax(best, r);
    }
    return best;
}

struct read_job {
    const uint8_t *p;
    size_t bytes_each;
    uint64_t sum[64];
};

static void read_item(void *arg, uint32_t item) {
    struct read_job *j = arg;
    const __m128i *p = (const __m128i *)(const void *)(j->p + item * j->bytes_each);
    __m128i s[4] = {0};
    for (size_t i = 0; i < j->bytes_each / 64; i++) {
        for (int v = 0; v < 4; v++) s[v] = _mm_add_epi64(s[v], _mm_load_si128(p + 4 * i + v));
    }
    j->sum[item] = (uint64_t)_mm_cvtsi128_si64(_mm_add_epi64(_mm_add_epi64(s[0], s[1]), _mm_add_epi64(s[2], s[3])));
}

static double read_rate(const void *p, size_t bytes) {
    struct read_job j = {.p = p, .bytes_each = bytes / 64};
    double best = 1e9;
    for (int i = 0; i < REPEATS; i++) {
        double start = seconds();
        k->parallel(k, 64, read_item, &j);
        best = fmin(best, seconds() - start);
    }
    return (double)bytes / best * 1e-9;
}

/* ---- Attention ---- */

static void fill(float *x, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)seed * 0x1p-31f;
    }
}

static void bench_prefill(struct kv_layer *kv, const uint32_t *pages, uint32_t context, uint32_t window, double peak) {
    size_t row = (size_t)n_heads * head_dim;
    float *q = k->buf_alloc(k, CHUNK * row * 4), *out = k->buf_alloc(k, CHUNK * row * 4);
    fill(q, CHUNK * row, 1);
    double best = 1e9, macs = 0;
    for (uint32_t p = 0; p < context; p++) {
        macs += 2.0 * (double)row * (window && p + 1 > window ? window : p + 1);
    }
    for (int i = 0; i < REPEATS; i++) {
        double start = seconds();
        for (uint32_t pos = 0; pos < context; pos += CHUNK) {
            struct kv_rows seq = {.n_rows = CHUNK, .pos0 = pos, .pages = pages, .page_stride = 1};
            k->attention(k, &(struct attention){q, (uint32_t)row, out, (uint32_t)row, n_heads, window, 0, kv, &seq, 1});
        }
        best = fmin(best, seconds() - start);
    }
    double rate = macs / best * 1e-9;
    printf("prefill %5u  window %4u  %9.1f us  %6.1f GMAC/s  %3.0f %% of fma\n", context, window, best * 1e6, rate,
           100 * rate / (peak * k->n_threads));
    k->buf_free(k, q, CHUNK * row * 4);
    k->buf_free(k, out, CHUNK * row * 4);
}

/* One row against each of many layers' caches in turn, so that K and V come from memory. */
static void bench_decode(struct kv_layer *kv, uint32_t n_pages, uint32_t context, double bandwidth) {
    size_t row = (size_t)n_heads * head_dim;
    uint32_t per_seq = context / KV_PAGE_TOKENS, n_seqs = n_pages / per_seq;
    uint32_t *pages = malloc(n_pages * sizeof *pages);
    for (uint32_t i = 0; i < n_pages; i++) pages[i] = i;
    float *q = k->buf_alloc(k, row * 4), *out = k->buf_alloc(k, row * 4);
    fill(q, row, 2);
    double best = 1e9, bytes = (double)context * n_kv_heads * head_dim * 2 * (double)dtype_row_bytes(kv_type, 1);
    for (int i = 0; i < REPEATS; i++) {
        double start = seconds();
        for (uint32_t s = 0; s < n_seqs; s++) {
            struct kv_rows seq = {.n_rows = 1, .pos0 = context - 1, .pages = pages + s * per_seq, .page_stride = 1};
            k->attention(k, &(struct attention){q, (uint32_t)row, out, (uint32_t)row, n_heads, 0, 0, kv, &seq, 1});
        }
        best = fmin(best, (seconds() - start) / n_seqs);
    }
    printf("decode at %5u         %9.1f us  %6.1f GB/s    %3.0f %% of reading\n", context, best * 1e6,
           bytes / best * 1e-9, 100 * bytes / best * 1e-9 / bandwidth);
    k->buf_free(k, q, row * 4);
    k->buf_free(k, out, row * 4);
    free(pages);
}

static void bench_rope(void) {
    enum { HALF = 128 };
    double inv_freq[HALF], best = 1e9;
    uint32_t positions[CHUNK];
    float *cos = k->buf_alloc(k, sizeof(float) * CHUNK * HALF), *sin = k->buf_alloc(k, sizeof(float) * CHUNK * HALF);
    for (int i = 0; i < HALF; i++) inv_freq[i] = num_pow(10000.0, -2.0 * i / (2 * HALF));
    for (uint32_t i = 0; i < CHUNK; i++) positions[i] = 4000 + i;
    for (int i = 0; i < 20; i++) {
        double start = seconds();
        k->rope_table(k, positions, CHUNK, inv_freq, HALF, 1.0f, cos, sin);
        best = fmin(best, seconds() - start);
    }
    printf("rope table %u x %u       %7.1f us\n", CHUNK, HALF, best * 1e6);
    k->buf_free(k, cos, sizeof(float) * CHUNK * HALF);
    k->buf_free(k, sin, sizeof(float) * CHUNK * HALF);
}

static void bench_rows(void) {
    float *x = k->buf_alloc(k, VOCAB * 4), max;
    uint32_t arg, *idx = malloc(VOCAB * sizeof *idx);
    volatile float sink;
    double t[3] = {1e9, 1e9, 1e9};
    fill(x, VOCAB, 3);
    for (int i = 0; i < 50; i++) {
        double a = seconds();
        k->row_max(x, VOCAB, &max, &arg);
        double b = seconds();
        sink = k->row_sum_exp(x, VOCAB, max, 1.0f);
        double c = seconds();
        k->row_select(x, VOCAB, 0.9995f, idx, VOCAB);
        double d = seconds();
        t[0] = fmin(t[0], b - a), t[1] = fmin(t[1], c - b), t[2] = fmin(t[2], d - c);
    }
    (void)sink;
    printf("%u logits: max %.1f us, sum of exp %.1f us, select %.1f us\n", VOCAB, t[0] * 1e6, t[1] * 1e6, t[2] * 1e6);
    free(idx);
    k->buf_free(k, x, VOCAB * 4);
}

static void bench_qkv_post(struct kv_layer *kv, const uint32_t *pages, uint32_t n_rows) {
    uint32_t stride = (n_heads + 2 * n_kv_heads) * head_dim;
    float *qkv = k->buf_alloc(k, (size_t)n_rows * stride * 4), *table = k->buf_alloc(k, (size_t)n_rows * head_dim * 2);
    float *norm = k->buf_alloc(k, head_dim * 4);
    fill(qkv, (size_t)n_rows * stride, 4);
    fill(table, (size_t)n_rows * head_dim / 2, 5);
    fill(norm, head_dim, 6);
    double best = 1e9;
    for (int i = 0; i < 20; i++) {
        struct kv_rows seq = {.n_rows = n_rows, .pos0 = 64, .pages = pages, .page_stride = 1};
        struct qkv_post a = {qkv,      stride, n_heads, norm,    norm, 1e-6f, ROPE_NEOX,
                             head_dim, table,  table,   0.0625f, kv,   &seq,  1};
        double start = seconds();
        k->qkv_post(k, &a);
        best = fmin(best, seconds() - start);
    }
    printf("qkv_post %4u rows       %7.1f us\n", n_rows, best * 1e6);
    k->buf_free(k, qkv, (size_t)n_rows * stride * 4);
    k->buf_free(k, table, (size_t)n_rows * head_dim * 2);
    k->buf_free(k, norm, head_dim * 4);
}

static bool arguments(int argc, char **argv, struct kernels_options *o) {
    *o = (struct kernels_options){.n_threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 1,
                                  .isa = argc > 2 ? argv[2] : "auto"};
    if (argc > 3) {
        enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_I8};
        const char *names[] = {"f32", "f16", "bf16", "i8"};
        size_t i = 0;
        while (i < 4 && strcmp(argv[3], names[i])) i++;
        if (i == 4) return false;
        kv_type = types[i];
    }
    if (argc > 6) {
        n_heads = (uint32_t)atoi(argv[4]);
        n_kv_heads = (uint32_t)atoi(argv[5]);
        head_dim = (uint32_t)atoi(argv[6]);
    }
    return n_heads && n_kv_heads && head_dim && head_dim % 16 == 0 && n_heads % n_kv_heads == 0;
}

int main(int argc, char **argv) {
    struct kernels_options o;
    struct err e;
    if (!arguments(argc, argv, &o) || !(k = kernels_cpu_open(&o, &e))) {
        fprintf(stderr, "usage: bench_attention [THREADS [ISA [f32|f16|bf16|i8 [HEADS KV_HEADS HEAD_DIM]]]]\n");
        return 1;
    }
    unsigned saved = fpmode_enter();
    size_t page_bytes = k->kv_layer_bytes(kv_type, n_kv_heads, head_dim);
    uint32_t n_pages = (uint32_t)(DECODE_BYTES / page_bytes);
    struct kv_layer kv = {.page_bytes = page_bytes, .type = kv_type, .n_kv_heads = n_kv_heads, .head_dim = head_dim};
    kv.slab = k->buf_alloc(k, n_pages * page_bytes);
    memset(kv.slab, 0x3c, n_pages * page_bytes);
    uint32_t pages[CONTEXT_MAX / KV_PAGE_TOKENS];
    for (uint32_t i = 0; i < ARRAY_COUNT(pages); i++) pages[i] = (i * 7) % ARRAY_COUNT(pages);
    double peak = fma_rate(), bandwidth = read_rate(kv.slab, n_pages * page_bytes / 4096 * 4096);
    printf("%u thread(s), %s, %s, %u/%u heads of %u; fma %.1f GMAC/s per thread, reading %.1f GB/s\n", k->n_threads,
           k->isa, argc > 3 ? argv[3] : "f16", n_heads, n_kv_heads, head_dim, peak, bandwidth);
    for (uint32_t context = 512; context <= CONTEXT_MAX; context *= 4) bench_prefill(&kv, pages, context, 0, peak);
    bench_prefill(&kv, pages, 2048, 512, peak);
    for (uint32_t context = 512; context <= CONTEXT_MAX; context *= 4) bench_decode(&kv, n_pages, context, bandwidth);
    bench_qkv_post(&kv, pages, 1);
    bench_qkv_post(&kv, pages, 512);
    bench_rope();
    bench_rows();
    fpmode_leave(saved);
    k->buf_free(k, kv.slab, n_pages * page_bytes);
    k->close(k);
}
