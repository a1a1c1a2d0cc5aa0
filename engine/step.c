/* step.c - the engine thread: one loop, one step at a time.
 *
 *   inbox -> scheduler plan -> model forward -> logits -> sampling -> scheduler commit -> events
 *
 * Owner of scheduler, KV bookkeeping, batch arrays, samplers and the live jobs. It sleeps on the inbox when there
 * is nothing to compute. JSON, templates and text never come here.
 *
 * Invariants:
 * 1. A step's events are published once, at its end, with one wake-up of the consumer.
 * 2. A row that goes wrong (NaN) fails its own request; the others of the step are untouched.
 * 3. A job is live (live.c) from the first look at its submit message to its last event.
 */
#include "engine/engine_int.h"

#include <stdlib.h>
#include <string.h>

enum { CHECK_INTERVAL_NS = 1000000000 }; /* between integrity walks of an engine that has come to rest */

/* ---- Memory of a step ---- */

static bool list_end_tokens(struct engine *g) {
    uint32_t n_vocab = tokenizer_n_vocab(g->tokenizer);
    for (int pass = 0; pass < 2; pass++) {
        g->n_eog = 0;
        for (uint32_t id = 0; id < n_vocab; id++) {
            if (!tokenizer_is_eog(g->tokenizer, (int32_t)id)) continue;
            if (g->eog) g->eog[g->n_eog] = (int32_t)id;
            g->n_eog++;
        }
        if (!g->eog && !(g->eog = malloc((g->n_eog + 1) * sizeof *g->eog))) return false;
    }
    return true;
}

bool engine_step_alloc(struct engine *g) {
    uint32_t t = g->o.max_batch_tokens, n_vocab = model_config_of(g->model)->n_vocab;
    g->ids = malloc(t * sizeof *g->ids);
    g->positions = malloc(t * sizeof *g->positions);
    g->batch_seqs = malloc(g->o.max_seqs * sizeof *g->batch_seqs);
    g->uses = malloc(t * sizeof *g->uses);
    g->samples = malloc(t * sizeof *g->samples);
    g->rows = malloc(g->n_logit_rows_max * sizeof *g->rows);
    g->n_samplers = g->k->n_threads;
    g->samplers = calloc(g->n_samplers, sizeof *g->samplers);
    g->sampler_busy = calloc(g->n_samplers, sizeof *g->sampler_busy);
    bool ok = g->ids && g->positions && g->batch_seqs && g->uses && g->samples && g->rows && g->samplers && g->sampler_busy;
    for (uint32_t i = 0; ok && i < g->n_samplers; i++) ok = (g->samplers[i] = sampler_open(g->k, n_vocab)) != NULL;
    return ok && live_open(&g->live) && list_end_tokens(g);
}

void engine_step_free(struct engine *g) {
    for (uint32_t i = 0; g->samplers && i < g->n_samplers; i++) sampler_close(g->samplers[i]);
    free(g->samplers);
    free(g->sampler_busy);
    free(g->ids);
    free(g->positions);
    free(g->batch_seqs);
    free(g->uses);
    free(g->samples);
    free(g->rows);
    free(g->eog);
    free(g->taken);
    free(g->pending);
    live_close(&g->live);
}

/* ---- Events ---- */

static void event_push(struct engine *g, struct engine_event ev) {
    if (g->n_pending == g->pending_cap) {
        g->pending_cap = size_max(256, 2 * g->pending_cap);
        g->pending = realloc(g->pending, g->pending_cap * sizeof *g->pending);
        ASSERT(g->pending);
    }
    ev.time_ns = time_now_ns();
    g->pending[g->n_pending++] = ev;
}

static void events_publish(struct engine *g) {
    struct sched_stats ss;
    struct kv_stats ks;
    sched_stats_get(g->sched, &ss);
    kv_stats_get(g->kv, &ks);
    struct engine_stats *n = &g->now;
    n->n_running = ss.n_running;
    n->n_waiting = ss.n_waiting;
    n->waiting_tokens = ss.waiting_tokens;
    n->preemptions = ss.preemptions;
    n->kv_pages_total = ks.pages_total;
    n->kv_pages_free = ks.pages_free;
    n->kv_pages_cached = ks.pages_cached;
    n->kv_pages_used = ks.pages_used;
    n->prefix_queries_tokens = ks.prefix_queries_tokens;
    n->prefix_hits_tokens = ks.prefix_hits_tokens;
    n->kv_evictions = ks.evictions;
    n->heartbeat_ns = time_now_ns();

    pthread_mutex_lock(&g->out_mu);
    g->stats = *n;
    if (g->n_pending) {
        if (g->n_out + g->n_pending > g->out_cap) {
            g->out_cap = size_max(2 * g->out_cap, g->n_out + g->n_pending);
            g->out = realloc(g->out, g->out_cap * sizeof *g->out);
            ASSERT(g->out);
        }
        memcpy(g->out + g->n_out, g->pending, g->n_pending * sizeof *g->out);
        g->n_out += g->n_pending;
        pthread_cond_signal(&g->out_cond);
    }
    pthread_mutex_unlock(&g->out_mu);
    g->n_pending = 0;
}

