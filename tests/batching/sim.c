/* sim.c - the seeded simulator of scheduler and KV cache: the real code, random work, a model that only remembers.
 *
 *   sim [--seeds N] [--first N]     run N seeds from the first one (1,000 from 1)
 *   sim --seed N [--verbose]        replay one; verbose prints every step
 *
 * After every step: kv_check, sched_check; the best-ranked running sequence advanced; the best of all that are alive
 * never lost a token. At the end: every accepted request has its one result, equal to what it gives alone, or was
 * cancelled; no page is held. A broken assertion or a failed check prints the seed.
 */
#include "tests/batching/sim_world.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HANG_S = 60 }; /* a seed takes milliseconds */

static volatile uint64_t current_seed;

/* A crash or a hang: the seed, then the signal's own way. */
static void on_death(int signal_number) {
    char text[64] = "replay with: --seed ";
    size_t n = strlen(text), end = n;
    for (uint64_t s = current_seed; s >= 10; s /= 10) end++;
    text[end + 1] = '\n';
    uint64_t s = current_seed;
    for (size_t i = end + 1; i-- > n; s /= 10) text[i] = (char)('0' + s % 10);
    if (write(STDERR_FILENO, text, end + 2) < 0) _exit(2);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static bool ranks_before(const struct seq *a, const struct seq *b) {
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

static bool runs(const struct seq *q) {
    return q->state == SEQ_PREFILL || q->state == SEQ_DECODE;
}

/* The most pages that this request ever holds at once when it computes one token a step, block by block. */
static uint32_t pages_alone(const struct world *w, const struct job *j) {
    const struct kv_options *o = &w->kv_options;
    uint32_t most = 0, n_positions = j->seq.max_tokens_total - 1;
    if (n_positions < j->seq.n_prompt) n_positions = j->seq.n_prompt;
    for (uint32_t pos = 0; pos < n_positions; pos++) {
        uint32_t n = 0;
        for (uint32_t k = 0; k < o->n_kinds; k++)
            for (uint32_t b = 0; b <= pos / KV_BLOCK_TOKENS; b++) {
                uint32_t last = b * KV_BLOCK_TOKENS + KV_BLOCK_TOKENS - 1;
                if (o->window[k] == 0 || last + o->window[k] > pos) n += o->units[k];
            }
        if (n > most) most = n;
    }
    return most;
}

static void job_submit(struct world *w, struct job *j) {
    uint32_t n_waiting = 0;
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < w->n_jobs; i++)
        if (w->jobs[i].seq.state == SEQ_WAITING) n_waiting++, n_tokens += w->jobs[i].seq.n_tokens;
    const struct sched_options *o = &w->sched_options;
    bool too_long = j->seq.max_tokens_total > o->max_model_len || pages_alone(w, j) > w->kv_options.n_pages;
    bool full = n_waiting >= o->queue_max_requests ||
                (o->queue_max_tokens > 0 && n_waiting > 0 && n_tokens + j->seq.n_tokens > o->queue_max_tokens);
    enum err_code expected = too_long ? ERR_CONTEXT_LENGTH : full ? ERR_QUEUE_FULL : ERR_NONE;
    j->seq.leader = j->leader >= 0 ? &w->jobs[j->leader].seq : NULL;
    struct err e = {.code = ERR_NONE};
    bool added = sched_add(w->sched, &j->seq, &e);
    CHECK(w, added == (expected == ERR_NONE) && e.code == expected, "submission: %s, expected %s",
          err_info(e.code)->name, err_info(expected)->name);
    j->seq.leader = NULL;
    if (added)
        j->state = JOB_LIVE;
    else if (e.code == ERR_CONTEXT_LENGTH || !j->retries)
        j->state = JOB_REFUSED;
}

static void job_end(struct world *w, struct job *j, enum job_state state) {
    sched_remove(w->sched, &j->seq);
    CHECK(w, j->seq.state == SEQ_NONE, "removed, but still in the scheduler");
    CHECK(w, j->seq.n_cached == 0 || !j->seq.no_prefix_read, "took a prefix that it must compute");
    j->state = state;
    w->n_preempted += j->seq.n_preempted;
    w->n_cached_tokens += j->seq.n_cached;
}

static void arrivals_and_cancels(struct world *w) {
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        struct job *j = &w->jobs[i];
        if (j->state == JOB_FUTURE && j->arrives <= w->step) job_submit(w, j);
        if (j->state == JOB_LIVE && j->cancels <= w->step) job_end(w, j, JOB_CANCELLED);
    }
    if (!rng_chance(&w->rng, w->cancel_percent)) return;
    struct job *j = &w->jobs[rng_range(&w->rng, 0, w->n_jobs - 1)];
    if (j->state == JOB_LIVE) job_end(w, j, JOB_CANCELLED);
}

