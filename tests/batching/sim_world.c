/* sim_world.c - random options and random work, all from one seed. */
#include "tests/batching/sim_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t rng_next(struct rng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t rng_range(struct rng *r, uint32_t lo, uint32_t hi) {
    return lo + (uint32_t)(rng_next(r) % (hi - lo + 1));
}

bool rng_chance(struct rng *r, uint32_t percent) {
    return rng_next(r) % 100 < percent;
}

uint64_t mix(uint64_t a, uint64_t b) {
    struct rng r = {a * 0x9e3779b97f4a7c15u ^ b};
    return rng_next(&r);
}

void fail(const struct world *w, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "FAILED in step %u: ", w->step);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    world_describe(w);
    fprintf(stderr, "replay with: --seed %llu --verbose\n", (unsigned long long)w->seed);
    exit(1);
}

int32_t oracle_token(uint64_t history) {
    return (int32_t)(mix(history, 7) % 127);
}

/* Hash functions with few values: names must be right whatever the hash does. */
static struct kv_hash hash_4_bits(const uint64_t key[2], const void *data, size_t n_bytes) {
    const unsigned char *p = data;
    uint64_t h = key[0];
    for (size_t i = 0; i < n_bytes; i++) h = mix(h, p[i]);
    return (struct kv_hash){h & 15, 0};
}

static struct kv_hash hash_constant(const uint64_t key[2], const void *data, size_t n_bytes) {
    (void)key, (void)data, (void)n_bytes;
    return (struct kv_hash){0, 0};
}

static void kv_options_draw(struct world *w) {
    struct rng *r = &w->rng;
    struct kv_options *o = &w->kv_options;
    o->n_kinds = rng_range(r, 1, 2);
    for (uint32_t k = 0; k < o->n_kinds; k++) {
        o->units[k] = rng_range(r, 1, 3);
        o->window[k] = rng_chance(r, 50) ? 0 : rng_chance(r, 20) ? rng_range(r, 1, 3) : rng_range(r, 4, 130);
    }
    o->prefix_cache = rng_chance(r, 88);
    o->hash_key[0] = rng_next(r);
    o->hash_key[1] = rng_next(r);
    uint32_t which = rng_range(r, 0, 9);
    o->hash = which == 0 ? hash_constant : which <= 2 ? hash_4_bits : NULL;
    o->max_blocks_per_seq = LEN_MAX / KV_BLOCK_TOKENS + 1 + rng_range(r, 0, 2);
}

static void sched_options_draw(struct world *w) {
    struct rng *r = &w->rng;
    struct sched_options *o = &w->sched_options;
    static const uint32_t budgets[] = {2, 8, 33, 100, 512};
    uint32_t class = rng_range(r, 0, ARRAY_COUNT(budgets) - 1);
    o->max_batch_tokens = rng_range(r, class > 0 ? budgets[class - 1] : 1, budgets[class]);
    o->max_seqs = rng_chance(r, 30) ? rng_range(r, 1, 3) : rng_range(r, 4, 24);
    o->max_model_len = rng_chance(r, 80) ? LEN_MAX : rng_range(r, 60, LEN_MAX);
    o->queue_max_requests = rng_chance(r, 70) ? JOBS_MAX : rng_range(r, 1, 6);
    o->queue_max_tokens = rng_chance(r, 70) ? 0 : rng_range(r, 50, 1500);
    w->kv_options.max_seqs = o->max_seqs + rng_range(r, 0, 1);
    w->cancel_percent = rng_chance(r, 50) ? 0 : rng_range(r, 1, 6);
}

/* Fills the prompt: the start of a base that others share, then tokens of its own. */
static void prompt_draw(struct world *w, struct job *j, int32_t bases[BASES_MAX][PROMPT_MAX], uint32_t n_vocab) {
    struct rng *r = &w->rng;
    uint32_t n = rng_range(r, 1, rng_chance(r, 30) ? 40 : w->prompt_max);
    uint32_t n_base = rng_chance(r, 25) ? 0 : rng_chance(r, 30) ? n : rng_range(r, 0, n);
    const int32_t *base = bases[rng_range(r, 0, BASES_MAX - 1)];
    for (uint32_t i = 0; i < n; i++) j->expected[i] = i < n_base ? base[i] : (int32_t)rng_range(r, 0, n_vocab - 1);
    j->seq.n_prompt = n;
}

/* The output of the request alone: until the model says 0, or max_tokens. */
static void oracle_run(struct job *j, uint32_t max_tokens) {
    uint64_t h = 0;
    uint32_t n = 0;
    for (; n < j->seq.n_prompt; n++) j->history[n] = h = mix(h, (uint64_t)j->expected[n]);
    while (n < j->seq.n_prompt + max_tokens) {
        j->expected[n] = oracle_token(h);
        j->history[n] = h = mix(h, (uint64_t)j->expected[n]);
        n++;
        if (j->expected[n - 1] == 0) break;
    }
    j->n_expected = n;
}

