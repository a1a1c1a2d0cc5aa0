/* engine.c - opening and closing an engine, its memory plan, and the two mailboxes around the engine thread.
 *
 * Design. Other threads reach the engine thread through one ordered inbox (submit, cancel); it answers through one
 * event queue, published once per step. Order in the inbox is what makes pointers safe: a cancel is handled before
 * any later submit that could reuse the same address.
 *
 * Invariants:
 * 1. An accepted request gets exactly one FINISH or FAIL, after all its other events.
 * 2. queued_requests/queued_tokens count what was accepted and has not been admitted to a step for the first time.
 *    An empty queue takes any request that can run.
 * 3. max_model_len is lowered at open until a sequence of that length fits KV memory alone, so an accepted request
 *    can always run.
 */
#include "engine/engine_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    NUMERICS_VERSION = 1, /* raise when any arithmetic of the engine changes */
    BATCH_TOKENS_DEFAULT = 512,
    SEQS_DEFAULT = 64,
    QUEUE_REQUESTS_DEFAULT = 4096,
    LOGIT_ROWS_MAX = 64,
    KV_AUTO_SEQS = 16,     /* without --kv-memory: room for so many sequences ... */
    KV_AUTO_TOKENS = 2048, /* ... of so many tokens, */
    KV_AUTO_RAM_PART = 4,  /* but at most this part of the machine's memory */
};

/* ---- Memory plan ---- */

/* Pages of one sequence of n_tokens, at the moment it holds most: a window kind keeps the window, the step in
 * flight and the two blocks that stick out at its ends. */
static uint64_t pages_of_seq(const struct engine *g, uint64_t n_tokens) {
    const struct model_kv_plan *p = model_kv_plan(g->model);
    uint64_t pages = 0;
    for (uint32_t kind = 0; kind < p->n_kinds; kind++) {
        uint64_t blocks = div_up(n_tokens, KV_BLOCK_TOKENS);
        if (p->window[kind]) blocks = size_min(blocks, div_up(p->window[kind] + g->o.max_batch_tokens, KV_BLOCK_TOKENS) + 2);
        pages += blocks * p->units[kind];
    }
    return pages;
}

static bool engine_plan_kv(struct engine *g, struct err *e) {
    const struct model_kv_plan *p = model_kv_plan(g->model);
    uint32_t context = model_config_of(g->model)->context_len;
    uint32_t len = g->o.max_model_len ? g->o.max_model_len : context;
    if (len > context)
        return err_set(e, ERR_LOAD, "--max-model-len %u is more than the model's context of %u tokens", len, context);
    uint64_t bytes = g->o.kv_memory_bytes;
    if (!bytes) {
        uint64_t pages = size_max(pages_of_seq(g, len), KV_AUTO_SEQS * pages_of_seq(g, size_min(len, KV_AUTO_TOKENS)));
        uint64_t ram = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
        bytes = size_min(pages * p->page_bytes, ram / KV_AUTO_RAM_PART);
    }
    uint64_t n_pages = bytes / p->page_bytes;
    if (n_pages >= UINT32_MAX) return err_set(e, ERR_LOAD, "--kv-memory is more than can be addressed");
    uint32_t asked = len;
    while (len && pages_of_seq(g, len) > n_pages) len -= (uint32_t)size_min(len, KV_BLOCK_TOKENS);
    if (!len || (g->o.max_model_len && len < asked))
        return err_set(e, ERR_LOAD, "%llu MiB of KV memory do not hold one sequence of %u tokens (%llu MiB needed); raise --kv-memory or lower --max-model-len",
                       (unsigned long long)(bytes >> 20), asked, (unsigned long long)(pages_of_seq(g, asked) * p->page_bytes >> 20) + 1);
    g->info.max_model_len = len;
    g->info.kv_bytes = n_pages * p->page_bytes;
    uint32_t per_block = 0;
    for (uint32_t kind = 0; kind < p->n_kinds; kind++) per_block += p->units[kind];
    g->info.kv_tokens_max = n_pages / per_block * KV_BLOCK_TOKENS;

    struct kv_options kv = {.n_pages = (uint32_t)n_pages,
                            .n_kinds = p->n_kinds,
                            .prefix_cache = g->o.prefix_cache,
                            .max_seqs = g->o.max_seqs,
                            .max_blocks_per_seq = (uint32_t)div_up(len, KV_BLOCK_TOKENS)};
    memcpy(kv.units, p->units, sizeof kv.units);
    memcpy(kv.window, p->window, sizeof kv.window);
    if (getrandom(kv.hash_key, sizeof kv.hash_key, 0) != (ssize_t)sizeof kv.hash_key)
        return err_set(e, ERR_LOAD, "no random numbers from the system: %s", strerror(errno));
    if (!(g->kv = kv_open(&kv, e)) || !model_kv_alloc(g->model, kv.n_pages, e)) return false;
    struct sched_options s = {.max_batch_tokens = g->o.max_batch_tokens,
                              .max_seqs = g->o.max_seqs,
                              .max_model_len = len,
                              /* bounded at submit, where the caller can be told; preempted ones come back besides */
                              .queue_max_requests = g->o.queue_max_requests + g->o.max_seqs};
    return (g->sched = sched_open(&s, g->kv, e)) != NULL;
}

