/* engine.h - one engine replica: a model, its KV memory, a scheduler and the thread that steps them.
 *
 * The only engine header that programs include (with engine/text/text.h for the tokenizer it hands out).
 *
 * Threads. engine_submit and engine_cancel may be called from any thread. engine_poll is called from one
 * consumer thread. The engine thread is the only one that touches scheduler, KV and sampler state; it sleeps
 * when there is nothing to do.
 *
 * Life of a request: the caller fills a `struct engine_request`, submits it and keeps it until it has polled
 * its last event (kind FINISH or FAIL, exactly one per accepted request, also after engine_cancel); only then
 * may it be freed.
 */
#ifndef CHOIR_ENGINE_H
#define CHOIR_ENGINE_H

#include "engine/sampling/sampling.h"
#include "engine/text/text.h"

struct engine_options {
    const char *model_path;
    uint32_t n_threads;        /* 0: all cores */
    const char *isa;           /* "auto" */
    uint64_t kv_memory_bytes;  /* 0: decided from the model and the machine */
    enum dtype kv_type;        /* DT_F16 */
    uint32_t max_batch_tokens; /* 0: 512 */
    uint32_t max_seqs;         /* 0: 64 */
    uint32_t max_model_len;    /* 0: the model's, lowered to what KV memory holds */
    uint32_t queue_max_requests;
    uint64_t queue_max_tokens;
    bool prefix_cache;
    void (*on_progress)(void *arg, const char *stage, double fraction); /* loading; may be NULL */
    void *progress_arg;
};

struct engine_info {
    char arch[32];
    uint32_t n_vocab, n_layers, dim;
    uint32_t max_model_len, model_context_len;
    uint32_t max_batch_tokens, max_seqs;
    uint64_t weight_bytes, kv_bytes, work_bytes, kv_tokens_max;
    uint64_t n_params;
    uint32_t n_threads;
    const char *isa;
    char numerics_id[40]; /* "fp_" + 16 hex bytes: equal ids may continue each other's work */
    double load_s[4];     /* open, tokenizer, weights, memory */
};

enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCEL };

struct engine_request {
    /* filled by the caller, constant afterwards */
    const int32_t *prompt; /* [n_prompt], copied */
    uint32_t n_prompt;     /* >= 1 */
    uint32_t n_prompt_output; /* of these, how many at the end count as output already (continuation) */
    uint32_t max_tokens;   /* >= 1 unless only the prompt's log-probabilities are wanted (0) */
    uint32_t min_tokens;
    bool ignore_eos;
    const int32_t *stop_ids;
    uint32_t n_stop_ids;
    struct sampling_params sampling;
    int n_logprobs;        /* -1 none, 0.. TOP_LOGPROBS_MAX */
    int n_prompt_logprobs; /* -1 none */
    int priority;
    uint64_t salt;
    uint64_t deadline_ns;  /* CLOCK_MONOTONIC; 0: none */
    struct engine_request *leader; /* shares its prompt (n > 1): same prompt and salt, submitted before */
    void *user;
};

enum engine_event_kind {
    EVENT_STARTED,         /* first admission: n_cached is known */
    EVENT_PROMPT_LOGPROBS, /* of prompt positions [pos0, pos0 + n); position 0 has none */
    EVENT_TOKEN,
    EVENT_FINISH,
    EVENT_FAIL,
};

struct engine_event {
    struct engine_request *request;
    enum engine_event_kind kind;
    uint64_t time_ns;
    uint32_t n_cached;           /* STARTED: prompt tokens from the prefix cache; ns waited is time_ns - submit */
    int32_t token;               /* TOKEN */
    uint32_t pos0, n;            /* PROMPT_LOGPROBS */
    struct sample_output *logprobs; /* TOKEN with log-probabilities: 1; PROMPT_LOGPROBS: n. malloc'ed, the consumer frees */
    enum finish_reason finish;   /* FINISH */
    int32_t stop_token;          /* FINISH by a token: its id (not sent as TOKEN); -1 otherwise */
    enum err_code fail;          /* FAIL: why; the text is err_info's */
};

struct engine;
struct engine *engine_open(const struct engine_options *o, struct err *e);
/* Waits for the engine thread to stop; cancels what is left. Drain first by not submitting. */
void engine_close(struct engine *g);

const struct engine_info *engine_info(const struct engine *g);
const struct tokenizer *engine_tokenizer(const struct engine *g);

/* False with *e when it can never run or the queue is full; then no event follows. */
bool engine_submit(struct engine *g, struct engine_request *r, struct err *e);
/* Takes effect within one step; the request still ends with its FINISH (CANCEL) event. Unknown or ended: no effect. */
void engine_cancel(struct engine *g, struct engine_request *r);

/* Waits up to timeout_ms (-1: for ever) for events, writes up to n_max, returns how many. engine_wake makes it return. */
size_t engine_poll(struct engine *g, struct engine_event *events, size_t n_max, int timeout_ms);
void engine_wake(struct engine *g);

/* Counters since start, read at any time (each field on its own is consistent). */
struct engine_stats {
    uint64_t steps, prompt_tokens, cached_tokens, generated_tokens, preemptions, finished[3], failed;
    uint32_t n_running, n_waiting;
    uint64_t waiting_tokens;
    uint32_t kv_pages_total, kv_pages_free, kv_pages_cached, kv_pages_used;
    uint64_t prefix_queries_tokens, prefix_hits_tokens, kv_evictions;
    uint64_t busy_ns, host_ns;   /* time awake; of that, outside kernels and sampling */
    uint64_t step_ns_max;
    uint64_t heartbeat_ns;       /* end of the last step, or now when idle: /health compares it with the clock */
    bool idle;
};
void engine_stats_get(const struct engine *g, struct engine_stats *s);

#endif
