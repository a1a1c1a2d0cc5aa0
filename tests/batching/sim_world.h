/* sim_world.h - the world that the scheduler's simulator runs it in: random work, and a model that only remembers.
 *
 * The fake model stores into each slot of each page who wrote it: token, position, kind, unit, salt and a hash of all
 * tokens up to there. Its attention reads every position that a row may see, through the block tables, and compares
 * with what a request that is alone would have stored. So a page that is leaked to another sequence, shared across
 * salts, overwritten or released too early is seen at the first read. The next token is a hash of all tokens before
 * it, taken from what was read; so the outputs are right only if they equal those of the request alone.
 */
#ifndef CHOIR_TESTS_SIM_WORLD_H
#define CHOIR_TESTS_SIM_WORLD_H

#include "engine/batching/batching.h"

enum { JOBS_MAX = 48, BASES_MAX = 4, PROMPT_MAX = 220, OUTPUT_MAX = 130, LEN_MAX = PROMPT_MAX + OUTPUT_MAX };

struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *r);
uint32_t rng_range(struct rng *r, uint32_t lo, uint32_t hi); /* both included */
bool rng_chance(struct rng *r, uint32_t percent);
uint64_t mix(uint64_t a, uint64_t b);

enum job_state { JOB_FUTURE, JOB_LIVE, JOB_DONE, JOB_CANCELLED, JOB_REFUSED };

struct job {
    struct seq seq;
    enum job_state state;
    uint32_t arrives, cancels; /* steps; cancels UINT32_MAX: never */
    int leader;                /* job index or -1 */
    bool retries;              /* comes again after QUEUE_FULL */
    int32_t tokens[LEN_MAX];   /* what the scheduler sees */
    int32_t expected[LEN_MAX]; /* prompt and the output of the request alone */
    uint64_t history[LEN_MAX]; /* of expected: hash of tokens 0..i */
    uint32_t n_expected;
    uint32_t n_computed_before; /* at the last step, for the progress check */
};

struct cell {
    int32_t token;
    uint32_t pos, kind, unit;
    uint64_t salt, history;
};

struct world {
    uint64_t seed;
    struct rng rng;
    bool verbose;
    struct kv_options kv_options;
    struct sched_options sched_options;
    struct kv *kv;
    struct sched *sched;
    uint32_t prompt_max;     /* short prompts make memory run out while decoding */
    uint32_t cancel_percent; /* of a random live job, per step */
    uint32_t n_jobs;
    struct job jobs[JOBS_MAX];
    struct cell *cells;   /* [n_pages][KV_BLOCK_TOKENS] */
    uint32_t *page_users; /* [n_pages], scratch */
    uint32_t step;
    uint64_t n_stored, n_removed; /* block events */
    uint64_t n_preempted, n_cached_tokens, n_computed_tokens;
};

/* Options and jobs from the seed. */
void world_init(struct world *w, uint64_t seed);
void world_free(struct world *w);
void world_describe(const struct world *w);

/* The fake forward pass over a plan: checks it, writes the new cells, then reads all visible ones. */
void model_forward(struct world *w, const struct step_plan *plan);
/* The token after the last row of this entry, from what the cache holds. */
int32_t model_next_token(const struct world *w, const struct step_seq *e);
/* What the oracle says is the token after n known ones with this history. */
int32_t oracle_token(uint64_t history);

/* Prints the seed and why, and ends the program. */
_Noreturn void fail(const struct world *w, const char *fmt, ...) PRINTF_LIKE(2, 3);
#define CHECK(w, cond, ...)                                                                                            \
    do {                                                                                                               \
        if (!(cond)) fail(w, __VA_ARGS__);                                                                             \
    } while (0)

#endif
