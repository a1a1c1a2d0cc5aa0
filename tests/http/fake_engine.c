/* fake_engine.c - engine.h without a model, so that the HTTP surface can be tested in every state and fault.
 *
 * Tokens are a hash of (prompt, sampling parameters, position), so a reply depends on its request alone, as with the
 * real engine. A request whose prompt begins with the control token <script> answers with the rest of its prompt,
 * token by token, and then the end token: tests choose the exact tokens. Control tokens after it are faults:
 *
 *   <slow>      20 ms between tokens            <nan>   fails with BAD_LOGITS after 3 tokens
 *   <full>      engine_submit says QUEUE_FULL   <lost>  fails with RANK_LOST after 3 tokens
 *   <deadline>  fails in the queue              <stall> the engine thread stands still for FAKE_STALL_MS
 *   <forever>   never ends by itself
 *
 * Environment: FAKE_LOAD_MS (loading takes that long), FAKE_LOAD_FAIL, FAKE_STALL_MS (3000), FAKE_STEP_US (100).
 *
 * Threads as in engine.h; one mutex guards everything.
 */
#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    ID_UNK,
    ID_BOS,
    ID_EOS,
    ID_SCRIPT,
    ID_SLOW,
    ID_NAN,
    ID_LOST,
    ID_FULL,
    ID_STALL,
    ID_DEADLINE,
    ID_FOREVER,
    ID_TURN,
    ID_END_TURN,
    ID_BYTES,
    ID_WORDS = ID_BYTES + 256
};
enum { MODEL_LEN = 1024, BLOCK = 16, BLOCKS_MAX = 1 << 16, EVENTS_FIRST = 1024, FAIL_AFTER = 3, SLOW_NS = 20000000 };

static const char *const specials[] = {
    "<unk>",  "<s>",     "</s>",       "<script>",  "<slow>",          "<nan>",        "<lost>",
    "<full>", "<stall>", "<deadline>", "<forever>", "<start_of_turn>", "<end_of_turn>"};
static const char *const words[] = {
    "\u2581the", "\u2581and",     "\u2581stop",         "ing",        "\u2581Hello", "\u2581world", "foo", "bar", "END",
    "\n\n",      "\u00e9t\u00e9", "\u65e5\u672c\u8a9e", "\u2581user", "\u2581model", "model",       "user"};

struct job {
    struct engine_request *r;
    struct engine_request copy;
    int32_t *prompt;
    uint64_t hash;
    uint32_t position; /* tokens sent */
    uint64_t submit_ns, next_ns;
    bool started, cancelled;
    bool script, slow, nan, lost, stall, deadline, forever;
    uint32_t script_begin;
    struct job *next;
};

struct engine {
    struct engine_options o;
    struct engine_info info;
    struct tokenizer *tokenizer;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t work, ready;
    struct job *jobs; /* oldest first */
    uint32_t n_jobs, n_running;
    struct engine_event *events;
    size_t n_events, cap_events;
    bool woken, closing;
    uint64_t *blocks; /* hashes of cached prefix blocks */
    size_t n_blocks;
    struct engine_stats stats;
};

static uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    h ^= h >> 33, h *= 0xff51afd7ed558ccdu, h ^= h >> 33;
    return h;
}

