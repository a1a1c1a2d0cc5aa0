/* probe.c - what the machine can do in this minute: memory read bandwidth and multiply-add peak.
 *
 * Every figure of bench/peer stands beside these two, because neighbours on a shared host move them by a factor of two.
 * Prints one JSON object. N threads each read their own part of a buffer far over the last-level cache (huge pages
 * where the kernel grants them), then each runs dependent-free chains of vpdpbusd, vdpbf16ps or fp32 fma in registers.
 * The best of several short windows counts: a probe asks for the limit, not the average.
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { THREADS_MAX = 256, WINDOWS = 8, CHAINS = 12, PEAK_LOOPS = 4000000 };
static const size_t BUFFER_BYTES = (size_t)512 << 20;

struct worker {
    pthread_t thread;
    const uint8_t *part; /* [n_bytes] */
    size_t n_bytes;
    double (*work)(const struct worker *w); /* returns the amount done in one window */
    double best_rate;                       /* amount per second */
    uint64_t sink;
};

static pthread_barrier_t barrier;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

__attribute__((target("avx2"))) static double read_bytes(const struct worker *w) {
    __m256i sum[8] = {_mm256_setzero_si256()};
    for (size_t i = 0; i < w->n_bytes; i += 256) {
        const __m256i *p = (const __m256i *)(w->part + i);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) sum[k] = _mm256_xor_si256(sum[k], _mm256_load_si256(p + k));
    }
    for (int k = 1; k < 8; k++) sum[0] = _mm256_xor_si256(sum[0], sum[k]);
    ((struct worker *)w)->sink += (uint64_t)_mm256_extract_epi64(sum[0], 0);
    return (double)w->n_bytes;
}

__attribute__((target("avx512f,avx512vnni"))) static double int8_macs(const struct worker *w) {
    __m512i acc[CHAINS], a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101);
    for (int k = 0; k < CHAINS; k++) acc[k] = _mm512_set1_epi32(k);
    for (int i = 0; i < PEAK_LOOPS; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) acc[k] = _mm512_dpbusd_epi32(acc[k], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int k = 1; k < CHAINS; k++) acc[0] = _mm512_add_epi32(acc[0], acc[k]);
    ((struct worker *)w)->sink += (uint64_t)_mm512_reduce_add_epi32(acc[0]);
    return 64.0 * CHAINS * PEAK_LOOPS;
}

__attribute__((target("avx512f,avx512bf16"))) static double bf16_macs(const struct worker *w) {
    __m512 acc[CHAINS];
    __m512i a = _mm512_set1_epi32(0x3f803f80), b = _mm512_set1_epi32(0x3f803f80);
    for (int k = 0; k < CHAINS; k++) acc[k] = _mm512_set1_ps((float)k);
    for (int i = 0; i < PEAK_LOOPS; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) acc[k] = _mm512_dpbf16_ps(acc[k], (__m512bh)a, (__m512bh)b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int k = 1; k < CHAINS; k++) acc[0] = _mm512_add_ps(acc[0], acc[k]);
    ((struct worker *)w)->sink += (uint64_t)_mm512_reduce_add_ps(acc[0]);
    return 32.0 * CHAINS * PEAK_LOOPS;
}

__attribute__((target("avx2,fma"))) static double f32_macs(const struct worker *w) {
    __m256 acc[CHAINS], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    for (int k = 0; k < CHAINS; k++) acc[k] = _mm256_set1_ps((float)k);
    for (int i = 0; i < PEAK_LOOPS; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) acc[k] = _mm256_fmadd_ps(a, b, acc[k]);
        __asm__ volatile("" : "+x"(a), "+x"(b));
    }
    for (int k = 1; k < CHAINS; k++) acc[0] = _mm256_add_ps(acc[0], acc[k]);
    ((struct worker *)w)->sink += (uint64_t)_mm256_cvtss_f32(acc[0]);
    return 8.0 * CHAINS * PEAK_LOOPS;
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    for (int i = 0; i < WINDOWS; i++) {
        pthread_barrier_wait(&barrier);
        double began = now_s(), done = w->work(w), rate = done / (now_s() - began);
        if (rate > w->best_rate) w->best_rate = rate;
    }
    return NULL;
}

/* Runs work on n threads at once; the sum of their best rates. */
static double probe(struct worker *workers, long n, double (*work)(const struct worker *)) {
    pthread_barrier_init(&barrier, NULL, (unsigned)n);
    for (long i = 0; i < n; i++) {
        workers[i].work = work;
        workers[i].best_rate = 0;
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) {
            perror("pthread_create");
            exit(1);
        }
    }
    double sum = 0;
    for (long i = 0; i < n; i++) {
        pthread_join(workers[i].thread, NULL);
        sum += workers[i].best_rate;
    }
    pthread_barrier_destroy(&barrier);
    return sum;
}

int main(int argc, char **argv) {
    long n = argc > 1 ? strtol(argv[1], NULL, 10) : 2;
    if (n < 1 || n > THREADS_MAX) {
        fprintf(stderr, "usage: %s [THREADS]\n", argv[0]);
        return 1;
    }
    uint8_t *buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    madvise(buffer, BUFFER_BYTES, MADV_HUGEPAGE);
    for (size_t i = 0; i < BUFFER_BYTES; i += 4096) buffer[i] = (uint8_t)(i >> 12);

    static struct worker workers[THREADS_MAX];
    size_t part = BUFFER_BYTES / (size_t)n / 4096 * 4096;
    for (long i = 0; i < n; i++) {
        workers[i].part = buffer + (size_t)i * part;
        workers[i].n_bytes = part;
    }
    double read_gb = 0, int8 = 0, bf16 = 0, f32 = 0;
    if (__builtin_cpu_supports("avx2")) read_gb = probe(workers, n, read_bytes) / 1e9;
    if (__builtin_cpu_supports("avx512vnni")) int8 = probe(workers, n, int8_macs) / 1e9;
    if (__builtin_cpu_supports("avx512bf16")) bf16 = probe(workers, n, bf16_macs) / 1e9;
    if (__builtin_cpu_supports("fma")) f32 = probe(workers, n, f32_macs) / 1e9;
    printf("{\"threads\": %ld, \"read_gb_s\": %.1f, \"int8_gmac_s\": %.0f, \"bf16_gmac_s\": %.0f, \"f32_avx2_gmac_s\": "
           "%.0f}\n",
           n, read_gb, int8, bf16, f32);
    return 0;
}