/* ---- Jobs ---- */

static void queue_release(struct engine *g, const struct job *j) {
    pthread_mutex_lock(&g->inbox_mu);
    g->queued_requests--;
    g->queued_tokens -= j->n_queued;
    pthread_mutex_unlock(&g->inbox_mu);
}

static void job_end(struct engine *g, struct job *j, struct engine_event ev) {
    if (!j->started) queue_release(g, j);
    if (j->seq.state != SEQ_NONE) sched_remove(g->sched, &j->seq);
    live_remove(&g->live, j);
    if (ev.kind == EVENT_FINISH) g->now.finished[ev.finish]++;
    else g->now.failed++;
    ev.request = j->r;
    event_push(g, ev);
    free(j->seq.tokens);
    free(j->barred);
    free(j);
}

static void job_finish(struct engine *g, struct job *j, enum finish_reason why, int32_t stop_token) {
    job_end(g, j, (struct engine_event){.kind = EVENT_FINISH, .finish = why, .stop_token = stop_token});
}

static void job_fail(struct engine *g, struct job *j, enum err_code code) {
    job_end(g, j, (struct engine_event){.kind = EVENT_FAIL, .fail = code});
}

static void job_begin(struct engine *g, struct job *j) {
    struct err e;
    live_add(&g->live, j);
    struct job *leader = live_find(&g->live, j->r->leader);
    j->seq.leader = leader ? &leader->seq : NULL;
    if (!sched_add(g->sched, &j->seq, &e)) job_fail(g, j, e.code);
}

/* Moves the inbox to g->taken and returns how many messages it had; waits for one while there is no job. */
static size_t inbox_take(struct engine *g, bool *stopping) {
    pthread_mutex_lock(&g->inbox_mu);
    while (!g->live.n && !g->n_inbox && !g->stopping) pthread_cond_wait(&g->inbox_cond, &g->inbox_mu);
    struct message *m = g->inbox; /* swap buffers, so that messages are handled outside the lock */
    size_t n = g->n_inbox, cap = g->inbox_cap;
    g->inbox = g->taken;
    g->inbox_cap = g->taken_cap;
    g->n_inbox = 0;
    g->taken = m;
    g->taken_cap = cap;
    *stopping = g->stopping;
    pthread_mutex_unlock(&g->inbox_mu);
    return n;
}

static void inbox_handle(struct engine *g, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const struct message *m = &g->taken[i];
        struct job *j = m->kind == MESSAGE_SUBMIT ? m->job : live_find(&g->live, m->r);
        if (m->kind == MESSAGE_SUBMIT) job_begin(g, j);
        else if (j) job_finish(g, j, FINISH_CANCEL, -1);
    }
}

static void deadlines_check(struct engine *g) {
    for (struct job *j; (j = live_overdue(&g->live));) job_fail(g, j, ERR_DEADLINE);
}

/* From here on the heartbeat is that of a working engine: a first step that hangs must not look like rest. */
static void rest_end(struct engine *g) {
    if (!g->now.idle) return;
    g->now.idle = false;
    pthread_mutex_lock(&g->out_mu);
    g->stats.idle = false;
    g->stats.heartbeat_ns = time_now_ns();
    pthread_mutex_unlock(&g->out_mu);
}

/* The integrity walk of an engine that has come to rest; its last answers are out already. */
static void rest_check(struct engine *g) {
    struct err e;
    if (time_now_ns() - g->checked_ns < CHECK_INTERVAL_NS) return;
    if (!kv_check(g->kv, &e)) assert_fail(e.message, __FILE__, __LINE__);
    g->checked_ns = time_now_ns();
}

/* ---- One step ---- */

