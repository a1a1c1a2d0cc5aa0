/* run.h - run requests through an engine and keep every bit that comes out, for comparison. */
#ifndef CHOIR_TESTS_ENGINE_RUN_H
#define CHOIR_TESTS_ENGINE_RUN_H

#include "engine/engine.h"

enum { RUN_TOKENS_MAX = 512, RUN_TOP = 3 };

struct run_request {
    int32_t prompt[RUN_TOKENS_MAX];
    uint32_t n_prompt, max_tokens;
    struct sampling_params sampling;
    bool prompt_logprobs;
    uint64_t salt;
    int priority;
};

/* What a request returned; compared as bytes, so it is zeroed before it is filled. */
struct run_result {
    uint32_t n;
    int32_t tokens[RUN_TOKENS_MAX];
    float logprobs[RUN_TOKENS_MAX];
    int32_t top_ids[RUN_TOKENS_MAX][RUN_TOP];
    float top[RUN_TOKENS_MAX][RUN_TOP];
    float prompt_logprobs[RUN_TOKENS_MAX];
    uint32_t n_prompt_logprobs;
    int end; /* finish reason, or 100 + err_code */
};

/* Submits all n at once, in the order order[] (NULL: as they stand), and waits for all. */
void run_all(struct engine *g, const struct run_request *q, struct run_result *out, uint32_t n, const uint32_t *order);

/* A model folder of tests/fixtures/models, or a file. */
struct engine *run_engine(const char *model, struct engine_options o);

uint64_t run_random(uint64_t *state);
/* n requests of mixed length (prompt and output together at most len_max > 104) and sampling, from a seed. */
void run_make(struct run_request *q, uint32_t n, uint32_t n_vocab, uint32_t len_max, uint64_t seed);

#endif
