/* sampling.h - from one row of logits to a token: a pure function of (logits, parameters, history, seed, position).
 *
 * Order, as in vLLM: log-probabilities come from the raw logits (after the model's own soft cap); then
 * allowed_token_ids, min_tokens (bars end tokens), logit_bias, penalties, temperature, min_p, top_k, top_p, draw.
 * Ties break on the lower id. The generator is Philox4x32-10 keyed by (seed) with counter = output position, so
 * the draw never depends on the batch, the slot or what came before a preemption.
 *
 * Thread: any; one call per row, rows may run in parallel. No allocation.
 */
#ifndef CHOIR_SAMPLING_H
#define CHOIR_SAMPLING_H

#include "engine/kernels/kernels.h"

enum { TOP_LOGPROBS_MAX = 20, LOGIT_BIAS_MAX = 1024, ALLOWED_IDS_MAX = 1024, STOP_IDS_MAX = 128 };

struct logit_bias {
    int32_t id;
    float bias;
};

struct sampling_params {
    float temperature;  /* 0: greedy */
    float top_p;        /* (0, 1] */
    float min_p;        /* [0, 1] */
    uint32_t top_k;     /* 0: all */
    float presence_penalty, frequency_penalty; /* [-2, 2] */
    float repetition_penalty;                  /* > 0; 1: none; over prompt and output */
    uint64_t seed;
    const struct logit_bias *bias; /* unique ids, owned by the request */
    uint32_t n_bias;
    const int32_t *allowed; /* unique ids; n_allowed 0: all */
    uint32_t n_allowed;
};

struct token_logprob {
    int32_t id;
    float logprob;
    uint32_t rank; /* 1-based: 1 + number of tokens with a greater logit (or equal logit and lower id) */
};

struct sample_input {
    const float *logits; /* [n_vocab], not changed */
    uint32_t n_vocab;
    const struct sampling_params *params;
    const int32_t *tokens; /* prompt + output so far */
    uint32_t n_prompt, n_tokens;
    uint32_t position;     /* output index, 0-based: the counter of the generator */
    const int32_t *barred; /* ids that cannot be drawn now (end tokens while under min_tokens) */
    uint32_t n_barred;
    int n_logprobs;        /* -1: none; 0: of the drawn token; k: and the k best */
};
struct sample_output {
    int32_t id;
    bool bad;      /* a NaN, or nothing left to draw from: the request fails with ERR_BAD_LOGITS */
    uint32_t n_top;
    struct token_logprob drawn;
    struct token_logprob top[TOP_LOGPROBS_MAX];
};

struct sampler; /* scratch for one concurrent row */
struct sampler *sampler_open(const struct kernels *k, uint32_t n_vocab);
void sampler_close(struct sampler *s);
void sampler_draw(struct sampler *s, const struct sample_input *in, struct sample_output *out);

/* Log-probability of a given token and the n_top best ones (prompt log-probabilities). */
void sampler_logprobs(struct sampler *s, const float *logits, uint32_t n_vocab, int32_t id, uint32_t n_top, struct sample_output *out);

/* Philox4x32-10 (Salmon et al., SC'11). Exposed for its known-answer test. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