static void job_note_start(struct engine *g, struct job *j) {
    if (j->started) return;
    j->started = true;
    queue_release(g, j);
    g->now.cached_tokens += j->seq.n_cached;
    g->now.prompt_tokens += j->seq.n_prompt;
    event_push(g, (struct engine_event){.kind = EVENT_STARTED, .request = j->r, .n_cached = j->seq.n_cached});
}

/* Rows of logits that somebody reads: the last one of a sequence that samples, and prompt rows whose
 * log-probabilities are wanted and not yet reported. */
static void uses_add(struct engine *g, struct job *j, const struct step_seq *s, uint32_t row0) {
    if (j->r->n_prompt_logprobs >= 0) {
        uint32_t end = (uint32_t)size_min(s->pos0 + s->n_rows, j->seq.n_prompt - 1);
        for (uint32_t p = (uint32_t)size_max(s->pos0, j->n_prompt_logprobs_done); p < end; p++)
            g->uses[g->n_uses++] = (struct row_use){.job = j, .row = row0 + p - s->pos0, .position = p};
    }
    if (s->samples)
        g->uses[g->n_uses++] = (struct row_use){.job = j, .row = row0 + s->n_rows - 1, .position = s->pos0 + s->n_rows - 1, .samples = true};
}

static void batch_build(struct engine *g, const struct step_plan *plan) {
    uint32_t row = 0;
    g->n_uses = 0;
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *s = &plan->seqs[i];
        struct job *j = s->seq->user;
        job_note_start(g, j);
        struct model_batch_seq *b = &g->batch_seqs[i];
        *b = (struct model_batch_seq){.row0 = row, .n_rows = s->n_rows, .pos0 = s->pos0};
        for (uint32_t kind = 0; kind < model_kv_plan(g->model)->n_kinds; kind++) b->table[kind] = kv_table(g->kv, s->seq->kv_seq, kind);
        memcpy(g->ids + row, s->seq->tokens + s->pos0, s->n_rows * sizeof *g->ids);
        for (uint32_t r = 0; r < s->n_rows; r++) g->positions[row + r] = s->pos0 + r;
        uses_add(g, j, s, row);
        row += s->n_rows;
    }
    g->batch = (struct model_batch){.n_tokens = row, .n_seqs = plan->n_seqs, .ids = g->ids, .positions = g->positions, .seqs = g->batch_seqs};
}

struct sample_round {
    struct engine *g;
    const float *logits;
    uint32_t first; /* use of row 0 of these logits */
};

static uint32_t sampler_take(struct engine *g) {
    for (uint32_t i = 0;; i = (i + 1) % g->n_samplers)
        if (!atomic_flag_test_and_set_explicit(&g->sampler_busy[i], memory_order_acquire)) return i;
}

static void sample_one(void *arg, uint32_t item) {
    struct sample_round *round = arg;
    struct engine *g = round->g;
    const struct row_use *u = &g->uses[round->first + item];
    struct sample_output *out = &g->samples[round->first + item];
    const struct engine_request *r = u->job->r;
    const struct seq *q = &u->job->seq;
    uint32_t n_vocab = g->info.n_vocab, slot = sampler_take(g);
    const float *logits = round->logits + (size_t)item * n_vocab;
    if (u->samples) {
        uint32_t n_output = q->n_tokens - q->n_prompt + r->n_prompt_output;
        struct sample_input in = {.logits = logits, .n_vocab = n_vocab, .params = &r->sampling, .tokens = q->tokens,
                                  .n_prompt = q->n_prompt - r->n_prompt_output, .n_tokens = q->n_tokens, .position = n_output,
                                  .barred = u->job->barred, .n_barred = n_output < r->min_tokens ? u->job->n_barred : 0,
                                  .n_logprobs = r->n_logprobs};
        sampler_draw(g->samplers[slot], &in, out);
    } else {
        sampler_logprobs(g->samplers[slot], logits, n_vocab, q->tokens[u->position + 1], (uint32_t)r->n_prompt_logprobs, out);
    }
    atomic_flag_clear_explicit(&g->sampler_busy[slot], memory_order_release);
}

static void step_sample(struct engine *g) {
    for (uint32_t first = 0; first < g->n_uses; first += g->n_logit_rows_max) {
        uint32_t n = (uint32_t)size_min(g->n_uses - first, g->n_logit_rows_max);
        for (uint32_t i = 0; i < n; i++) g->rows[i] = g->uses[first + i].row;
        struct sample_round round = {g, model_logits(g->model, g->rows, n), first};
        g->k->parallel(g->k, n, sample_one, &round);
    }
}

