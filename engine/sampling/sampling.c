/* sampling.c - one row of logits to one token. See sampling.h for the order of the steps.
 *
 * Only few of the 262,144 logits of a modern vocabulary matter to a draw, so nothing here sorts a row: passes over
 * the whole row are the kernels' (max, sum of exponentials, selection above a threshold), and what is sorted are
 * the candidates they leave. A copy of the row is made only when penalties, biases or allow lists change it.
 *
 * Invariants:
 * 1. The result is a function of the input alone: scratch holds nothing across calls but `stamp`, which only grows.
 * 2. Candidates are ordered by (logit descending, id ascending) before anything is cut or drawn from them.
 * 3. Sums that decide a cut or a draw are taken in double, in candidate order or, over the whole row, in chunks of
 *    fixed size ascending.
 */
#include "engine/sampling/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    DRAW_CHUNK = 16384, /* the row's chunk of canonical sums (kernels.h, row_sum_exp) */
    DRAW_RUN = 1024,    /* inside the chunk that is hit */
    RADIX_BITS = 11,    /* three passes over the 32 bits of a logit */
    RADIX_MIN = 256,    /* fewer candidates: comparison sort */
};

struct candidate {
    float logit;
    int32_t id;
};

struct sampler {
    const struct kernels *k;
    uint32_t n_vocab;
    float *work;              /* [n_vocab] changed copy of the row */
    uint32_t *index;          /* [n_vocab] what row_select found */
    struct candidate *cand;   /* [n_vocab] */
    struct candidate *sorted; /* [n_vocab] the other half of the radix sort */
    uint32_t *seen;           /* [n_vocab] stamp of the call that last saw the id in the history */
    uint32_t *count;          /* [n_vocab] occurrences in the output, valid where seen == stamp */
    uint32_t stamp;
};

struct sampler *sampler_open(const struct kernels *k, uint32_t n_vocab) {
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->k = k;
    s->n_vocab = n_vocab;
    s->work = malloc(n_vocab * sizeof *s->work);
    s->index = malloc(n_vocab * sizeof *s->index);
    s->cand = malloc(n_vocab * sizeof *s->cand);
    s->sorted = malloc(n_vocab * sizeof *s->sorted);
    s->seen = calloc(n_vocab, sizeof *s->seen);
    s->count = malloc(n_vocab * sizeof *s->count);
    if (s->work && s->index && s->cand && s->sorted && s->seen && s->count) return s;
    sampler_close(s);
    return NULL;
}

void sampler_close(struct sampler *s) {
    if (!s) return;
    free(s->work);
    free(s->index);
    free(s->cand);
    free(s->sorted);
    free(s->seen);
    free(s->count);
    free(s);
}

/* ---- Candidates ---- */

