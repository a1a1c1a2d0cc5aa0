/* test_sched.c - the scheduler's policy, one behaviour a test. The simulator (sim.c) covers their combinations. */
#include "engine/batching/batching.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { LEN = 2048 };

struct world {
    struct kv *kv;
    struct sched *s;
    uint32_t n_computed; /* all rows of all plans */
};

struct request {
    struct seq seq;
    int32_t tokens[LEN];
};

static struct world world_open(uint32_t n_pages, uint32_t budget, uint32_t max_seqs) {
    struct kv_options k = {.n_pages = n_pages,
                           .n_kinds = 1,
                           .units = {1},
                           .prefix_cache = true,
                           .max_seqs = max_seqs,
                           .max_blocks_per_seq = LEN / KV_BLOCK_TOKENS};
    struct sched_options o = {
        .max_batch_tokens = budget, .max_seqs = max_seqs, .max_model_len = LEN, .queue_max_requests = 64};
    struct err e;
    struct world w = {.kv = kv_open(&k, &e)};
    assert_non_null(w.kv);
    w.s = sched_open(&o, w.kv, &e);
    assert_non_null(w.s);
    return w;
}

static void check(struct world *w) {
    struct err e;
    if (!kv_check(w->kv, &e) || !sched_check(w->s, &e)) fail_msg("%s", e.message);
}

static struct kv_stats kv_stats(struct world *w) {
    struct kv_stats s;
    kv_stats_get(w->kv, &s);
    return s;
}

static struct sched_stats stats(struct world *w) {
    struct sched_stats s;
    sched_stats_get(w->s, &s);
    return s;
}

/* Removes whoever is left; then nothing may be held. */
static void world_close(struct world *w) {
    for (struct seq *q; (q = sched_any(w->s));) sched_remove(w->s, q);
    check(w);
    assert_int_equal(kv_stats(w).pages_used, 0);
    assert_int_equal(kv_stats(w).pages_free + kv_stats(w).pages_cached, kv_stats(w).pages_total);
    assert_int_equal(stats(w).waiting_tokens, 0);
    sched_close(w->s);
    kv_close(w->kv);
}

/* A request of n_prompt tokens counting up from `first`. */
static void request_init(struct request *r, int32_t first, uint32_t n_prompt, uint32_t max_tokens) {
    memset(r, 0, sizeof *r);
    for (uint32_t i = 0; i < n_prompt; i++) r->tokens[i] = first + (int32_t)i;
    r->seq = (struct seq){.tokens = r->tokens,
                          .n_tokens = n_prompt,
                          .n_prompt = n_prompt,
                          .max_tokens_total = n_prompt + max_tokens,
                          .user = r};
}

static void add(struct world *w, struct request *r) {
    struct err e;
    if (!sched_add(w->s, &r->seq, &e)) fail_msg("%s", e.message);
}

/* One step: plan, commit, append a token where one is sampled; those with all their tokens leave. */
static void step(struct world *w) {
    static struct step_seq copy[64];
    const struct step_plan *plan = sched_plan(w->s);
    uint32_t n = plan->n_seqs;
    assert_true(n <= 64);
    w->n_computed += plan->n_tokens;
    if (n > 0) memcpy(copy, plan->seqs, n * sizeof *copy);
    check(w);
    sched_commit(w->s);
    for (uint32_t i = 0; i < n; i++) {
        struct seq *q = copy[i].seq;
        if (!copy[i].samples) continue;
        q->tokens[q->n_tokens] = (int32_t)(q->arrival * 7 + q->n_tokens);
        q->n_tokens++;
        if (q->n_tokens == q->max_tokens_total) sched_remove(w->s, q);
    }
    check(w);
}

static void steps(struct world *w, int n) {
    while (n-- > 0) step(w);
}

/* Rows of a sequence in the plan that sched_plan returned. */
static uint32_t rows(const struct step_plan *plan, const struct request *r) {
    for (uint32_t i = 0; i < plan->n_seqs; i++)
        if (plan->seqs[i].seq == &r->seq) return plan->seqs[i].n_rows;
    return 0;
}