static struct job *best_job(struct world *w, bool running_only) {
    struct job *best = NULL;
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        struct job *j = &w->jobs[i];
        if (j->state == JOB_LIVE && (!running_only || runs(&j->seq)) && (!best || ranks_before(&j->seq, &best->seq)))
            best = j;
    }
    return best;
}

static void progress_check(struct world *w, const struct step_plan *plan) {
    struct job *best = best_job(w, false), *running = best_job(w, true);
    if (!best) {
        CHECK(w, plan->n_seqs == 0, "a plan for nobody");
        return;
    }
    CHECK(w, running, "requests wait and none runs");
    bool found = false;
    for (uint32_t i = 0; i < plan->n_seqs; i++) found = found || plan->seqs[i].seq == &running->seq;
    CHECK(w, found, "the best-ranked running sequence gets nothing");
    CHECK(w, best->seq.n_computed >= best->n_computed_before, "the best-ranked sequence lost tokens");
    for (uint32_t i = 0; i < w->n_jobs; i++)
        if (w->jobs[i].seq.n_preempted > 0 && w->jobs[i].seq.n_computed == 0) w->jobs[i].n_computed_before = 0;
}

static void integrity_check(const struct world *w, const char *when) {
    struct err e;
    CHECK(w, kv_check(w->kv, &e), "%s: %s", when, e.message);
    CHECK(w, sched_check(w->sched, &e), "%s: %s", when, e.message);
    struct kv_stats s;
    kv_stats_get(w->kv, &s);
    CHECK(w, s.pages_free + s.pages_cached + s.pages_used == s.pages_total, "pages do not add up");
    CHECK(w, w->n_stored - w->n_removed == s.blocks_named, "block events do not add up");
}

static void tokens_append(struct world *w, const struct step_seq *e, int32_t token) {
    struct job *j = e->seq->user;
    struct seq *q = e->seq;
    if (q->n_tokens == q->max_tokens_total) { /* max_tokens 0: only the prompt was wanted */
        job_end(w, j, JOB_DONE);
        return;
    }
    CHECK(w, q->n_tokens < j->n_expected && token == j->expected[q->n_tokens],
          "token %u of a request differs from that alone", q->n_tokens);
    j->tokens[q->n_tokens++] = token;
    if (q->n_tokens == j->n_expected) job_end(w, j, JOB_DONE);
}

static void plan_print(const struct world *w, const struct step_plan *plan) {
    struct sched_stats s;
    struct kv_stats k;
    sched_stats_get(w->sched, &s);
    kv_stats_get(w->kv, &k);
    printf("step %u: %u wait, %u run, pages %u free %u cached %u used, %u preempted:", w->step, s.n_waiting,
           s.n_running, k.pages_free, k.pages_cached, k.pages_used, plan->n_preempted);
    for (uint32_t i = 0; i < plan->n_seqs; i++)
        printf(" %d:%u+%u", (int)((struct job *)plan->seqs[i].seq->user - w->jobs), plan->seqs[i].pos0,
               plan->seqs[i].n_rows);
    printf("\n");
}

static void world_step(struct world *w) {
    arrivals_and_cancels(w);
    integrity_check(w, "after arrivals");
    const struct step_plan *plan = sched_plan(w->sched);
    if (w->verbose) plan_print(w, plan);
    progress_check(w, plan);
    integrity_check(w, "after the plan");
    model_forward(w, plan);
    /* The engine reads logits of the rows after the commit, so the plan is copied here as it would be there. */
    static struct step_seq entries[JOBS_MAX];
    static int32_t next[JOBS_MAX];
    uint32_t n_seqs = plan->n_seqs;
    CHECK(w, n_seqs <= JOBS_MAX, "more sequences than jobs");
    for (uint32_t i = 0; i < n_seqs; i++) {
        entries[i] = plan->seqs[i];
        next[i] = model_next_token(w, &entries[i]);
    }
    sched_commit(w->sched);
    for (uint32_t i = 0; i < n_seqs; i++) {
        struct job *j = entries[i].seq->user;
        CHECK(w, j->seq.n_computed == entries[i].pos0 + entries[i].n_rows, "a commit that lost rows");
        j->n_computed_before = j->seq.n_computed;
        if (entries[i].samples) tokens_append(w, &entries[i], next[i]);
    }
    integrity_check(w, "after the commit");
    w->step++;
}