static void job_draw(struct world *w, uint32_t i, int32_t bases[BASES_MAX][PROMPT_MAX], uint32_t n_vocab) {
    struct rng *r = &w->rng;
    struct job *j = &w->jobs[i];
    j->leader = -1;
    j->seq.salt = rng_range(r, 1, 2);
    j->seq.priority = rng_chance(r, 60) ? 0 : (int)rng_range(r, 0, 4) - 2;
    j->seq.no_prefix_read = rng_chance(r, 8);
    j->seq.rows_max = rng_chance(r, 8) ? rng_range(r, 1, 40) : 0;
    prompt_draw(w, j, bases, n_vocab);
    if (i > 0 && rng_chance(r, 25)) { /* one of n > 1 samples of the same prompt, more or less */
        j->leader = (int)rng_range(r, 0, i - 1);
        const struct job *l = &w->jobs[j->leader];
        if (rng_chance(r, 90)) {
            j->seq.salt = l->seq.salt;
            j->seq.priority = l->seq.priority;
            j->seq.n_prompt = l->seq.n_prompt;
            memcpy(j->expected, l->expected, sizeof j->expected);
        }
    }
    uint32_t max_tokens = rng_range(r, rng_chance(r, 5) ? 0 : 1, OUTPUT_MAX);
    oracle_run(j, max_tokens);
    memcpy(j->tokens, j->expected, j->seq.n_prompt * sizeof *j->tokens);
    j->seq.tokens = j->tokens;
    j->seq.n_tokens = j->seq.n_prompt;
    j->seq.max_tokens_total = j->seq.n_prompt + max_tokens;
    j->seq.user = j;
    j->retries = rng_chance(r, 60);
    j->cancels = UINT32_MAX;
}

static void jobs_draw(struct world *w) {
    struct rng *r = &w->rng;
    static int32_t bases[BASES_MAX][PROMPT_MAX];
    uint32_t n_vocab = rng_chance(r, 20) ? 1 : rng_range(r, 2, 40);
    for (uint32_t b = 0; b < BASES_MAX; b++)
        for (uint32_t i = 0; i < PROMPT_MAX; i++)
            bases[b][i] = b > 0 && i < 96 ? bases[0][i] : (int32_t)rng_range(r, 0, n_vocab - 1);
    /* Small budgets make many steps. */
    w->n_jobs = rng_range(r, 1, w->sched_options.max_batch_tokens < 8 ? 8 : JOBS_MAX);
    w->prompt_max = rng_chance(r, 35) ? 40 : PROMPT_MAX;
    uint32_t gap = rng_chance(r, 50) ? 0 : rng_range(r, 1, 30), now = 0;
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        job_draw(w, i, bases, n_vocab);
        if (rng_chance(r, 40)) now += rng_range(r, 0, gap);
        w->jobs[i].arrives = now;
        if (w->cancel_percent > 0 && rng_chance(r, 15)) w->jobs[i].cancels = now + rng_range(r, 0, 60);
    }
}

static void on_event(void *arg, const struct kv_event *ev) {
    struct world *w = arg;
    if (ev->kind == KV_EVENT_STORED)
        w->n_stored++;
    else
        w->n_removed++;
}

/* Memory between too little for the longest job and plenty for all. */
static uint32_t pages_draw(struct world *w) {
    uint32_t block_pages = 0;
    for (uint32_t k = 0; k < w->kv_options.n_kinds; k++) block_pages += w->kv_options.units[k];
    uint32_t one = (LEN_MAX / KV_BLOCK_TOKENS + 1) * block_pages;
    uint32_t percent = rng_chance(&w->rng, 60) ? rng_range(&w->rng, 30, 200) : rng_range(&w->rng, 200, 1500);
    uint32_t n_pages = one * percent / 100;
    return n_pages < block_pages ? block_pages : n_pages;
}

void world_init(struct world *w, uint64_t seed) {
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.state = mix(seed, 1);
    kv_options_draw(w);
    sched_options_draw(w);
    w->kv_options.n_pages = pages_draw(w);
    jobs_draw(w);
    struct err e;
    w->kv = kv_open(&w->kv_options, &e);
    CHECK(w, w->kv, "%s", e.message);
    w->sched = sched_open(&w->sched_options, w->kv, &e);
    CHECK(w, w->sched, "%s", e.message);
    kv_on_event(w->kv, on_event, w);
    w->cells = calloc((size_t)w->kv_options.n_pages * KV_BLOCK_TOKENS, sizeof *w->cells);
    w->page_users = calloc(w->kv_options.n_pages, sizeof *w->page_users);
    CHECK(w, w->cells && w->page_users, "no memory");
}

void world_free(struct world *w) {
    sched_close(w->sched);
    kv_close(w->kv);
    free(w->cells);
    free(w->page_users);
}

void world_describe(const struct world *w) {
    const struct kv_options *k = &w->kv_options;
    const struct sched_options *s = &w->sched_options;
    fprintf(stderr, "seed %llu: %u jobs; %u pages, kinds", (unsigned long long)w->seed, w->n_jobs, k->n_pages);
    for (uint32_t i = 0; i < k->n_kinds; i++) fprintf(stderr, " (%u units, window %u)", k->units[i], k->window[i]);
    fprintf(stderr, ", prefix cache %d, %s hash; budget %u, %u sequences, context %u, queue %u requests %llu tokens\n",
            k->prefix_cache, k->hash ? "weak" : "real", s->max_batch_tokens, s->max_seqs, s->max_model_len,
            s->queue_max_requests, (unsigned long long)s->queue_max_tokens);
}