static void bad_options_are_refused(void **state) {
    (void)state;
    struct world w = world_open(64, 64, 4);
    struct sched_options good = {.max_batch_tokens = 8, .max_seqs = 4, .max_model_len = 64, .queue_max_requests = 1},
                         bad[7];
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) bad[i] = good;
    bad[0].max_batch_tokens = 0;
    bad[1].max_seqs = 0;
    bad[2].max_seqs = SCHED_SEQS_MAX + 1;
    bad[3].queue_max_requests = 0;
    bad[4].queue_max_requests = UINT32_MAX;
    bad[5].max_model_len = LEN + 1;
    bad[6].max_seqs = 5; /* the KV cache has room for 4 */
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct err e = {.code = ERR_NONE};
        assert_null(sched_open(&bad[i], w.kv, &e));
        assert_int_equal(e.code, ERR_LOAD);
    }
    world_close(&w);
}

static void a_long_prompt_is_computed_in_chunks_of_the_budget(void **state) {
    (void)state;
    struct world w = world_open(64, 100, 4);
    static struct request r;
    request_init(&r, 0, 250, 3);
    add(&w, &r);
    assert_int_equal(r.seq.state, SEQ_WAITING);
    const uint32_t expected[] = {100, 100, 50, 1, 1};
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        uint32_t before = r.seq.n_computed;
        const struct step_plan *plan = sched_plan(w.s);
        assert_int_equal(plan->n_seqs, 1);
        assert_int_equal(plan->seqs[0].pos0, before);
        assert_int_equal(plan->seqs[0].n_rows, expected[i]);
        assert_int_equal(plan->seqs[0].samples, i >= 2);
        assert_int_equal(r.seq.state, i <= 2 ? SEQ_PREFILL : SEQ_DECODE);
        sched_commit(w.s);
        if (i >= 2) r.tokens[r.seq.n_tokens++] = 1;
    }
    world_close(&w);
}

static void decodes_come_first_and_prefill_fills_the_rest(void **state) {
    (void)state;
    struct world w = world_open(64, 40, 8);
    static struct request d[3], p;
    for (int i = 0; i < 3; i++) {
        request_init(&d[i], 1000 * i, 5, 30);
        add(&w, &d[i]);
    }
    steps(&w, 2);
    request_init(&p, 5000, 200, 5);
    p.seq.priority = -1; /* even a prefill of better rank does not hold up decodes */
    add(&w, &p);
    const struct step_plan *plan = sched_plan(w.s);
    assert_int_equal(plan->n_seqs, 4);
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(plan->seqs[i].seq, &d[i].seq);
        assert_int_equal(plan->seqs[i].n_rows, 1);
        assert_true(plan->seqs[i].samples);
    }
    assert_int_equal(rows(plan, &p), 37);
    assert_int_equal(plan->n_tokens, 40);
    sched_commit(w.s);
    world_close(&w);
}

static void a_long_prefill_does_not_starve_short_ones(void **state) {
    (void)state;
    struct world w = world_open(128, 64, 8);
    static struct request big, small[3];
    request_init(&big, 0, 2000, 2);
    add(&w, &big);
    step(&w);
    assert_int_equal(big.seq.n_computed, 64);
    for (int i = 0; i < 3; i++) {
        request_init(&small[i], 5000 + 100 * i, 20, 2);
        add(&w, &small[i]);
    }
    for (int i = 0; i < 5; i++) {
        uint32_t before = big.seq.n_computed;
        step(&w);
        assert_true(big.seq.n_computed >= before + 28); /* its half of what the decodes left */
    }
    for (int i = 0; i < 3; i++) assert_int_equal(small[i].seq.n_tokens, 22); /* done, while big is at a fifth */
    assert_true(big.seq.n_computed < 500);
    world_close(&w);
}