static bool work_left(const struct world *w) {
    for (uint32_t i = 0; i < w->n_jobs; i++)
        if (w->jobs[i].state == JOB_FUTURE || w->jobs[i].state == JOB_LIVE) return true;
    return false;
}

/* The proof in batching.c gives each sequence, once it is the best, as many steps as it has tokens; before that it may
 * wait for all that run. */
static uint32_t steps_max(const struct world *w) {
    uint32_t n_tokens = 0, last = 0;
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        n_tokens += w->jobs[i].n_expected;
        if (w->jobs[i].arrives > last) last = w->jobs[i].arrives;
    }
    return last + 2 * n_tokens + 10;
}

static void world_run(struct world *w) {
    uint32_t limit = steps_max(w);
    while (work_left(w)) {
        CHECK(w, w->step <= limit, "not done after %u steps", w->step);
        world_step(w);
    }
    struct kv_stats k;
    struct sched_stats s;
    kv_stats_get(w->kv, &k);
    sched_stats_get(w->sched, &s);
    CHECK(w, k.pages_used == 0 && k.pages_free + k.pages_cached == k.pages_total, "%u pages are leaked", k.pages_used);
    CHECK(w, s.n_waiting == 0 && s.n_running == 0 && s.waiting_tokens == 0 && !sched_any(w->sched), "somebody is left");
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        const struct job *j = &w->jobs[i];
        if (j->state != JOB_DONE) continue;
        CHECK(w, j->seq.n_tokens == j->n_expected, "job %u: %u tokens instead of %u", i, j->seq.n_tokens,
              j->n_expected);
        CHECK(w, memcmp(j->tokens, j->expected, j->n_expected * sizeof *j->tokens) == 0,
              "job %u: other tokens than alone", i);
    }
}

int main(int argc, char **argv) {
    uint64_t first = 1, n_seeds = 1000;
    bool verbose = false;
    for (int i = 1; i < argc; i++) {
        bool value = i + 1 < argc;
        if (strcmp(argv[i], "--verbose") == 0) {
            verbose = true;
        } else if (strcmp(argv[i], "--seeds") == 0 && value) {
            n_seeds = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--first") == 0 && value) {
            first = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && value) {
            first = strtoull(argv[++i], NULL, 10);
            n_seeds = 1;
        } else {
            fprintf(stderr, "usage: %s [--seeds N] [--first N] | --seed N [--verbose]\n", argv[0]);
            return 2;
        }
    }
    signal(SIGABRT, on_death);
    signal(SIGSEGV, on_death);
    signal(SIGALRM, on_death);
    static struct world w;
    uint64_t n_steps = 0, n_jobs = 0, n_cancelled = 0, n_refused = 0, n_preempted = 0, n_cached = 0, n_computed = 0;
    for (uint64_t seed = first; seed < first + n_seeds; seed++) {
        current_seed = seed;
        alarm(HANG_S);
        world_init(&w, seed);
        w.verbose = verbose;
        world_run(&w);
        for (uint32_t i = 0; i < w.n_jobs; i++) {
            n_cancelled += w.jobs[i].state == JOB_CANCELLED;
            n_refused += w.jobs[i].state == JOB_REFUSED;
        }
        n_steps += w.step, n_jobs += w.n_jobs, n_preempted += w.n_preempted;
        n_cached += w.n_cached_tokens, n_computed += w.n_computed_tokens;
        world_free(&w);
    }
    printf("%llu seeds: %llu requests (%llu cancelled, %llu refused), %llu steps, %llu tokens computed, %llu from the "
           "prefix cache, %llu preemptions\n",
           (unsigned long long)n_seeds, (unsigned long long)n_jobs, (unsigned long long)n_cancelled,
           (unsigned long long)n_refused, (unsigned long long)n_steps, (unsigned long long)n_computed,
           (unsigned long long)n_cached, (unsigned long long)n_preempted);
    return 0;
}