static bool candidate_before(const struct candidate *a, const struct candidate *b) {
    return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static int candidate_compare(const void *a, const void *b) {
    return candidate_before(a, b) ? -1 : candidate_before(b, a);
}

/* Restores the heap below `at`: a parent is never before its children, so c[0] is the worst of the heap. */
static void heap_sift(struct candidate *c, uint32_t n, uint32_t at) {
    for (;;) {
        uint32_t worst = at, left = 2 * at + 1, right = left + 1;
        if (left < n && candidate_before(&c[worst], &c[left])) worst = left;
        if (right < n && candidate_before(&c[worst], &c[right])) worst = right;
        if (worst == at) return;
        struct candidate t = c[at];
        c[at] = c[worst];
        c[worst] = t;
        at = worst;
    }
}

/* Moves the `want` best of c[0..n) to the front, in any order. */
static void candidates_partition(struct candidate *c, uint32_t n, uint32_t want) {
    for (uint32_t i = want / 2; i-- > 0;) heap_sift(c, want, i);
    for (uint32_t i = want; i < n; i++) {
        if (!candidate_before(&c[i], &c[0])) continue;
        c[0] = c[i];
        heap_sift(c, want, 0);
    }
}

/* The candidates at or above a threshold, unsorted. */
static uint32_t candidates_select(struct sampler *s, const float *x, float threshold) {
    uint32_t n = s->k->row_select(x, s->n_vocab, threshold, s->index, s->n_vocab);
    for (uint32_t i = 0; i < n; i++) s->cand[i] = (struct candidate){x[s->index[i]], (int32_t)s->index[i]};
    return n;
}

/* Order-preserving bits of a logit, greatest first. -0 and +0 are one value. */
static uint32_t radix_key(float logit) {
    uint32_t bits;
    logit += 0.0f;
    memcpy(&bits, &logit, sizeof bits);
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

/* Stable radix sort by logit, greatest first; ids must come in ascending, which settles the ties. */
static void candidates_radix(struct sampler *s, uint32_t n) {
    for (uint32_t shift = 0; shift < 32; shift += RADIX_BITS) {
        uint32_t start[1 << RADIX_BITS] = {0}, sum = 0;
        for (uint32_t i = 0; i < n; i++) start[radix_key(s->cand[i].logit) >> shift & ((1 << RADIX_BITS) - 1)]++;
        for (uint32_t i = 0; i < ARRAY_COUNT(start); i++) {
            uint32_t count = start[i];
            start[i] = sum;
            sum += count;
        }
        for (uint32_t i = 0; i < n; i++)
            s->sorted[start[radix_key(s->cand[i].logit) >> shift & ((1 << RADIX_BITS) - 1)]++] = s->cand[i];
        struct candidate *t = s->cand;
        s->cand = s->sorted;
        s->sorted = t;
    }
}

/* Sorts the `want` best of the n candidates (ids ascending) to the front. */
static void candidates_sort_best(struct sampler *s, uint32_t n, uint32_t want) {
    if (want >= n && n >= RADIX_MIN) {
        candidates_radix(s, n);
        return;
    }
    if (want < n) candidates_partition(s->cand, n, want);
    qsort(s->cand, size_min(n, want), sizeof *s->cand, candidate_compare);
}

/* The k best of the row, sorted, into cand; returns how many (fewer only if fewer are above -inf). The threshold
 * goes down from the maximum in growing steps until it admits k. */
static uint32_t candidates_best(struct sampler *s, const float *x, float max, uint32_t k) {
    uint32_t n = 0;
    for (float depth = 4.0f; depth < 1e30f; depth *= 2.0f) {
        n = candidates_select(s, x, max - depth);
        if (n >= k || n == s->n_vocab) break;
        if (depth > 1e4f) {
            n = candidates_select(s, x, -3.402823466e38f);
            break;
        }
    }
    candidates_sort_best(s, n, k);
    return (uint32_t)size_min(n, k);
}

/* ---- Changes to the row ---- */

static bool input_changes_row(const struct sample_input *in) {
    const struct sampling_params *p = in->params;
    return p->n_bias || p->n_allowed || in->n_barred || p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f;
}

static void row_penalize(struct sampler *s, const struct sample_input *in) {
    const struct sampling_params *p = in->params;
    if (p->repetition_penalty == 1.0f && p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f) return;
    if (++s->stamp == 0) { /* wrapped after 2^32 calls */
        memset(s->seen, 0, s->n_vocab * sizeof *s->seen);
        s->stamp = 1;
    }
    uint32_t n_distinct = 0;
    for (uint32_t i = 0; i < in->n_tokens; i++) {
        uint32_t id = (uint32_t)in->tokens[i];
        if (s->seen[id] != s->stamp) {
            s->seen[id] = s->stamp;
            s->count[id] = 0;
            s->index[n_distinct++] = id;
        }
        if (i >= in->n_prompt) s->count[id]++;
    }
    for (uint32_t i = 0; i < n_distinct; i++) {
        uint32_t id = s->index[i], count = s->count[id];
        float x = s->work[id];
        x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
        if (count) x -= fmaf(p->frequency_penalty, (float)count, p->presence_penalty);
        s->work[id] = x;
    }
}

/* The row as the draw sees it: the caller's, or a changed copy. */
static const float *row_prepare(struct sampler *s, const struct sample_input *in) {
    if (!input_changes_row(in)) return in->logits;
    const struct sampling_params *p = in->params;
    if (p->n_allowed) {
        for (uint32_t i = 0; i < s->n_vocab; i++) s->work[i] = -INFINITY;
        for (uint32_t i = 0; i < p->n_allowed; i++) s->work[p->allowed[i]] = in->logits[p->allowed[i]];
    } else {
        memcpy(s->work, in->logits, s->n_vocab * sizeof *s->work);
    }
    for (uint32_t i = 0; i < in->n_barred; i++) s->work[in->barred[i]] = -INFINITY;
    for (uint32_t i = 0; i < p->n_bias; i++) s->work[p->bias[i].id] += p->bias[i].bias;
    row_penalize(s, in);
    return s->work;
}

/* ---- The draw ---- */

/* Uniform in [0, 1) with 53 bits, from (seed, position) only. */
static double draw_uniform(uint64_t seed, uint32_t position) {
    const uint32_t counter[4] = {position, 0, 0, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t r[4];
    philox4x32(counter, key, r);
    return (double)(((uint64_t)r[0] << 32 | r[1]) >> 11) * 0x1p-53;
}

/* exp((x - max) * inv_t) in the very arithmetic of row_sum_exp. */
static float weight_of(float x, float max, float inv_t) {
    return num_expf((x - max) * inv_t);
}

/* Inverse of the cumulative distribution over the whole row, ids ascending. */
static int32_t draw_from_row(const struct sampler *s, const float *x, float max, float inv_t, double u) {
    double total = 0;
    for (uint32_t i = 0; i < s->n_vocab; i += DRAW_CHUNK)
        total += (double)s->k->row_sum_exp(x + i, (uint32_t)size_min(DRAW_CHUNK, s->n_vocab - i), max, inv_t);
    double target = u * total, below = 0;
    uint32_t first = 0, last = s->n_vocab;
    for (uint32_t step = DRAW_CHUNK; step >= DRAW_RUN; step /= DRAW_CHUNK / DRAW_RUN) {
        uint32_t hit = first; /* sums of parts round otherwise than the whole: fall back to the last part that has weight */
        double below_hit = below;
        for (uint32_t i = first; i < last; i += step) {
            double sum = (double)s->k->row_sum_exp(x + i, (uint32_t)size_min(step, last - i), max, inv_t);
            if (sum > 0) hit = i, below_hit = below;
            below += sum;
            if (below > target) break;
        }
        first = hit;
        last = (uint32_t)size_min(hit + step, last);
        below = below_hit;
    }
    int32_t id = -1;
    for (uint32_t i = first; i < last; i++) {
        float w = weight_of(x[i], max, inv_t);
        if (w > 0) id = (int32_t)i; /* again, the target may lie past the end: the last possible one */
        below += (double)w;
        if (id == (int32_t)i && below > target) return id;
    }
    return id;
}

static int32_t draw_from_candidates(const struct sampler *s, uint32_t n, float max, float inv_t, double u) {
    double total = 0;
    for (uint32_t i = 0; i < n; i++) total += (double)weight_of(s->cand[i].logit, max, inv_t);
    double target = u * total, below = 0;
    for (uint32_t i = 0; i < n; i++) {
        below += (double)weight_of(s->cand[i].logit, max, inv_t);
        if (below > target) return s->cand[i].id;
    }
    return s->cand[0].id;
}

/* Of the sorted candidates, the shortest head whose weights reach `mass`. */
static uint32_t nucleus_len(const struct sampler *s, uint32_t n, float max, float inv_t, double mass) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)weight_of(s->cand[i].logit, max, inv_t);
        if (sum >= mass) return i + 1;
    }
    return n;
}