static void order_is_priority_then_arrival(void **state) {
    (void)state;
    struct world w = world_open(64, 16, 1); /* one at a time */
    static struct request r[6];
    const int priority[] = {1, 0, 2, 0, -5, 1};
    const int order[] = {4, 1, 3, 0, 5, 2};
    for (int i = 0; i < 6; i++) {
        request_init(&r[i], 100 * i, 4, 1);
        r[i].seq.priority = priority[i];
        add(&w, &r[i]);
    }
    for (int i = 0; i < 6; i++) {
        const struct step_plan *plan = sched_plan(w.s);
        assert_int_equal(plan->n_seqs, 1);
        assert_ptr_equal(plan->seqs[0].seq, &r[order[i]].seq);
        sched_commit(w.s);
        sched_remove(w.s, &r[order[i]].seq);
    }
    world_close(&w);
}

/* Row 49: memory is full and every sequence needs a block. */
static void when_all_need_a_page_the_worst_is_preempted_and_ends_the_same(void **state) {
    (void)state;
    struct world w = world_open(8, 128, 4);
    static struct request r[4];
    for (int i = 0; i < 4; i++) {
        request_init(&r[i], 1000 * i, 31, 60); /* 4 x 3 blocks of 8 */
        add(&w, &r[i]);
    }
    for (int n = 0; stats(&w).n_waiting + stats(&w).n_running > 0; n++) {
        assert_true(n < 4 * 60);
        step(&w);
        assert_true(r[0].seq.n_preempted == 0);
    }
    assert_true(stats(&w).preemptions > 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(r[i].seq.n_tokens, 91);
        for (uint32_t k = 31; k < 91; k++) assert_int_equal(r[i].tokens[k], r[i].seq.arrival * 7 + k);
    }
    /* Not by thrashing: beyond the 90 positions of each, recomputed blocks are few. */
    assert_true(w.n_computed < 4 * 90 + 100);
    world_close(&w);
}

static void a_preempted_sequence_returns_before_its_class(void **state) {
    (void)state;
    struct world w = world_open(5, 128, 4);
    static struct request r[3];
    request_init(&r[0], 0, 60, 40); /* grows to 4 blocks, the next to 2 */
    request_init(&r[1], 1000, 20, 40);
    request_init(&r[2], 2000, 20, 40);
    add(&w, &r[0]);
    add(&w, &r[1]);
    for (int n = 0; r[1].seq.n_preempted == 0; n++) {
        assert_true(n < 60);
        step(&w);
    }
    add(&w, &r[2]);
    while (r[1].seq.state != SEQ_NONE) {
        assert_true(r[2].seq.state == SEQ_WAITING || r[1].seq.state != SEQ_WAITING);
        step(&w);
    }
    assert_int_equal(r[1].seq.n_tokens, 60);
    world_close(&w);
}

/* Row 48: cancel in every state; the count of free pages comes back to its start. */
static void cancel_in_every_state_gives_everything_back(void **state) {
    (void)state;
    for (int when = 0; when < 6; when++) {
        struct world w = world_open(12, 50, 3);
        static struct request r, other, follower;
        request_init(&r, 0, 130, 80);
        request_init(&other, 5000, 100, 80);
        r.seq.priority = 1;
        request_init(&follower, 0, 130, 80);
        follower.seq.leader = &r.seq;
        add(&w, &r);
        add(&w, &follower);
        enum seq_state expected = SEQ_WAITING;
        if (when == 1) steps(&w, 1), expected = SEQ_PREFILL;
        if (when == 2) steps(&w, 2), expected = SEQ_PREFILL;
        if (when == 3) steps(&w, 8), expected = SEQ_DECODE;
        if (when >= 4) { /* preempted by a request of better priority */
            steps(&w, 8);
            add(&w, &other);
            for (int n = 0; r.seq.n_preempted == 0; n++) {
                assert_true(n < 100);
                step(&w);
            }
        }
        struct request *victim = when == 5 ? &follower : &r;
        if (when <= 4) assert_int_equal(victim->seq.state, expected);
        sched_remove(w.s, &victim->seq);
        assert_int_equal(victim->seq.state, SEQ_NONE);
        memset(victim, 0xee, sizeof *victim); /* nothing may refer to it any more */
        check(&w);
        for (int n = 0; n < 400 && sched_any(w.s); n++) step(&w);
        assert_null(sched_any(w.s)); /* the others end, the follower included */
        world_close(&w);
    }
}