/* ---- Open and close ---- */

struct load_clock {
    struct engine *g;
    uint64_t start_ns, tokenizer_ns, weights_ns;
};

static void load_progress(void *arg, const char *stage, double fraction) {
    struct load_clock *c = arg;
    if (!c->tokenizer_ns && !strcmp(stage, "tokenizer")) c->tokenizer_ns = time_now_ns();
    if (!c->weights_ns && !strcmp(stage, "weights")) c->weights_ns = time_now_ns();
    if (c->g->o.on_progress) c->g->o.on_progress(c->g->o.progress_arg, stage, fraction);
}

static void engine_name_numerics(struct engine *g) {
    char text[256];
    const uint8_t *h = model_file_hash(g->model);
    int n = snprintf(text, sizeof text, "%s|%s|kv=%s|slices=%d|v%d|", g->k->backend, g->k->numeric_path, dtype_name(g->o.kv_type),
                     SLICE_COUNT, NUMERICS_VERSION);
    memcpy(text + n, h, 16);
    XXH3_state_t *state = XXH3_createState();
    ASSERT(state);
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, text, (size_t)n + 16);
    XXH3_128bits_update(state, g->eog, g->n_eog * sizeof *g->eog); /* a folder's other files may name them */
    XXH128_hash_t id = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(g->info.numerics_id, sizeof g->info.numerics_id, "fp_%016llx%016llx", (unsigned long long)id.high64,
             (unsigned long long)id.low64);
}

static bool engine_load(struct engine *g, struct err *e) {
    struct kernels_options ko = {.n_threads = g->o.n_threads, .isa = g->o.isa ? g->o.isa : "auto"};
    if (!(g->k = kernels_cpu_open(&ko, e))) return false;
    g->tp = tp_self_open();
    g->n_logit_rows_max = (uint32_t)size_min(g->o.max_batch_tokens, LOGIT_ROWS_MAX);
    struct load_clock clock = {.g = g, .start_ns = time_now_ns()};
    struct model_options mo = {.path = g->o.model_path,
                               .kernels = g->k,
                               .tp = g->tp,
                               .kv_type = g->o.kv_type,
                               .n_tokens_max = g->o.max_batch_tokens,
                               .n_seqs_max = g->o.max_seqs,
                               .n_logit_rows_max = g->n_logit_rows_max,
                               .on_progress = load_progress,
                               .progress_arg = &clock};
    if (!(g->model = model_open(&mo, &g->tokenizer, e))) return false;
    uint64_t loaded_ns = time_now_ns();
    if (tokenizer_n_vocab(g->tokenizer) > model_config_of(g->model)->n_vocab)
        return err_set(e, ERR_LOAD, "the tokenizer has %u tokens, the model only %u", tokenizer_n_vocab(g->tokenizer),
                       model_config_of(g->model)->n_vocab);
    if (!engine_plan_kv(g, e)) return false;
    if (!engine_step_alloc(g)) return err_set(e, ERR_LOAD, "no memory for the step buffers; lower --max-batch-tokens or --max-seqs");
    g->info.load_s[0] = (double)(clock.tokenizer_ns - clock.start_ns) * 1e-9;
    g->info.load_s[1] = (double)(clock.weights_ns - clock.tokenizer_ns) * 1e-9;
    g->info.load_s[2] = (double)(loaded_ns - clock.weights_ns) * 1e-9;
    g->info.load_s[3] = (double)(time_now_ns() - loaded_ns) * 1e-9;
    return true;
}

static void engine_fill_info(struct engine *g) {
    const struct model_config *c = model_config_of(g->model);
    struct engine_info *i = &g->info;
    snprintf(i->arch, sizeof i->arch, "%s", c->arch);
    i->n_vocab = c->n_vocab;
    i->n_layers = c->n_layers;
    i->dim = c->dim;
    i->model_context_len = c->context_len;
    i->max_batch_tokens = g->o.max_batch_tokens;
    i->max_seqs = g->o.max_seqs;
    i->weight_bytes = model_weight_bytes(g->model);
    i->work_bytes = model_work_bytes(g->model);
    i->n_params = model_n_params(g->model);
    i->n_threads = g->k->n_threads;
    i->isa = g->k->isa;
    engine_name_numerics(g);
}