/* NULL: no memory. */
static struct sample_output *samples_copy(const struct sample_output *s, uint32_t n) {
    struct sample_output *copy = malloc(n * sizeof *copy);
    if (copy) memcpy(copy, s, n * sizeof *copy);
    return copy;
}

/* Reports one run of prompt rows of a job; returns the index of the first use after it. */
static uint32_t report_prompt(struct engine *g, uint32_t i) {
    struct job *j = g->uses[i].job;
    uint32_t n = 0;
    bool bad = false;
    while (i + n < g->n_uses && g->uses[i + n].job == j && !g->uses[i + n].samples) bad |= g->samples[i + n++].bad;
    struct sample_output *copy = bad ? NULL : samples_copy(&g->samples[i], n);
    if (!copy) {
        while (i + n < g->n_uses && g->uses[i + n].job == j) n++;
        job_fail(g, j, bad ? ERR_BAD_LOGITS : ERR_OVERLOADED);
        return i + n;
    }
    event_push(g, (struct engine_event){.kind = EVENT_PROMPT_LOGPROBS, .request = j->r, .pos0 = g->uses[i].position + 1, .n = n,
                                        .logprobs = copy});
    j->n_prompt_logprobs_done = g->uses[i].position + n;
    return i + n;
}

static bool is_stop_id(const struct engine *g, const struct engine_request *r, int32_t id) {
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] == id) return true;
    return !r->ignore_eos && tokenizer_is_eog(g->tokenizer, id);
}

static void report_token(struct engine *g, struct job *j, const struct sample_output *s) {
    if (!j->r->max_tokens) { /* only the prompt's log-probabilities were wanted */
        job_finish(g, j, FINISH_LENGTH, -1);
        return;
    }
    if (s->bad || s->id < 0 || (uint32_t)s->id >= g->info.n_vocab) {
        job_fail(g, j, ERR_BAD_LOGITS);
        return;
    }
    g->now.generated_tokens++;
    if (is_stop_id(g, j->r, s->id)) {
        job_finish(g, j, FINISH_STOP, s->id);
        return;
    }
    struct sample_output *logprobs = j->r->n_logprobs >= 0 ? samples_copy(s, 1) : NULL;
    if (j->r->n_logprobs >= 0 && !logprobs) {
        job_fail(g, j, ERR_OVERLOADED);
        return;
    }
    j->seq.tokens[j->seq.n_tokens++] = s->id;
    event_push(g, (struct engine_event){.kind = EVENT_TOKEN, .request = j->r, .token = s->id, .logprobs = logprobs});
    if (j->seq.n_tokens == j->seq.max_tokens_total) job_finish(g, j, FINISH_LENGTH, -1);
}

static void step_report(struct engine *g) {
    for (uint32_t i = 0; i < g->n_uses;) {
        if (!g->uses[i].samples) {
            i = report_prompt(g, i);
        } else {
            report_token(g, g->uses[i].job, &g->samples[i]);
            i++;
        }
    }
}

static void engine_step(struct engine *g, const struct step_plan *plan) {
    batch_build(g, plan);
    uint64_t t0 = time_now_ns();
    model_forward(g->model, &g->batch);
    step_sample(g);
    g->kernel_ns += time_now_ns() - t0;
    sched_commit(g->sched);
    step_report(g);
    g->now.steps++;
}

void *engine_thread(void *arg) {
    struct engine *g = arg;
    for (;;) {
        bool stopping;
        size_t n = inbox_take(g, &stopping);
        uint64_t awake_ns = time_now_ns(), kernels_ns = g->kernel_ns;
        rest_end(g);
        inbox_handle(g, n);
        if (stopping) break;
        deadlines_check(g);
        const struct step_plan *plan = sched_plan(g->sched);
        ASSERT(plan->n_seqs || !g->live.n); /* the best-ranked sequence always advances */
        if (plan->n_seqs) engine_step(g, plan);
        g->now.idle = !g->live.n;
        events_publish(g);
        uint64_t took = time_now_ns() - awake_ns;
        g->now.busy_ns += took;
        g->now.host_ns += took - (g->kernel_ns - kernels_ns);
        if (took > g->now.step_ns_max) g->now.step_ns_max = took;
        if (g->now.idle) rest_check(g);
    }
    for (struct job *j; (j = live_any(&g->live));) job_finish(g, j, FINISH_CANCEL, -1);
    events_publish(g);
    return NULL;
}