/* Row 50: the same prefix under two salts. */
static void tenants_share_nothing(void **state) {
    (void)state;
    struct world w = world_open(64, 256, 4);
    static struct request a, b, c;
    request_init(&a, 0, 200, 2);
    request_init(&b, 0, 200, 2);
    request_init(&c, 0, 200, 2);
    a.seq.salt = c.seq.salt = 1;
    b.seq.salt = 2;
    add(&w, &a);
    steps(&w, 3);
    add(&w, &b);
    steps(&w, 3);
    add(&w, &c);
    steps(&w, 3);
    assert_int_equal(b.seq.n_cached, 0);
    assert_int_equal(c.seq.n_cached, 192);
    world_close(&w);
}

static void prompt_logprobs_compute_every_position(void **state) {
    (void)state;
    struct world w = world_open(64, 256, 4);
    static struct request a, b;
    request_init(&a, 0, 200, 2);
    request_init(&b, 0, 200, 0);
    b.seq.no_prefix_read = true;
    add(&w, &a);
    steps(&w, 1);
    add(&w, &b);
    const struct step_plan *plan = sched_plan(w.s);
    assert_int_equal(rows(plan, &b), 200);
    assert_int_equal(b.seq.n_cached, 0);
    sched_commit(w.s);
    world_close(&w);
}

static void the_queue_is_bounded_by_count(void **state) {
    (void)state;
    struct world w = world_open(64, 64, 1);
    static struct request r[66];
    for (int i = 0; i < 66; i++) request_init(&r[i], 0, 10, 5);
    add(&w, &r[65]);
    step(&w); /* one runs; 64 may wait */
    for (int i = 0; i < 64; i++) add(&w, &r[i]);
    struct err e;
    assert_false(sched_add(w.s, &r[64].seq, &e));
    assert_int_equal(e.code, ERR_QUEUE_FULL);
    assert_int_equal(err_info(e.code)->http_status, 429);
    sched_remove(w.s, &r[30].seq);
    add(&w, &r[64]);
    world_close(&w);
}

static void the_queue_is_bounded_by_tokens_but_takes_any_one_request(void **state) {
    (void)state;
    struct world w = world_open(64, 64, 1);
    struct sched_options o = {
        .max_batch_tokens = 64, .max_seqs = 1, .max_model_len = LEN, .queue_max_requests = 9, .queue_max_tokens = 100};
    struct err e;
    sched_close(w.s);
    w.s = sched_open(&o, w.kv, &e);
    static struct request r[3];
    request_init(&r[0], 0, 500, 5);
    request_init(&r[1], 0, 90, 5);
    request_init(&r[2], 0, 11, 5);
    add(&w, &r[0]); /* longer than the bound, but it waits alone */
    assert_false(sched_add(w.s, &r[2].seq, &e));
    assert_int_equal(e.code, ERR_QUEUE_FULL);
    step(&w);
    add(&w, &r[1]);
    assert_false(sched_add(w.s, &r[2].seq, &e));
    assert_int_equal(stats(&w).waiting_tokens, 90);
    r[2].seq.n_tokens = r[2].seq.n_prompt = 10;
    add(&w, &r[2]);
    world_close(&w);
}