/* top_p over the whole row: lowers a threshold until the candidates above it hold the nucleus. */
static uint32_t candidates_nucleus(struct sampler *s, const float *x, float max, float inv_t, float top_p) {
    double total = (double)s->k->row_sum_exp(x, s->n_vocab, max, inv_t), mass = (double)top_p * total;
    for (float depth = 2.0f;; depth *= 1.5f) {
        /* exp(-87) is below what fp32 weights can add; and the margin may ask for more than there is */
        bool all = depth > 86.0f || mass * (1.0 + 1e-6) >= total;
        uint32_t n = candidates_select(s, x, all ? -3.402823466e38f : max - depth / inv_t);
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += (double)weight_of(s->cand[i].logit, max, inv_t);
        if (sum < mass * (1.0 + 1e-6) && !all) continue; /* the margin covers the order of summation */
        candidates_sort_best(s, n, n);
        return nucleus_len(s, n, max, inv_t, mass);
    }
}

static int32_t draw_token(struct sampler *s, const float *x, const struct sample_input *in, float max) {
    const struct sampling_params *p = in->params;
    float inv_t = 1.0f / p->temperature;
    double u = draw_uniform(p->seed, in->position);
    uint32_t top_k = p->top_k < s->n_vocab ? p->top_k : 0;
    if (!top_k && p->top_p >= 1.0f && p->min_p <= 0.0f) return draw_from_row(s, x, max, inv_t, u);

    uint32_t n;
    if (top_k) {
        n = candidates_best(s, x, max, top_k);
    } else if (p->min_p > 0.0f) {
        n = candidates_select(s, x, max + num_logf(p->min_p) * p->temperature);
        candidates_sort_best(s, n, n);
    } else {
        n = candidates_nucleus(s, x, max, inv_t, p->top_p);
        return draw_from_candidates(s, n, max, inv_t, u);
    }
    if (p->min_p > 0.0f) {
        uint32_t kept = 0;
        while (kept < n && weight_of(s->cand[kept].logit, max, inv_t) >= p->min_p) kept++;
        n = kept ? kept : 1;
    }
    if (p->top_p < 1.0f) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += (double)weight_of(s->cand[i].logit, max, inv_t);
        n = nucleus_len(s, n, max, inv_t, (double)p->top_p * sum);
    }
    return draw_from_candidates(s, n, max, inv_t, u);
}