static void engine_init_sync(struct engine *g) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->inbox_mu, NULL);
    pthread_mutex_init(&g->out_mu, NULL);
    pthread_cond_init(&g->inbox_cond, &attr);
    pthread_cond_init(&g->out_cond, &attr);
    pthread_condattr_destroy(&attr);
}

struct engine *engine_open(const struct engine_options *o, struct err *e) {
    struct engine *g = calloc(1, sizeof *g);
    if (!g) {
        err_set(e, ERR_LOAD, "no memory");
        return NULL;
    }
    g->o = *o;
    if (!g->o.max_batch_tokens) g->o.max_batch_tokens = BATCH_TOKENS_DEFAULT;
    if (!g->o.max_seqs) g->o.max_seqs = SEQS_DEFAULT;
    if (!g->o.queue_max_requests) g->o.queue_max_requests = QUEUE_REQUESTS_DEFAULT;
    if (!g->o.queue_max_tokens) g->o.queue_max_tokens = UINT64_MAX;
    engine_init_sync(g);
    if (engine_load(g, e)) {
        engine_fill_info(g);
        g->stats.idle = g->now.idle = true;
        g->stats.heartbeat_ns = time_now_ns();
        int failed = pthread_create(&g->thread, NULL, engine_thread, g);
        g->thread_started = !failed;
        if (!failed) return g;
        err_set(e, ERR_LOAD, "cannot start the engine thread: %s", strerror(failed));
    }
    engine_close(g);
    return NULL;
}

void engine_close(struct engine *g) {
    if (!g) return;
    if (g->thread_started) {
        pthread_mutex_lock(&g->inbox_mu);
        g->stopping = true;
        pthread_cond_signal(&g->inbox_cond);
        pthread_mutex_unlock(&g->inbox_mu);
        pthread_join(g->thread, NULL);
    }
    engine_step_free(g);
    if (g->sched) sched_close(g->sched);
    if (g->kv) kv_close(g->kv);
    if (g->model) model_close(g->model);
    if (g->tokenizer) tokenizer_close(g->tokenizer);
    if (g->tp) g->tp->close(g->tp);
    if (g->k) g->k->close(g->k);
    for (size_t i = g->out_at; i < g->n_out; i++) free(g->out[i].logprobs);
    free(g->out);
    free(g->inbox);
    pthread_mutex_destroy(&g->inbox_mu);
    pthread_mutex_destroy(&g->out_mu);
    pthread_cond_destroy(&g->inbox_cond);
    pthread_cond_destroy(&g->out_cond);
    free(g);
}

const struct engine_info *engine_info(const struct engine *g) { return &g->info; }
const struct tokenizer *engine_tokenizer(const struct engine *g) { return g->tokenizer; }

/* ---- Inbox ---- */

/* What would end the answer: barred while fewer than min_tokens are out. */
static bool job_list_barred(const struct engine *g, struct job *j) {
    const struct engine_request *r = j->r;
    if (!r->min_tokens) return true;
    j->barred = malloc((g->n_eog + r->n_stop_ids + 1) * sizeof *j->barred);
    if (!j->barred) return false;
    for (uint32_t i = 0; i < g->n_eog && !r->ignore_eos; i++) j->barred[j->n_barred++] = g->eog[i];
    for (uint32_t i = 0; i < r->n_stop_ids; i++) j->barred[j->n_barred++] = r->stop_ids[i];
    return true;
}

static void job_free(struct job *j) {
    if (!j) return;
    free(j->seq.tokens);
    free(j->barred);
    free(j);
}

static struct job *job_new(const struct engine *g, struct engine_request *r) {
    struct job *j = calloc(1, sizeof *j);
    if (!j) return NULL;
    j->r = r;
    j->n_queued = r->leader ? 0 : r->n_prompt;
    j->seq = (struct seq){.tokens = malloc(((size_t)r->n_prompt + r->max_tokens) * sizeof(int32_t)),
                          .n_tokens = r->n_prompt,
                          .n_prompt = r->n_prompt,
                          .max_tokens_total = r->n_prompt + r->max_tokens,
                          .priority = r->priority,
                          .salt = r->salt,
                          .rows_max = r->n_prompt_logprobs >= 0 ? g->n_logit_rows_max : 0, /* each row needs logits */
                          .no_prefix_read = r->n_prompt_logprobs >= 0,
                          .user = j,
                          .kv_seq = -1};
    if (j->seq.tokens && job_list_barred(g, j)) {
        memcpy(j->seq.tokens, r->prompt, r->n_prompt * sizeof *r->prompt);
        return j;
    }
    job_free(j);
    return NULL;
}