static void what_can_never_run_is_refused(void **state) {
    (void)state;
    struct err e;
    static struct request r;
    struct world w = world_open(10, 64, 4); /* 320 positions */
    request_init(&r, 0, 100, LEN - 99);
    assert_false(sched_add(w.s, &r.seq, &e)); /* context */
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    request_init(&r, 0, 100, 222); /* 321 positions: the last token is never fed back */
    assert_false(sched_add(w.s, &r.seq, &e));
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    request_init(&r, 0, 100, 221);
    add(&w, &r);
    for (int n = 0; n < 400 && r.seq.state != SEQ_NONE; n++) step(&w); /* and it does run in exactly that memory */
    assert_int_equal(r.seq.n_tokens, 321);
    world_close(&w);

    struct kv_options k = {
        .n_pages = 3, .n_kinds = 1, .units = {1}, .window = {40}, .max_seqs = 1, .max_blocks_per_seq = 64};
    struct sched_options o = {.max_batch_tokens = 64, .max_seqs = 1, .max_model_len = LEN, .queue_max_requests = 9};
    w = (struct world){.kv = kv_open(&k, &e)}; /* a window of 40 is 3 blocks at most, however long the request */
    w.s = sched_open(&o, w.kv, &e);
    request_init(&r, 0, 1000, 500);
    add(&w, &r);
    for (int n = 0; n < 1000 && r.seq.state != SEQ_NONE; n++) step(&w);
    assert_int_equal(r.seq.n_tokens, 1500);
    world_close(&w);
}

static void followers_wait_for_the_leader_and_take_its_prompt(void **state) {
    (void)state;
    struct world w = world_open(64, 100, 8);
    static struct request r[4];
    for (int i = 0; i < 4; i++) {
        request_init(&r[i], 0, 200, 4);
        if (i > 0) r[i].seq.leader = &r[0].seq;
        add(&w, &r[i]);
    }
    steps(&w, 1);
    for (int i = 1; i < 4; i++) assert_int_equal(r[i].seq.state, SEQ_WAITING);
    assert_int_equal(stats(&w).n_waiting, 3);
    steps(&w, 20);
    for (int i = 1; i < 4; i++) assert_int_equal(r[i].seq.n_cached, 192);
    assert_int_equal(w.n_computed, 203 + 3 * (8 + 3));
    world_close(&w);
}

static void a_leader_that_leaves_frees_its_followers(void **state) {
    (void)state;
    struct world w = world_open(64, 100, 8);
    static struct request leader, f[2];
    request_init(&leader, 0, 200, 4);
    add(&w, &leader);
    for (int i = 0; i < 2; i++) {
        request_init(&f[i], 0, 200, 4);
        f[i].seq.leader = &leader.seq;
        add(&w, &f[i]);
    }
    step(&w);
    sched_remove(w.s, &leader.seq);
    memset(&leader, 0xee, sizeof leader);
    check(&w);
    steps(&w, 20);
    for (int i = 0; i < 2; i++) assert_int_equal(f[i].seq.n_tokens, 204);
    world_close(&w);
}

/* Requests that arrive together with a common prefix, without being told so. */
static void a_burst_computes_its_common_prefix_once(void **state) {
    (void)state;
    struct world w = world_open(256, 64, 16);
    static struct request r[12];
    for (int i = 0; i < 12; i++) {
        request_init(&r[i], 0, 330, 2);
        for (int k = 320; k < 330; k++) r[i].tokens[k] = 10000 * (i + 1) + k;
        add(&w, &r[i]);
    }
    for (int n = 0; n < 60 && sched_any(w.s); n++) step(&w);
    assert_null(sched_any(w.s));
    assert_int_equal(w.n_computed, 331 + 11 * 11);
    world_close(&w);
}

