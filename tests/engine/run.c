/* run.c - see run.h. */
#include "tests/engine/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct engine *run_engine(const char *model, struct engine_options o) {
    struct err e;
    o.model_path = model;
    struct engine *g = engine_open(&o, &e);
    if (!g) fprintf(stderr, "engine_open(%s): %s\n", model, e.message);
    ASSERT(g);
    return g;
}

static void run_event(const struct engine_event *ev, struct run_result *out) {
    if (ev->kind == EVENT_TOKEN) {
        ASSERT(out->n < RUN_TOKENS_MAX && ev->logprobs && ev->logprobs->n_top == RUN_TOP);
        out->tokens[out->n] = ev->token;
        out->logprobs[out->n] = ev->logprobs->drawn.logprob;
        for (int i = 0; i < RUN_TOP; i++) {
            out->top_ids[out->n][i] = ev->logprobs->top[i].id;
            out->top[out->n][i] = ev->logprobs->top[i].logprob;
        }
        out->n++;
    }
    if (ev->kind == EVENT_PROMPT_LOGPROBS) {
        ASSERT(ev->pos0 == out->n_prompt_logprobs + 1); /* ascending, no position twice, also after preemption */
        for (uint32_t i = 0; i < ev->n; i++) out->prompt_logprobs[out->n_prompt_logprobs++] = ev->logprobs[i].drawn.logprob;
    }
    if (ev->kind == EVENT_FINISH) out->end = (int)ev->finish;
    if (ev->kind == EVENT_FAIL) out->end = 100 + (int)ev->fail;
    free(ev->logprobs);
}

void run_all(struct engine *g, const struct run_request *q, struct run_result *out, uint32_t n, const uint32_t *order) {
    struct engine_request *r = calloc(n, sizeof *r);
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = order ? order[i] : i;
        struct err e;
        r[at] = (struct engine_request){.prompt = q[at].prompt,
                                        .n_prompt = q[at].n_prompt,
                                        .max_tokens = q[at].max_tokens,
                                        .ignore_eos = true,
                                        .sampling = q[at].sampling,
                                        .n_logprobs = RUN_TOP,
                                        .n_prompt_logprobs = q[at].prompt_logprobs ? 0 : -1,
                                        .priority = q[at].priority,
                                        .salt = q[at].salt,
                                        .user = &out[at]};
        bool ok = engine_submit(g, &r[at], &e);
        if (!ok) fprintf(stderr, "engine_submit: %s\n", e.message);
        ASSERT(ok);
    }
    for (uint32_t left = n; left;) {
        struct engine_event ev[64];
        size_t got = engine_poll(g, ev, ARRAY_COUNT(ev), -1);
        for (size_t i = 0; i < got; i++) {
            run_event(&ev[i], ev[i].request->user);
            left -= ev[i].kind == EVENT_FINISH || ev[i].kind == EVENT_FAIL;
        }
    }
    free(r);
}

uint64_t run_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void run_make(struct run_request *q, uint32_t n, uint32_t n_vocab, uint32_t len_max, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t shared = i % 3 == 2 ? 64 : 0; /* some share a two-block prefix */
        uint32_t max_tokens = i % 3 == 1 ? 80 + (uint32_t)(run_random(&seed) % 24) : 1 + (uint32_t)(run_random(&seed) % 40);
        uint32_t room = len_max - max_tokens - shared;
        q[i] = (struct run_request){.n_prompt = shared + 1 + (uint32_t)(run_random(&seed) % (i % 3 ? size_min(room, 20) : room)),
                                    .max_tokens = max_tokens,
                                    .prompt_logprobs = i % 4 == 1,
                                    .priority = (int)(i % 4 / 2),
                                    .sampling = {.temperature = i % 2 ? 1.0f : 0.0f, .top_p = i % 5 == 3 ? 0.9f : 1.0f,
                                                 .top_k = i % 7 == 5 ? 20 : 0, .repetition_penalty = i % 6 == 1 ? 1.2f : 1.0f,
                                                 .seed = run_random(&seed)}};
        uint64_t common = 77;
        for (uint32_t t = 0; t < q[i].n_prompt; t++)
            q[i].prompt[t] = (int32_t)(run_random(t < shared ? &common : &seed) % n_vocab);
    }
}