/* ---- Log-probabilities ---- */

/* 1 + ids that come before `id` in (logit descending, id ascending). */
static uint32_t row_rank(struct sampler *s, const float *x, int32_t id) {
    uint32_t n = s->k->row_select(x, s->n_vocab, x[id], s->index, s->n_vocab), rank = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t other = s->index[i];
        rank += x[other] > x[id] || (x[other] == x[id] && (int32_t)other < id);
    }
    return rank;
}

void sampler_logprobs(struct sampler *s, const float *logits, uint32_t n_vocab, int32_t id, uint32_t n_top, struct sample_output *out) {
    ASSERT(n_vocab == s->n_vocab && n_top <= TOP_LOGPROBS_MAX);
    float max;
    uint32_t arg;
    s->k->row_max(logits, n_vocab, &max, &arg);
    out->id = id;
    out->bad = arg >= n_vocab || !(max > -INFINITY && max < INFINITY);
    out->n_top = 0;
    if (out->bad) return;
    float log_sum = num_logf(s->k->row_sum_exp(logits, n_vocab, max, 1.0f));
    out->drawn = (struct token_logprob){id, (logits[id] - max) - log_sum, row_rank(s, logits, id)};
    if (!n_top) return;
    out->n_top = candidates_best(s, logits, max, n_top);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i] = (struct token_logprob){s->cand[i].id, (s->cand[i].logit - max) - log_sum, i + 1};
}

void sampler_draw(struct sampler *s, const struct sample_input *in, struct sample_output *out) {
    ASSERT(in->n_vocab == s->n_vocab);
    const float *x = row_prepare(s, in);
    float max;
    uint32_t arg;
    s->k->row_max(x, s->n_vocab, &max, &arg);
    out->n_top = 0;
    out->bad = arg >= s->n_vocab || !(max > -INFINITY && max < INFINITY);
    if (out->bad) return;
    out->id = in->params->temperature == 0.0f ? (int32_t)arg : draw_token(s, x, in, max);
    if (in->n_logprobs >= 0) sampler_logprobs(s, in->logits, in->n_vocab, out->id, (uint32_t)in->n_logprobs, out);
}
