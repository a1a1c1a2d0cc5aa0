/* kld.c - how far our logits are from a reference's: mean KL divergence over real text, in llama.cpp's own terms.
 *
 * Reads the base file that `llama-perplexity --kl-divergence-base` wrote for the fp32 model and computes what
 * `llama-perplexity --kl-divergence` prints, with our forward pass instead of its own, so that the two figures compare.
 *
 * The base file (little-endian): "_logits_", int32 n_ctx, n_vocab, n_chunks, int32 tokens[n_chunks][n_ctx]; then for
 * each chunk the positions n_ctx / 2 .. n_ctx - 2, one row each: float scale, float min, uint16 q[n_vocab] (padded to
 * even): log p = scale * q + min. The first token of a chunk is read as BOS. Tokens under e^-16 are left out of the
 * sum.
 *
 * One thread drives the model; one sequence, whose KV pages are simply numbered.
 */
#include "common/err.h"
#include "engine/kvcache/kvcache.h"
#include "engine/model/model.h"
#include "engine/text/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT_TOKENS_MAX = 8192, CHUNKS_MAX = 4096, LOGIT_ROWS = 16 };

struct base {
    FILE *file;
    int32_t n_ctx, n_vocab, n_chunks;
    int32_t *tokens;  /* [n_chunks][n_ctx] */
    float scale, min; /* of the current row */
    uint16_t *q;      /* [n_vocab rounded up to even] of the current row */
};

struct totals {
    double kld, kld2, nll, nll_base;
    size_t same_top, n;
};

_Noreturn static void fail(const char *what, const char *detail) {
    fprintf(stderr, "peer_kld: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
    exit(1);
}

static void *alloc(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p) fail("out of memory", NULL);
    return p;
}

static void base_read(struct base *b, void *to, size_t n_bytes) {
    if (fread(to, 1, n_bytes, b->file) != n_bytes) fail("the base file ends early", NULL);
}

static void base_open(struct base *b, const char *path) {
    char magic[8];
    b->file = fopen(path, "rb");
    if (!b->file) fail("cannot open the base file", path);
    base_read(b, magic, sizeof magic);
    base_read(b, &b->n_ctx, sizeof b->n_ctx);
    base_read(b, &b->n_vocab, sizeof b->n_vocab);
    base_read(b, &b->n_chunks, sizeof b->n_chunks);
    if (memcmp(magic, "_logits_", sizeof magic) != 0) fail("not a file of llama-perplexity --kl-divergence-base", path);
    if (b->n_ctx < 4 || b->n_ctx > CONTEXT_TOKENS_MAX || b->n_chunks < 1 || b->n_chunks > CHUNKS_MAX ||
        b->n_vocab < 1 || b->n_vocab > VOCAB_MAX)
        fail("sizes out of range in the base file", path);
    size_t n_tokens = (size_t)b->n_ctx * (size_t)b->n_chunks;
    b->tokens = alloc(n_tokens, sizeof *b->tokens);
    base_read(b, b->tokens, n_tokens * sizeof *b->tokens);
    for (size_t i = 0; i < n_tokens; i++)
        if (b->tokens[i] < 0 || b->tokens[i] >= b->n_vocab) fail("a token out of range in the base file", path);
    b->q = alloc((size_t)b->n_vocab + 1, sizeof *b->q);
}

static void base_next_row(struct base *b) {
    base_read(b, &b->scale, sizeof b->scale);
    base_read(b, &b->min, sizeof b->min);
    base_read(b, b->q, ((size_t)b->n_vocab + 1) / 2 * 2 * sizeof *b->q);
}

/* Adds one position: our logits against the base's current row; next is the token that followed in the text. */
static void totals_add(struct totals *t, const float *logits, const struct base *b, int32_t next) {
    int32_t top = 0, top_base = 0;
    for (int32_t i = 1; i < b->n_vocab; i++) {
        if (logits[i] > logits[top]) top = i;
        if (b->q[i] > b->q[top_base]) top_base = i;
    }
    double sum = 0;
    for (int32_t i = 0; i < b->n_vocab; i++) sum += exp((double)logits[i] - logits[top]);
    double log_norm = logits[top] + log(sum), kld = 0;
    for (int32_t i = 0; i < b->n_vocab; i++) {
        double log_p = (double)b->scale * b->q[i] + b->min;
        if (log_p > -16) kld += exp(log_p) * (log_p - (logits[i] - log_norm));
    }
    t->kld += kld;
    t->kld2 += kld * kld;
    t->nll += log_norm - logits[next];
    t->nll_base -= (double)b->scale * b->q[next] + b->min;
    t->same_top += top == top_base;
    t->n++;
}