/* Call with inbox_mu held. */
static bool inbox_push(struct engine *g, struct message m) {
    if (g->n_inbox == g->inbox_cap) {
        size_t cap = size_max(64, 2 * g->inbox_cap);
        struct message *grown = realloc(g->inbox, cap * sizeof *grown);
        if (!grown) return false;
        g->inbox = grown;
        g->inbox_cap = cap;
    }
    g->inbox[g->n_inbox++] = m;
    pthread_cond_signal(&g->inbox_cond);
    return true;
}

static bool engine_request_check(const struct engine *g, const struct engine_request *r, struct err *e) {
    if (!r->n_prompt) return err_set_param(e, ERR_BAD_VALUE, "prompt", "The prompt has no tokens.");
    if ((uint64_t)r->n_prompt + r->max_tokens > g->info.max_model_len)
        return err_set_param(e, ERR_CONTEXT_LENGTH, "prompt",
                             "This model's context is %u tokens here; the prompt has %u and %u are to be generated.",
                             g->info.max_model_len, r->n_prompt, r->max_tokens);
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || (uint32_t)r->prompt[i] >= g->info.n_vocab)
            return err_set_param(e, ERR_BAD_VALUE, "prompt", "Token id %d is not in the vocabulary of %u tokens.", r->prompt[i],
                                 g->info.n_vocab);
    return true;
}

bool engine_submit(struct engine *g, struct engine_request *r, struct err *e) {
    if (!engine_request_check(g, r, e)) return false;
    struct job *j = job_new(g, r);
    if (!j) return err_set(e, ERR_OVERLOADED, "There is no memory for another request now.");
    pthread_mutex_lock(&g->inbox_mu);
    bool ok = true;
    if (g->stopping)
        ok = err_set(e, ERR_OVERLOADED, "The engine is stopping.");
    else if (g->queued_requests && (g->queued_requests >= g->o.queue_max_requests || g->queued_tokens + j->n_queued > g->o.queue_max_tokens))
        ok = err_set(e, ERR_QUEUE_FULL, "The queue is full (%u requests, %llu tokens wait); try again later.", g->queued_requests,
                     (unsigned long long)g->queued_tokens);
    else if (!inbox_push(g, (struct message){MESSAGE_SUBMIT, r, j}))
        ok = err_set(e, ERR_OVERLOADED, "There is no memory for another request now.");
    if (ok) {
        g->queued_requests++;
        g->queued_tokens += j->n_queued;
    }
    pthread_mutex_unlock(&g->inbox_mu);
    if (!ok) job_free(j);
    return ok;
}

void engine_cancel(struct engine *g, struct engine_request *r) {
    pthread_mutex_lock(&g->inbox_mu);
    inbox_push(g, (struct message){.kind = MESSAGE_CANCEL, .r = r}); /* without memory it runs to its end instead */
    pthread_mutex_unlock(&g->inbox_mu);
}

/* ---- Events out ---- */

size_t engine_poll(struct engine *g, struct engine_event *events, size_t n_max, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&g->out_mu);
    int waited = 0;
    while (g->out_at == g->n_out && !g->woken && waited != ETIMEDOUT)
        waited = timeout_ms < 0 ? pthread_cond_wait(&g->out_cond, &g->out_mu) : pthread_cond_timedwait(&g->out_cond, &g->out_mu, &until);
    g->woken = false;
    size_t n = size_min(g->n_out - g->out_at, n_max);
    if (n) memcpy(events, g->out + g->out_at, n * sizeof *events);
    g->out_at += n;
    if (g->out_at == g->n_out) g->out_at = g->n_out = 0;
    pthread_mutex_unlock(&g->out_mu);
    return n;
}

void engine_wake(struct engine *g) {
    pthread_mutex_lock(&g->out_mu);
    g->woken = true;
    pthread_cond_signal(&g->out_cond);
    pthread_mutex_unlock(&g->out_mu);
}

void engine_stats_get(const struct engine *g, struct engine_stats *s) {
    struct engine *own = (struct engine *)g; /* the lock is not part of what the caller sees as const */
    pthread_mutex_lock(&own->out_mu);
    *s = g->stats;
    pthread_mutex_unlock(&own->out_mu);
    if (s->idle) s->heartbeat_ns = time_now_ns();
}
