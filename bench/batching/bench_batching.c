/* bench_batching.c - host time of a step: sched_plan + sched_commit, with the appending of one token per sequence.
 *
 * KV has the shape of the default model (3 full layers and 15 with a window of 512: 1 and 5 pages a block).
 * "steady": n sequences decode, nobody waits. "churn": a thousand requests of 500 + 200 tokens in a closed loop, memory
 * for about n of them; admission, prefill, naming, eviction, removal and submission are inside the measured time.
 * Prints mean, median, 99th percentile and worst of a step in ns, and per sequence.
 */
#include "engine/batching/batching.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    N_PROMPT = 500,
    N_STEPS = 4000,
    N_WARM = 300,
    N_CHURN = 1000,
    N_CHURN_OUT = 200,
    N_TOTAL = N_PROMPT + N_STEPS + 1000
};

struct bench {
    struct kv *kv;
    struct sched *s;
    bool churn;
    uint32_t n_made;
};

static void die(const struct err *e) {
    fprintf(stderr, "%s\n", e->message);
    exit(1);
}

static void submit(struct bench *b, struct seq *q) {
    struct err e;
    uint32_t id = b->n_made++;
    for (uint32_t i = 0; i < N_PROMPT; i++) q->tokens[i] = (int32_t)(id * 7919 + i);
    q->n_tokens = q->n_prompt = N_PROMPT;
    q->max_tokens_total = b->churn ? N_PROMPT + N_CHURN_OUT : N_TOTAL;
    if (!sched_add(b->s, q, &e)) die(&e);
}

/* One step as the engine makes it; those that are done come again. Returns the rows. */
static uint32_t step(struct bench *b) {
    const struct step_plan *plan = sched_plan(b->s);
    uint32_t n = plan->n_seqs, n_rows = plan->n_tokens;
    sched_commit(b->s);
    for (uint32_t i = 0; i < n; i++) {
        struct seq *q = plan->seqs[i].seq;
        if (!plan->seqs[i].samples) continue;
        q->tokens[q->n_tokens++] = (int32_t)i;
        if (q->n_tokens < q->max_tokens_total) continue;
        sched_remove(b->s, q);
        submit(b, q);
    }
    return n_rows;
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void bench_open(struct bench *b, uint32_t n_seqs, bool prefix_cache) {
    uint32_t blocks = (N_TOTAL + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    uint32_t pages_each = b->churn ? 24 + 18 * 5 : blocks + 40 * 5;
    struct kv_options k = {.n_pages = n_seqs * pages_each,
                           .n_kinds = 2,
                           .units = {1, 5},
                           .window = {0, 512},
                           .prefix_cache = prefix_cache,
                           .hash_key = {1, 2},
                           .max_seqs = 2 * n_seqs,
                           .max_blocks_per_seq = blocks};
    struct sched_options o = {
        .max_batch_tokens = 512, .max_seqs = 2 * n_seqs, .max_model_len = N_TOTAL, .queue_max_requests = 2 * N_CHURN};
    struct err e;
    b->kv = kv_open(&k, &e);
    if (!b->kv) die(&e);
    b->s = sched_open(&o, b->kv, &e);
    if (!b->s) die(&e);
}

static void run(uint32_t n_seqs, bool churn, bool prefix_cache) {
    struct bench b = {.churn = churn};
    bench_open(&b, n_seqs, prefix_cache);
    for (uint32_t i = 0; i < (churn ? N_CHURN : n_seqs); i++) {
        struct seq *q = calloc(1, sizeof *q);
        if (q) q->tokens = calloc(N_TOTAL, sizeof *q->tokens);
        if (!q || !q->tokens) abort();
        submit(&b, q);
    }
    for (int i = 0; i < N_WARM; i++) step(&b);

    static uint64_t ns[N_STEPS];
    uint64_t sum = 0, n_rows = 0, n_running = 0;
    struct sched_stats before, stats;
    sched_stats_get(b.s, &before);
    for (uint32_t i = 0; i < N_STEPS; i++) {
        uint64_t start = time_now_ns();
        n_rows += step(&b);
        sum += ns[i] = time_now_ns() - start;
        sched_stats_get(b.s, &stats);
        n_running += stats.n_running;
    }
    qsort(ns, N_STEPS, sizeof *ns, by_size);
    printf("%9.1f  %-6s  %-5s  %9.1f  %8.0f  %8.1f  %8llu  %8llu  %8llu  %9llu\n", (double)n_running / N_STEPS,
           churn ? "churn" : "steady", prefix_cache ? "on" : "off", (double)n_rows / N_STEPS, (double)sum / N_STEPS,
           (double)sum / (double)n_running, (unsigned long long)ns[N_STEPS / 2],
           (unsigned long long)ns[N_STEPS * 99 / 100], (unsigned long long)ns[N_STEPS - 1],
           (unsigned long long)(stats.preemptions - before.preemptions));
    for (struct seq *q; (q = sched_any(b.s));) {
        sched_remove(b.s, q);
        free(q->tokens);
        free(q);
    }
    sched_close(b.s);
    kv_close(b.kv);
}

int main(void) {
    static const uint32_t counts[] = {8, 64, 256};
    printf("sequences  case    cache  rows/step   ns/step    ns/seq    median       p99     worst  preempted\n");
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        run(counts[i], false, true);
        run(counts[i], false, false);
        run(counts[i], true, true);
        run(counts[i], true, false);
    }
    return 0;
}