static uint64_t env_number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void sleep_ns(uint64_t ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* ---- a small SentencePiece-style vocabulary: specials, bytes, characters, words and their beginnings ---- */

struct vocab {
    struct vocab_entry e[1024];
    char text[1024][24];
    uint32_t n;
};

static void vocab_add(struct vocab *v, const char *text, size_t n, float score, enum token_kind kind) {
    for (uint32_t i = 0; i < v->n; i++)
        if (v->e[i].n_bytes == n && memcmp(v->e[i].bytes, text, n) == 0) return;
    memcpy(v->text[v->n], text, n);
    v->e[v->n] = (struct vocab_entry){.bytes = v->text[v->n], .n_bytes = (uint32_t)n, .score = score, .kind = kind};
    v->n++;
}

static size_t char_bytes(const char *s) {
    unsigned char c = (unsigned char)*s;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

static struct tokenizer *fake_tokenizer(struct err *e) {
    struct vocab *v = calloc(1, sizeof *v);
    for (size_t i = 0; i < ARRAY_COUNT(specials); i++)
        vocab_add(v, specials[i], strlen(specials[i]), 0, i == ID_UNK ? TOKEN_UNKNOWN : TOKEN_CONTROL);
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        vocab_add(v, name, 6, 0, TOKEN_BYTE);
    }
    vocab_add(v, "\u2581", 3, -1, TOKEN_NORMAL);
    for (char c = '!'; c <= '~'; c++) vocab_add(v, &c, 1, -1, TOKEN_NORMAL);
    vocab_add(v, "\n", 1, -1, TOKEN_NORMAL);
    for (size_t w = 0; w < ARRAY_COUNT(words); w++) {
        size_t n = strlen(words[w]), at = 0;
        while (at < n) {
            vocab_add(v, words[w] + at, char_bytes(words[w] + at), -1, TOKEN_NORMAL);
            at += char_bytes(words[w] + at);
            vocab_add(v, words[w], at, (float)at, TOKEN_NORMAL);
        }
    }
    int32_t eog = ID_END_TURN;
    struct tokenizer_spec spec = {.kind = TOKENIZER_SPM,
                                  .vocab = v->e,
                                  .n_vocab = v->n,
                                  .bos = ID_BOS,
                                  .eos = ID_EOS,
                                  .unk = ID_UNK,
                                  .eog = &eog,
                                  .n_eog = 1,
                                  .add_bos = true,
                                  .byte_fallback = true};
    struct tokenizer *t = tokenizer_open(&spec, e);
    free(v);
    return t;
}

/* ---- what a request answers ---- */

static uint32_t f32_text(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static uint64_t request_hash(const struct engine_request *r) {
    const struct sampling_params *s = &r->sampling;
    uint64_t h = 1;
    for (uint32_t i = 0; i < r->n_prompt; i++) h = mix(h, (uint64_t)r->prompt[i]);
    h = mix(h, f32_text(s->temperature));
    if (s->temperature > 0) {
        h = mix(h, s->seed);
        h = mix(mix(mix(h, f32_text(s->top_p)), f32_text(s->min_p)), s->top_k);
    }
    h = mix(mix(mix(h, f32_text(s->presence_penalty)), f32_text(s->frequency_penalty)),
            f32_text(s->repetition_penalty));
    for (uint32_t i = 0; i < s->n_bias; i++) h = mix(mix(h, (uint64_t)s->bias[i].id), f32_text(s->bias[i].bias));
    return h;
}

/* The rank-th likeliest token after some context: a permutation of the vocabulary, so all differ. */
static int32_t candidate(const struct engine *g, uint64_t context, uint32_t rank) {
    uint32_t n = g->info.n_vocab - ID_BYTES, step = n - 1;
    while (n % step == 0 || (step % 2 == 0 && n % 2 == 0) || (step % 3 == 0 && n % 3 == 0)) step--;
    return (int32_t)(ID_BYTES + (context + (uint64_t)rank * step) % n);
}

static float candidate_logprob(uint64_t context, uint32_t rank) {
    return -0.25f * (float)(rank + 1) - (float)(context % 997) / 9973.0f;
}

static void output_fill(const struct engine *g, uint64_t context, int32_t id, int n_top, struct sample_output *o) {
    *o = (struct sample_output){.id = id};
    o->drawn = (struct token_logprob){.id = id, .logprob = -20, .rank = g->info.n_vocab};
    for (uint32_t i = 0; i < TOP_LOGPROBS_MAX; i++) {
        struct token_logprob t = {candidate(g, context, i), candidate_logprob(context, i), i + 1};
        if (t.id == id) o->drawn = t;
        if ((int)i < n_top) o->top[o->n_top++] = t;
    }
}

/* The next token, or the end token's id. */
static int32_t token_next(const struct engine *g, const struct job *j, uint64_t context) {
    const struct engine_request *r = &j->copy;
    if (j->script) {
        uint32_t at = j->script_begin + j->position;
        return at < r->n_prompt ? j->prompt[at] : j->forever ? ID_WORDS : ID_EOS;
    }
    for (uint32_t i = 0; i < r->sampling.n_bias; i++)
        if (r->sampling.bias[i].bias >= 100) return r->sampling.bias[i].id;
    if (r->sampling.n_allowed) return r->sampling.allowed[context % r->sampling.n_allowed];
    if (context % 61 == 0 && !r->ignore_eos && j->position >= r->min_tokens) return ID_EOS;
    return candidate(g, context, r->sampling.temperature > 0 ? (uint32_t)(context >> 40) % 8 : 0);
}

/* ---- events ---- */

static struct engine_event *event_add(struct engine *g, struct job *j, enum engine_event_kind kind) {
    if (g->n_events == g->cap_events) {
        g->cap_events = g->cap_events ? 2 * g->cap_events : EVENTS_FIRST;
        g->events = realloc(g->events, g->cap_events * sizeof *g->events);
    }
    struct engine_event *ev = &g->events[g->n_events++];
    *ev = (struct engine_event){.request = j->r, .kind = kind, .time_ns = time_now_ns(), .stop_token = -1};
    pthread_cond_signal(&g->ready);
    return ev;
}

static void job_end(struct engine *g, struct job *j) {
    struct job **at = &g->jobs;
    while (*at != j) at = &(*at)->next;
    *at = j->next;
    g->n_jobs--;
    if (j->started) g->n_running--;
    free(j->prompt);
    free(j);
}

static void job_finish(struct engine *g, struct job *j, enum finish_reason finish, int32_t stop_token) {
    struct engine_event *ev = event_add(g, j, EVENT_FINISH);
    ev->finish = finish;
    ev->stop_token = stop_token;
    g->stats.finished[finish]++;
    job_end(g, j);
}

static void job_fail(struct engine *g, struct job *j, enum err_code code) {
    struct engine_event *ev = event_add(g, j, EVENT_FAIL);
    ev->fail = code;
    g->stats.failed++;
    job_end(g, j);
}

static uint32_t prefix_lookup(struct engine *g, const struct job *j) {
    uint32_t n_cached = 0;
    bool hit = g->o.prefix_cache && j->copy.n_prompt_logprobs < 0;
    uint64_t h = mix(7, j->copy.salt);
    for (uint32_t end = BLOCK; end < j->copy.n_prompt; end += BLOCK) {
        for (uint32_t i = end - BLOCK; i < end; i++) h = mix(h, (uint64_t)j->prompt[i]);
        bool known = false;
        for (size_t b = 0; b < g->n_blocks && !known; b++) known = g->blocks[b] == h;
        if (known && hit) n_cached = end;
        hit = hit && known;
        if (!known && g->n_blocks < BLOCKS_MAX) g->blocks[g->n_blocks++] = h;
    }
    g->stats.prefix_queries_tokens += j->copy.n_prompt;
    g->stats.prefix_hits_tokens += n_cached;
    return n_cached;
}

static void prompt_logprobs_send(struct engine *g, struct job *j) {
    const struct engine_request *r = &j->copy;
    enum { CHUNK = 50 };
    for (uint32_t pos = 1; pos < r->n_prompt; pos += CHUNK) {
        uint32_t n = r->n_prompt - pos < CHUNK ? r->n_prompt - pos : CHUNK;
        struct sample_output *out = calloc(n, sizeof *out);
        for (uint32_t k = 0; k < n; k++)
            output_fill(g, mix((uint64_t)j->prompt[pos + k - 1], pos + k), j->prompt[pos + k], r->n_prompt_logprobs,
                        &out[k]);
        struct engine_event *ev = event_add(g, j, EVENT_PROMPT_LOGPROBS);
        ev->pos0 = pos;
        ev->n = n;
        ev->logprobs = out;
    }
}

static void job_start(struct engine *g, struct job *j) {
    j->started = true;
    g->n_running++;
    uint32_t n_cached = prefix_lookup(g, j);
    event_add(g, j, EVENT_STARTED)->n_cached = n_cached;
    g->stats.prompt_tokens += j->copy.n_prompt;
    g->stats.cached_tokens += n_cached;
    if (j->copy.n_prompt_logprobs >= 0) prompt_logprobs_send(g, j);
    if (!j->stall) return;
    uint64_t until = time_now_ns() + env_number("FAKE_STALL_MS", 3000) * 1000000u;
    while (time_now_ns() < until && !g->closing) {
        pthread_mutex_unlock(&g->mutex); /* the heartbeat stays old meanwhile */
        sleep_ns(10000000);
        pthread_mutex_lock(&g->mutex);
    }
}

static bool ends(const struct engine *g, const struct job *j, int32_t id) {
    if (j->position < j->copy.min_tokens) return false;
    for (uint32_t i = 0; i < j->copy.n_stop_ids; i++)
        if (j->copy.stop_ids[i] == id) return true;
    return !j->copy.ignore_eos && tokenizer_is_eog(g->tokenizer, id);
}

/* One step of one request; true when it has ended. */
static bool job_step(struct engine *g, struct job *j) {
    uint64_t now = time_now_ns();
    if (j->cancelled) return job_finish(g, j, FINISH_CANCEL, -1), true;
    if (j->deadline || (j->copy.deadline_ns && now >= j->copy.deadline_ns)) return job_fail(g, j, ERR_DEADLINE), true;
    if (!j->started) {
        if (g->n_running >= g->o.max_seqs) return false;
        job_start(g, j);
        return false;
    }
    if (j->slow && now < j->next_ns) return false;
    j->next_ns = now + SLOW_NS;
    if (j->position >= j->copy.max_tokens) return job_finish(g, j, FINISH_LENGTH, -1), true;
    if (j->nan && j->position == FAIL_AFTER) return job_fail(g, j, ERR_BAD_LOGITS), true;
    if (j->lost && j->position == FAIL_AFTER) return job_fail(g, j, ERR_RANK_LOST), true;
    uint64_t context = mix(j->hash, j->position);
    int32_t id = token_next(g, j, context);
    if (ends(g, j, id)) return job_finish(g, j, FINISH_STOP, id), true;
    struct engine_event *ev = event_add(g, j, EVENT_TOKEN);
    ev->token = id;
    if (j->copy.n_logprobs >= 0) {
        ev->logprobs = calloc(1, sizeof *ev->logprobs);
        output_fill(g, context, id, j->copy.n_logprobs, ev->logprobs);
    }
    j->position++;
    g->stats.generated_tokens++;
    if (j->position < j->copy.max_tokens) return false;
    return job_finish(g, j, FINISH_LENGTH, -1), true;
}

static void *fake_main(void *arg) {
    struct engine *g = arg;
    uint64_t step_ns = env_number("FAKE_STEP_US", 100) * 1000u;
    pthread_mutex_lock(&g->mutex);
    while (!g->closing) {
        g->stats.idle = !g->jobs;
        g->stats.heartbeat_ns = time_now_ns();
        if (!g->jobs) {
            pthread_cond_wait(&g->work, &g->mutex);
            continue;
        }
        for (struct job *j = g->jobs; j && !g->closing;) {
            struct job *next = j->next;
            job_step(g, j);
            j = next;
        }
        g->stats.steps++;
        g->stats.heartbeat_ns = time_now_ns();
        pthread_mutex_unlock(&g->mutex);
        sleep_ns(step_ns);
        pthread_mutex_lock(&g->mutex);
    }
    while (g->jobs) job_finish(g, g->jobs, FINISH_CANCEL, -1);
    pthread_mutex_unlock(&g->mutex);
    return NULL;
}

/* ---- engine.h ---- */

static bool fake_load(const struct engine_options *o, struct err *e) {
    static const char *const stages[] = {"open", "tokenizer", "weights", "warm-up"};
    uint64_t ms = env_number("FAKE_LOAD_MS", 0);
    for (size_t i = 0; i < ARRAY_COUNT(stages); i++) {
        if (o->on_progress) o->on_progress(o->progress_arg, stages[i], (double)i / (double)ARRAY_COUNT(stages));
        sleep_ns(ms * 1000000u / ARRAY_COUNT(stages));
    }
    if (getenv("FAKE_LOAD_FAIL")) return err_set(e, ERR_LOAD, "The model file ends early.\nGet it again.");
    return true;
}

struct engine *engine_open(const struct engine_options *o, struct err *e) {
    if (!fake_load(o, e)) return NULL;
    struct engine *g = calloc(1, sizeof *g);
    g->o = *o;
    g->tokenizer = fake_tokenizer(e);
    if (!g->tokenizer) {
        free(g);
        return NULL;
    }
    g->blocks = calloc(BLOCKS_MAX, sizeof *g->blocks);
    g->info = (struct engine_info){.arch = "fake",
                                   .n_vocab = tokenizer_n_vocab(g->tokenizer),
                                   .n_layers = 1,
                                   .dim = 1,
                                   .max_model_len = o->max_model_len ? o->max_model_len : MODEL_LEN,
                                   .model_context_len = MODEL_LEN,
                                   .max_batch_tokens = o->max_batch_tokens,
                                   .max_seqs = o->max_seqs,
                                   .weight_bytes = 1 << 20,
                                   .kv_bytes = 1 << 20,
                                   .work_bytes = 1 << 20,
                                   .kv_tokens_max = 1 << 16,
                                   .n_params = 1,
                                   .n_threads = 1,
                                   .isa = "fake",
                                   .numerics_id = "fp_00000000fa4e0000"};
    g->stats.kv_pages_total = (1 << 16) / BLOCK;
    g->stats.kv_pages_free = g->stats.kv_pages_total;
    g->stats.idle = true;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->work, &attr);
    pthread_cond_init(&g->ready, &attr);
    pthread_create(&g->thread, NULL, fake_main, g);
    return g;
}

void engine_close(struct engine *g) {
    pthread_mutex_lock(&g->mutex);
    g->closing = true;
    pthread_cond_signal(&g->work);
    pthread_mutex_unlock(&g->mutex);
    pthread_join(g->thread, NULL);
    for (size_t i = 0; i < g->n_events; i++) free(g->events[i].logprobs);
    tokenizer_close(g->tokenizer);
    free(g->events);
    free(g->blocks);
    free(g);
}

const struct engine_info *engine_info(const struct engine *g) {
    return &g->info;
}
const struct tokenizer *engine_tokenizer(const struct engine *g) {
    return g->tokenizer;
}

static void faults_read(struct job *j) {
    const struct engine_request *r = &j->copy;
    uint32_t at = 0;
    if (at < r->n_prompt && j->prompt[at] == ID_BOS) at++;
    if (at >= r->n_prompt || j->prompt[at] != ID_SCRIPT) return;
    j->script = true;
    for (at++; at < r->n_prompt && j->prompt[at] >= ID_SLOW && j->prompt[at] <= ID_FOREVER; at++) {
        j->slow |= j->prompt[at] == ID_SLOW;
        j->nan |= j->prompt[at] == ID_NAN;
        j->lost |= j->prompt[at] == ID_LOST;
        j->stall |= j->prompt[at] == ID_STALL;
        j->deadline |= j->prompt[at] == ID_DEADLINE;
        j->forever |= j->prompt[at] == ID_FOREVER;
    }
    j->script_begin = at;
}

static void job_insert(struct engine *g, struct job *j) {
    struct job **at = &g->jobs;
    while (*at && ((*at)->started || (*at)->copy.priority <= j->copy.priority)) at = &(*at)->next;
    j->next = *at;
    *at = j;
    g->n_jobs++;
}

bool engine_submit(struct engine *g, struct engine_request *r, struct err *e) {
    for (uint32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] == ID_FULL && i <= 2) return err_set(e, ERR_QUEUE_FULL, "%s", err_info(ERR_QUEUE_FULL)->text);
    struct job *j = calloc(1, sizeof *j);
    j->prompt = malloc(r->n_prompt * sizeof *j->prompt);
    memcpy(j->prompt, r->prompt, r->n_prompt * sizeof *j->prompt);
    j->r = r;
    j->copy = *r;
    j->hash = request_hash(r);
    j->submit_ns = time_now_ns();
    faults_read(j);
    pthread_mutex_lock(&g->mutex);
    bool full = g->n_jobs - g->n_running >= g->o.queue_max_requests;
    if (!full) job_insert(g, j);
    pthread_cond_signal(&g->work);
    pthread_mutex_unlock(&g->mutex);
    if (!full) return true;
    free(j->prompt);
    free(j);
    return err_set(e, ERR_QUEUE_FULL, "%s", err_info(ERR_QUEUE_FULL)->text);
}

