/* engine_bench.c - the engine in one process, without HTTP: what llama-bench measures of the peer.
 *
 * Prints one JSON object with the rates of REPEATS runs each: prefill of 512 tokens (submit to first token) and decode
 * of 128 tokens of one stream (first token to last, sampler included). Prompts are random, so nothing is cached.
 * With a third mode, `host N`, N streams decode together and the engine's own work outside kernels is reported.
 */
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFILL_TOKENS = 512, DECODE_TOKENS = 128, REPEATS_MAX = 100, STREAMS_MAX = 64, EVENTS = 64 };

_Noreturn static void fail(const char *what, const char *detail) {
    fprintf(stderr, "peer_engine: %s: %s\n", what, detail);
    exit(1);
}

/* Random ordinary tokens behind BOS. */
static void prompt_fill(int32_t *prompt, uint32_t n, uint32_t n_vocab) {
    static uint64_t state = 0x9e3779b97f4a7c15u;
    if (state == 0x9e3779b97f4a7c15u) state ^= time_now_ns();
    prompt[0] = 2;
    for (uint32_t i = 1; i < n; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        prompt[i] = (int32_t)(n_vocab / 256 + state % (n_vocab / 2));
    }
}

struct timing {
    uint64_t submitted_ns, first_ns, last_ns;
    uint32_t n_tokens;
};

static void request_fill(struct engine_request *r, const int32_t *prompt, uint32_t n_prompt, uint32_t n_out,
                         struct timing *t) {
    *r = (struct engine_request){.prompt = prompt,
                                 .n_prompt = n_prompt,
                                 .max_tokens = n_out,
                                 .ignore_eos = true,
                                 .sampling = {.top_p = 1, .repetition_penalty = 1},
                                 .n_logprobs = -1,
                                 .n_prompt_logprobs = -1,
                                 .user = t};
}

/* Runs n requests to their ends. */
static void run(struct engine *g, struct engine_request *requests, uint32_t n) {
    struct engine_event events[EVENTS];
    struct err e;
    for (uint32_t i = 0; i < n; i++) {
        ((struct timing *)requests[i].user)->submitted_ns = time_now_ns();
        if (!engine_submit(g, &requests[i], &e)) fail("submit", e.message);
    }
    for (uint32_t n_done = 0; n_done < n;) {
        size_t n_events = engine_poll(g, events, EVENTS, -1);
        for (size_t i = 0; i < n_events; i++) {
            struct timing *t = events[i].request->user;
            if (events[i].kind == EVENT_TOKEN) {
                if (t->n_tokens++ == 0) t->first_ns = events[i].time_ns;
                t->last_ns = events[i].time_ns;
                free(events[i].logprobs);
            } else if (events[i].kind == EVENT_FAIL) {
                fail("request", err_info(events[i].fail)->text);
            } else if (events[i].kind == EVENT_FINISH) {
                n_done++;
            }
        }
    }
}

static void rates_print(const char *name, const double *rates, uint32_t n, const char *end) {
    printf("\"%s\": [", name);
    for (uint32_t i = 0; i < n; i++) printf("%s%.2f", i ? ", " : "", rates[i]);
    printf("]%s", end);
}

static void bench_single(struct engine *g, uint32_t repeats) {
    double prefill[REPEATS_MAX], decode[REPEATS_MAX];
    int32_t prompt[PREFILL_TOKENS];
    for (uint32_t i = 0; i < repeats; i++) {
        struct engine_request r;
        struct timing t = {0};
        prompt_fill(prompt, PREFILL_TOKENS, engine_info(g)->n_vocab);
        request_fill(&r, prompt, PREFILL_TOKENS, 1, &t);
        run(g, &r, 1);
        prefill[i] = PREFILL_TOKENS * 1e9 / (double)(t.first_ns - t.submitted_ns);

        t = (struct timing){0};
        prompt_fill(prompt, 16, engine_info(g)->n_vocab);
        request_fill(&r, prompt, 16, DECODE_TOKENS + 1, &t);
        run(g, &r, 1);
        decode[i] = (t.n_tokens - 1) * 1e9 / (double)(t.last_ns - t.first_ns);
    }
    printf("{");
    rates_print("prefill_512", prefill, repeats, ", ");
    rates_print("decode_128", decode, repeats, "}\n");
}

static void bench_host(struct engine *g, uint32_t n_streams) {
    static int32_t prompts[STREAMS_MAX][16];
    static struct engine_request requests[STREAMS_MAX];
    static struct timing timings[STREAMS_MAX];
    struct engine_stats before, after;
    for (uint32_t i = 0; i < n_streams; i++) {
        prompt_fill(prompts[i], 16, engine_info(g)->n_vocab);
        request_fill(&requests[i], prompts[i], 16, DECODE_TOKENS, &timings[i]);
    }
    engine_stats_get(g, &before);
    run(g, requests, n_streams);
    engine_stats_get(g, &after);
    double steps = (double)(after.steps - before.steps);
    printf("{\"streams\": %u, \"steps\": %.0f, \"step_us\": %.1f, \"host_us\": %.1f, \"output_tok_s\": %.1f}\n",
           n_streams, steps, (double)(after.busy_ns - before.busy_ns) / steps / 1e3,
           (double)(after.host_ns - before.host_ns) / steps / 1e3,
           n_streams * DECODE_TOKENS * 1e9 / (double)(after.busy_ns - before.busy_ns));
}

int main(int argc, char **argv) {
    bool host = argc == 5 && strcmp(argv[3], "host") == 0;
    if (argc != 4 && !host) {
        fprintf(stderr, "usage: %s MODEL THREADS REPEATS | MODEL THREADS host STREAMS\n", argv[0]);
        return 1;
    }
    uint32_t n = (uint32_t)strtoul(argv[argc - 1], NULL, 10);
    if (n < 1 || n > (host ? STREAMS_MAX : REPEATS_MAX)) fail("out of range", argv[argc - 1]);
    struct engine_options o = {.model_path = argv[1],
                               .n_threads = (uint32_t)strtoul(argv[2], NULL, 10),
                               .isa = "auto",
                               .kv_type = DT_F16,
                               .max_batch_tokens = PREFILL_TOKENS,
                               .max_seqs = STREAMS_MAX,
                               .queue_max_requests = STREAMS_MAX,
                               .queue_max_tokens = 1 << 20,
                               .prefix_cache = true};
    struct err e;
    struct engine *g = engine_open(&o, &e);
    if (!g) fail(argv[1], e.message);
    if (host)
        bench_host(g, n);
    else
        bench_single(g, n);
    engine_close(g);
    return 0;
}