static void better_priority_takes_the_place_of_worse_but_never_of_its_own_class(void **state) {
    (void)state;
    struct world w = world_open(64, 64, 2);
    static struct request low[2], same, high;
    for (int i = 0; i < 2; i++) {
        request_init(&low[i], 1000 * i, 20, 50);
        add(&w, &low[i]);
    }
    steps(&w, 3);
    request_init(&same, 3000, 20, 5);
    add(&w, &same);
    steps(&w, 3);
    assert_int_equal(same.seq.state, SEQ_WAITING);
    request_init(&high, 4000, 20, 5);
    high.seq.priority = -1;
    add(&w, &high);
    step(&w);
    assert_int_equal(high.seq.state, SEQ_DECODE);
    assert_int_equal(low[0].seq.n_preempted, 0);
    assert_int_equal(low[1].seq.n_preempted, 1);
    steps(&w, 5);
    assert_int_equal(low[1].seq.state, SEQ_DECODE); /* back before `same`, which came later */
    assert_int_equal(same.seq.state, SEQ_WAITING);
    world_close(&w);
}

static void a_request_too_large_for_now_is_not_passed_by_small_ones(void **state) {
    (void)state;
    struct world w = world_open(20, 64, 8);
    static struct request first, large, small;
    request_init(&first, 0, 300, 30);
    request_init(&large, 1000, 400, 5);
    request_init(&small, 2000, 10, 5);
    add(&w, &first);
    step(&w);
    add(&w, &large);
    add(&w, &small);
    while (first.seq.state != SEQ_NONE) {
        assert_int_equal(large.seq.state, SEQ_WAITING);
        assert_int_equal(small.seq.state, SEQ_WAITING);
        step(&w);
    }
    step(&w);
    assert_int_equal(large.seq.state, SEQ_PREFILL);
    assert_int_equal(stats(&w).preemptions, 0);
    world_close(&w);
}

static void a_sequence_without_a_new_token_is_left_out(void **state) {
    (void)state;
    struct world w = world_open(16, 64, 4);
    static struct request r;
    request_init(&r, 0, 10, 0); /* only the prompt was wanted */
    add(&w, &r);
    const struct step_plan *plan = sched_plan(w.s);
    assert_true(plan->n_seqs == 1 && plan->seqs[0].samples);
    sched_commit(w.s);
    assert_int_equal(sched_plan(w.s)->n_seqs, 0);
    check(&w);
    world_close(&w);
}

static void one_token_of_budget_serves_everybody_in_turn(void **state) {
    (void)state;
    struct world w = world_open(16, 1, 4);
    static struct request r[3];
    for (int i = 0; i < 3; i++) {
        request_init(&r[i], 100 * i, 5, 5);
        add(&w, &r[i]);
    }
    int n = 0;
    for (; n < 100 && sched_any(w.s); n++) step(&w);
    assert_int_equal(n, 3 * 9);
    world_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(a_long_prompt_is_computed_in_chunks_of_the_budget),
        cmocka_unit_test(decodes_come_first_and_prefill_fills_the_rest),
        cmocka_unit_test(a_long_prefill_does_not_starve_short_ones),
        cmocka_unit_test(order_is_priority_then_arrival),
        cmocka_unit_test(when_all_need_a_page_the_worst_is_preempted_and_ends_the_same),
        cmocka_unit_test(a_preempted_sequence_returns_before_its_class),
        cmocka_unit_test(cancel_in_every_state_gives_everything_back),
        cmocka_unit_test(tenants_share_nothing),
        cmocka_unit_test(prompt_logprobs_compute_every_position),
        cmocka_unit_test(the_queue_is_bounded_by_count),
        cmocka_unit_test(the_queue_is_bounded_by_tokens_but_takes_any_one_request),
        cmocka_unit_test(what_can_never_run_is_refused),
        cmocka_unit_test(followers_wait_for_the_leader_and_take_its_prompt),
        cmocka_unit_test(a_leader_that_leaves_frees_its_followers),
        cmocka_unit_test(a_burst_computes_its_common_prefix_once),
        cmocka_unit_test(better_priority_takes_the_place_of_worse_but_never_of_its_own_class),
        cmocka_unit_test(a_request_too_large_for_now_is_not_passed_by_small_ones),
        cmocka_unit_test(a_sequence_without_a_new_token_is_left_out),
        cmocka_unit_test(one_token_of_budget_serves_everybody_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