void engine_cancel(struct engine *g, struct engine_request *r) {
    pthread_mutex_lock(&g->mutex);
    for (struct job *j = g->jobs; j; j = j->next)
        if (j->r == r) j->cancelled = true;
    pthread_mutex_unlock(&g->mutex);
}

size_t engine_poll(struct engine *g, struct engine_event *events, size_t n_max, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&g->mutex);
    int rc = 0;
    while (g->n_events == 0 && !g->woken && rc == 0)
        rc = timeout_ms < 0 ? pthread_cond_wait(&g->ready, &g->mutex)
                            : pthread_cond_timedwait(&g->ready, &g->mutex, &until);
    g->woken = false;
    size_t n = g->n_events < n_max ? g->n_events : n_max;
    if (n > 0) {
        memcpy(events, g->events, n * sizeof *events);
        memmove(g->events, g->events + n, (g->n_events - n) * sizeof *events);
        g->n_events -= n;
    }
    pthread_mutex_unlock(&g->mutex);
    return n;
}

void engine_wake(struct engine *g) {
    pthread_mutex_lock(&g->mutex);
    g->woken = true;
    pthread_cond_signal(&g->ready);
    pthread_mutex_unlock(&g->mutex);
}

void engine_stats_get(const struct engine *cg, struct engine_stats *s) {
    struct engine *g = (struct engine *)cg; /* the mutex is all that changes */
    pthread_mutex_lock(&g->mutex);
    g->stats.n_running = g->n_running;
    g->stats.n_waiting = g->n_jobs - g->n_running;
    *s = g->stats;
    if (s->idle) s->heartbeat_ns = time_now_ns();
    pthread_mutex_unlock(&g->mutex);
}