/* One sequence's block tables with pages numbered from 0, kind after kind. */
static void tables_fill(struct model_batch_seq *seq, const struct model_kv_plan *plan, uint32_t n_ctx,
                        uint32_t *n_pages) {
    uint32_t n_blocks = (uint32_t)div_up(n_ctx, KV_PAGE_TOKENS);
    *n_pages = 0;
    for (uint32_t k = 0; k < plan->n_kinds; k++) {
        uint32_t n = n_blocks * plan->units[k];
        uint32_t *table = alloc(n, sizeof *table);
        for (uint32_t i = 0; i < n; i++) table[i] = (*n_pages)++;
        seq->table[k] = table;
    }
}

static void chunk_run(struct model *m, struct base *b, int32_t chunk, int32_t bos, const struct model_batch_seq *seq,
                      struct totals *t) {
    uint32_t n = (uint32_t)b->n_ctx, first = n / 2;
    int32_t *tokens = b->tokens + (size_t)chunk * n;
    uint32_t *positions = alloc(n, sizeof *positions), rows[LOGIT_ROWS];
    int32_t *ids = alloc(n, sizeof *ids);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = i == 0 && bos >= 0 ? bos : tokens[i];
        positions[i] = i;
    }
    model_forward(m,
                  &(struct model_batch){.n_tokens = n, .n_seqs = 1, .ids = ids, .positions = positions, .seqs = seq});
    for (uint32_t row = first; row < n - 1; row += LOGIT_ROWS) {
        uint32_t n_rows = (uint32_t)size_min(LOGIT_ROWS, n - 1 - row);
        for (uint32_t i = 0; i < n_rows; i++) rows[i] = row + i;
        const float *logits = model_logits(m, rows, n_rows);
        for (uint32_t i = 0; i < n_rows; i++) {
            base_next_row(b);
            totals_add(t, logits + (size_t)i * (size_t)b->n_vocab, b, tokens[row + i + 1]);
        }
    }
    free(positions);
    free(ids);
}

static void totals_print(const struct totals *t, const char *kv) {
    double n = (double)t->n, mean = t->kld / n, same = (double)t->same_top / n;
    double spread = sqrt((t->kld2 / n - mean * mean) / (n - 1));
    printf("{\"kv\": \"%s\", \"positions\": %zu, \"mean_kld\": %.6f, \"mean_kld_error\": %.6f, \"same_top\": %.5f, "
           "\"ppl\": %.5f, \"ppl_base\": %.5f}\n",
           kv, t->n, mean, spread, same, exp(t->nll / n), exp(t->nll_base / n));
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 6) fail("usage: peer_kld MODEL BASE [THREADS] [f16|f32|bf16|i8] [ISA]", NULL);
    const char *kv_name = argc > 4 ? argv[4] : "f16";
    static const struct {
        const char *name;
        enum dtype type;
    } kv_types[] = {{"f16", DT_F16}, {"f32", DT_F32}, {"bf16", DT_BF16}, {"i8", DT_I8}};
    size_t kv = 0;
    while (kv < ARRAY_COUNT(kv_types) && strcmp(kv_types[kv].name, kv_name) != 0) kv++;
    if (kv == ARRAY_COUNT(kv_types)) fail("no such KV type", kv_name);

    struct base base = {0};
    struct err e;
    base_open(&base, argv[2]);
    struct kernels_options ko = {.n_threads = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 2,
                                 .isa = argc > 5 ? argv[5] : "auto"};
    struct kernels *kernels = kernels_cpu_open(&ko, &e);
    if (!kernels) fail("kernels", e.message);
    struct model_options mo = {.path = argv[1],
                               .kernels = kernels,
                               .tp = tp_self_open(),
                               .kv_type = kv_types[kv].type,
                               .n_tokens_max = (uint32_t)base.n_ctx,
                               .n_seqs_max = 1,
                               .n_logit_rows_max = LOGIT_ROWS};
    struct tokenizer *tokenizer = NULL;
    struct model *m = model_open(&mo, &tokenizer, &e);
    if (!m) fail(argv[1], e.message);
    if (model_config_of(m)->n_vocab != (uint32_t)base.n_vocab) fail("the base file has another vocabulary", argv[2]);

    struct model_batch_seq seq = {.n_rows = (uint32_t)base.n_ctx};
    uint32_t n_pages;
    tables_fill(&seq, model_kv_plan(m), (uint32_t)base.n_ctx, &n_pages);
    if (!model_kv_alloc(m, n_pages, &e)) fail("KV memory", e.message);

    int32_t bos = tokenizer_adds_bos(tokenizer) ? tokenizer_bos(tokenizer) : -1;
    struct totals totals = {0};
    for (int32_t chunk = 0; chunk < base.n_chunks; chunk++) {
        chunk_run(m, &base, chunk, bos, &seq, &totals);
        fprintf(stderr, "chunk %d of %d: mean KLD %.6f\n", chunk + 1, base.n_chunks, totals.kld / (double)totals.n);
    }
    totals_print(&totals, kv_name);
    return 0;
}
