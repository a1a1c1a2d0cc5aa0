/* sim_model.c - the forward pass of the simulator: what it writes into pages, and what it checks when it reads. */
#include "tests/batching/sim_world.h"

#include <string.h>

static struct cell *cell_at(const struct world *w, const struct job *j, uint32_t kind, uint32_t unit, uint32_t pos) {
    uint32_t entry = pos / KV_BLOCK_TOKENS * w->kv_options.units[kind] + unit;
    uint32_t page = kv_table(w->kv, j->seq.kv_seq, kind)[entry];
    CHECK(w, page < w->kv_options.n_pages, "kind %u position %u of job %d: its page was released", kind, pos,
          (int)(j - w->jobs));
    return &w->cells[(size_t)page * KV_BLOCK_TOKENS + pos % KV_BLOCK_TOKENS];
}

/* How many running sequences show each page. */
static void page_users_count(struct world *w) {
    memset(w->page_users, 0, w->kv_options.n_pages * sizeof *w->page_users);
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        const struct seq *q = &w->jobs[i].seq;
        if (q->state != SEQ_PREFILL && q->state != SEQ_DECODE) continue;
        uint32_t n_blocks = kv_seq_tokens(w->kv, q->kv_seq) / KV_BLOCK_TOKENS;
        for (uint32_t k = 0; k < w->kv_options.n_kinds; k++)
            for (uint32_t p = 0; p < n_blocks * w->kv_options.units[k]; p++) {
                uint32_t page = kv_table(w->kv, q->kv_seq, k)[p];
                if (page != KV_PAGE_NONE) w->page_users[page]++;
            }
    }
}

static void rows_write(struct world *w, const struct step_seq *e) {
    struct job *j = e->seq->user;
    for (uint32_t k = 0; k < w->kv_options.n_kinds; k++)
        for (uint32_t u = 0; u < w->kv_options.units[k]; u++)
            for (uint32_t pos = e->pos0; pos < e->pos0 + e->n_rows; pos++) {
                struct cell *c = cell_at(w, j, k, u, pos);
                CHECK(w, w->page_users[(c - w->cells) / KV_BLOCK_TOKENS] == 1,
                      "kind %u position %u of job %d: writes into a page that others see", k, pos, (int)(j - w->jobs));
                *c = (struct cell){j->tokens[pos], pos, k, u, j->seq.salt, j->history[pos]};
            }
}

/* Each row sees at least itself and at most its window: together, all from the first row's first to the last row. */
static void rows_read(const struct world *w, const struct step_seq *e) {
    const struct job *j = e->seq->user;
    for (uint32_t k = 0; k < w->kv_options.n_kinds; k++) {
        uint32_t window = w->kv_options.window[k], first = window > 0 && e->pos0 >= window ? e->pos0 - window + 1 : 0;
        for (uint32_t u = 0; u < w->kv_options.units[k]; u++)
            for (uint32_t pos = first; pos < e->pos0 + e->n_rows; pos++) {
                const struct cell *c = cell_at(w, j, k, u, pos);
                CHECK(w, c->salt == j->seq.salt, "kind %u position %u of job %d: from another salt", k, pos,
                      (int)(j - w->jobs));
                CHECK(w,
                      c->pos == pos && c->kind == k && c->unit == u && c->token == j->expected[pos] &&
                          c->history == j->history[pos],
                      "kind %u unit %u position %u of job %d: reads what belongs to kind %u unit %u position %u", k, u,
                      pos, (int)(j - w->jobs), c->kind, c->unit, c->pos);
            }
    }
}

static void entry_check(const struct world *w, const struct step_plan *plan, uint32_t i) {
    const struct step_seq *e = &plan->seqs[i];
    const struct seq *q = e->seq;
    CHECK(w, q->state == SEQ_PREFILL || q->state == SEQ_DECODE, "a plan with a sequence that does not run");
    CHECK(w, e->pos0 == q->n_computed && e->n_rows >= 1 && e->pos0 + e->n_rows <= q->n_tokens,
          "a plan with rows %u + %u of %u tokens, %u computed", e->pos0, e->n_rows, q->n_tokens, q->n_computed);
    CHECK(w, e->samples == (e->pos0 + e->n_rows == q->n_tokens), "a plan that samples at the wrong row");
    for (uint32_t k = 0; k < i; k++) CHECK(w, plan->seqs[k].seq != q, "a plan with a sequence twice");
    if (i > 0 && q->state == SEQ_DECODE)
        CHECK(w, plan->seqs[i - 1].seq->state == SEQ_DECODE, "a plan with a prefill before a decode");
}

void model_forward(struct world *w, const struct step_plan *plan) {
    uint32_t n_tokens = 0;
    CHECK(w, plan->n_seqs <= w->sched_options.max_seqs, "a plan with %u sequences", plan->n_seqs);
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        entry_check(w, plan, i);
        n_tokens += plan->seqs[i].n_rows;
    }
    CHECK(w, n_tokens == plan->n_tokens && n_tokens <= w->sched_options.max_batch_tokens, "a plan with %u tokens",
          n_tokens);
    page_users_count(w);
    for (uint32_t i = 0; i < plan->n_seqs; i++) rows_write(w, &plan->seqs[i]);
    for (uint32_t i = 0; i < plan->n_seqs; i++) rows_read(w, &plan->seqs[i]);
    w->n_computed_tokens += n_tokens;
}

int32_t model_next_token(const struct world *w, const struct step_seq *e) {
    return oracle_token(cell_at(w, e->seq->user, 0, 0, e->pos0 + e->n_rows - 1)->history);
}
