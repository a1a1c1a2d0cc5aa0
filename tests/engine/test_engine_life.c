/* The life of requests at the engine's surface: ends, limits, cancellation in every state, shared prompts, rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/engine/run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const model = "tests/fixtures/models/llama3_f32";
static struct engine *g;
static int32_t prompt[200];

static struct engine_request plain(uint32_t n_prompt, uint32_t max_tokens) {
    return (struct engine_request){.prompt = prompt, .n_prompt = n_prompt, .max_tokens = max_tokens, .ignore_eos = true,
                                   .sampling = {.top_p = 1, .repetition_penalty = 1}, .n_logprobs = -1, .n_prompt_logprobs = -1};
}

/* Events until every one of n requests has ended; returns how many tokens came, and the last end of each. */
static uint32_t wait_all(uint32_t n, struct engine_event *ends) {
    uint32_t tokens = 0;
    for (uint32_t ended = 0; ended < n;) {
        struct engine_event ev[16];
        size_t got = engine_poll(g, ev, 16, -1);
        for (size_t i = 0; i < got; i++) {
            free(ev[i].logprobs);
            tokens += ev[i].kind == EVENT_TOKEN;
            if (ev[i].kind == EVENT_FINISH || ev[i].kind == EVENT_FAIL) ends[ended++] = ev[i];
        }
    }
    return tokens;
}

static void assert_nothing_held(void) {
    struct engine_stats st;
    do engine_stats_get(g, &st);
    while (!st.idle);
    assert_int_equal(st.kv_pages_used, 0);
    assert_int_equal(st.kv_pages_free + st.kv_pages_cached, st.kv_pages_total);
    assert_int_equal(st.n_running + st.n_waiting, 0);
}

static void ends_at_a_stop_id_and_not_before_min_tokens(void **state) {
    (void)state;
    struct engine_event end;
    struct err e;
    struct run_request q = {.n_prompt = 5, .max_tokens = 30, .sampling = plain(1, 1).sampling};
    memcpy(q.prompt, prompt, sizeof prompt);
    static struct run_result free_run, again;
    run_all(g, &q, &free_run, 1, NULL);
    int32_t stop = free_run.tokens[7];
    uint32_t first = 0;
    while (free_run.tokens[first] != stop) first++;
    struct engine_request r = plain(5, 30);
    r.stop_ids = &stop, r.n_stop_ids = 1;
    assert_true(engine_submit(g, &r, &e));
    assert_int_equal(wait_all(1, &end), first);
    assert_int_equal(end.finish, FINISH_STOP);
    assert_int_equal(end.stop_token, stop);
    r = plain(5, 30);
    r.stop_ids = &stop, r.n_stop_ids = 1, r.min_tokens = 20;
    assert_true(engine_submit(g, &r, &e));
    assert_true(wait_all(1, &end) >= 20);
    run_all(g, &q, &again, 1, NULL);
    assert_memory_equal(&again, &free_run, sizeof again);
}

static void a_continuation_returns_the_rest_of_the_unbroken_answer(void **state) {
    (void)state;
    static struct run_result whole;
    struct run_request q = {.n_prompt = 20, .max_tokens = 40,
                            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1.2f, .presence_penalty = 0.5f, .seed = 9}};
    memcpy(q.prompt, prompt, sizeof prompt);
    run_all(g, &q, &whole, 1, NULL);
    for (uint32_t cut = 1; cut < 40; cut += 6) {
        int32_t joined[60];
        memcpy(joined, prompt, 20 * sizeof *joined);
        memcpy(joined + 20, whole.tokens, cut * sizeof *joined);
        struct engine_request r = plain(20 + cut, 40 - cut);
        struct err e;
        r.prompt = joined, r.n_prompt_output = cut, r.sampling = q.sampling;
        assert_true(engine_submit(g, &r, &e));
        uint32_t at = cut;
        for (bool ended = false; !ended;) {
            struct engine_event ev;
            if (!engine_poll(g, &ev, 1, -1)) continue;
            if (ev.kind == EVENT_TOKEN) assert_int_equal(ev.token, whole.tokens[at++]);
            ended = ev.kind == EVENT_FINISH;
        }
        assert_int_equal(at, 40);
    }
}

static void cancel_frees_everything_in_every_state(void **state) {
    (void)state;
    struct err e;
    for (int round = 0; round < 60; round++) {
        enum { N = 24 }; /* more than max_seqs: some wait, some prefill, some decode */
        struct engine_request r[N];
        struct engine_event ends[N], ev[4];
        for (int i = 0; i < N; i++) {
            r[i] = plain(1 + (uint32_t)(i * 37 + round) % 190, 60);
            assert_true(engine_submit(g, &r[i], &e));
        }
        uint32_t ended = 0;
        for (int polls = 0; polls < round % 12; polls++) {
            size_t got = engine_poll(g, ev, 4, 1);
            for (size_t i = 0; i < got; i++) ended += ev[i].kind == EVENT_FINISH;
        }
        for (int i = 0; i < N; i++) engine_cancel(g, &r[i]);
        wait_all(N - ended, ends);
        for (uint32_t i = 0; i < N - ended; i++) assert_true(ends[i].kind == EVENT_FINISH);
        for (int i = 0; i < N; i++) engine_cancel(g, &r[i]); /* of ended requests: no effect */
        assert_nothing_held();
    }
}

static void what_cannot_run_is_refused_at_once(void **state) {
    (void)state;
    struct err e;
    struct engine_request r = plain(100, 157);
    assert_false(engine_submit(g, &r, &e));
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    r = plain(0, 5);
    assert_false(engine_submit(g, &r, &e));
    int32_t bad[] = {1, -1, (int32_t)engine_info(g)->n_vocab};
    for (int i = 1; i < 3; i++) {
        r = plain(1, 5);
        r.prompt = &bad[i];
        assert_false(engine_submit(g, &r, &e));
        assert_int_equal(e.code, ERR_BAD_VALUE);
    }
    r = plain(100, UINT32_MAX - 50); /* the sum wraps in 32 bits */
    assert_false(engine_submit(g, &r, &e));
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
}

static void a_full_queue_refuses_and_a_deadline_ends(void **state) {
    (void)state;
    struct engine_options o = {.n_threads = 1, .isa = "auto", .kv_type = DT_F16, .max_seqs = 1, .max_model_len = 256, .queue_max_requests = 4};
    struct engine *own = run_engine(model, o), *shared = g;
    g = own;
    struct engine_request r[64];
    struct engine_event ends[64];
    struct err e;
    int accepted = 0, refused = 0;
    for (int i = 0; i < 64; i++) {
        r[accepted] = plain(150, 100);
        if (engine_submit(g, &r[accepted], &e)) {
            accepted++;
        } else {
            assert_int_equal(e.code, ERR_QUEUE_FULL);
            refused++;
        }
    }
    assert_true(accepted >= 4 && refused > 0);
    wait_all((uint32_t)accepted, ends);
    r[0] = plain(150, 100), r[1] = plain(150, 100);
    r[1].deadline_ns = time_now_ns(); /* has passed when it is looked at */
    assert_true(engine_submit(g, &r[0], &e) && engine_submit(g, &r[1], &e));
    assert_true(wait_all(2, ends) == 100);
    assert_true(ends[0].kind == EVENT_FAIL && ends[0].fail == ERR_DEADLINE && ends[1].kind == EVENT_FINISH);
    assert_nothing_held();
    engine_close(own);
    g = shared;
}

static void followers_share_their_leaders_prompt(void **state) {
    (void)state;
    int32_t own_prompt[130];
    for (int i = 0; i < 130; i++) own_prompt[i] = (i * 7 + 3) % 100;
    struct engine_request r[5];
    struct err e;
    for (int i = 0; i < 5; i++) {
        r[i] = plain(130, 8);
        r[i].prompt = own_prompt, r[i].leader = i ? &r[0] : NULL;
        r[i].sampling.temperature = 1, r[i].sampling.seed = (uint64_t)i;
        assert_true(engine_submit(g, &r[i], &e));
    }
    uint32_t cached = 0;
    for (int ended = 0; ended < 5;) {
        struct engine_event ev;
        if (!engine_poll(g, &ev, 1, -1)) continue;
        if (ev.kind == EVENT_STARTED && ev.request != &r[0]) cached += ev.n_cached;
        ended += ev.kind == EVENT_FINISH;
    }
    assert_int_equal(cached, 4 * 128);
    /* and they do not wait for ever for one that goes away */
    for (int i = 0; i < 5; i++) {
        own_prompt[0] = 1 + i / 5;
        assert_true(engine_submit(g, &r[i], &e));
    }
    engine_cancel(g, &r[0]);
    struct engine_event ends[5];
    wait_all(5, ends);
    assert_nothing_held();
}

static void prompt_logprobs_alone_need_no_token(void **state) {
    (void)state;
    struct engine_request r = plain(100, 0);
    struct err e;
    r.n_prompt_logprobs = 2;
    assert_true(engine_submit(g, &r, &e));
    uint32_t n = 0;
    for (bool ended = false; !ended;) {
        struct engine_event ev;
        if (!engine_poll(g, &ev, 1, -1)) continue;
        assert_int_not_equal(ev.kind, EVENT_TOKEN);
        if (ev.kind == EVENT_PROMPT_LOGPROBS) n += ev.n;
        free(ev.logprobs);
        ended = ev.kind == EVENT_FINISH;
    }
    assert_int_equal(n, 99);
}

static void rest_costs_no_processor_time(void **state) {
    (void)state;
    struct engine_event end;
    struct err e;
    struct engine_request r = plain(10, 10);
    assert_true(engine_submit(g, &r, &e));
    wait_all(1, &end);
    usleep(50000); /* threads finish their spin */
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    usleep(500000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    double used = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
    assert_true(used < 0.005); /* under 1 % of a processor: nothing polls */
}

static int open_engine(void **state) {
    (void)state;
    for (int i = 0; i < 200; i++) prompt[i] = (i * 31 + 5) % 256;
    struct engine_options o = {.n_threads = 2, .isa = "auto", .kv_type = DT_F16, .prefix_cache = true, .max_seqs = 8,
                               .max_batch_tokens = 64, .max_model_len = 256};
    g = run_engine(model, o);
    return 0;
}
static int close_engine(void **state) {
    (void)state;
    struct engine_request r[3] = {plain(50, 100), plain(60, 100), plain(70, 100)}; /* in flight when it closes */
    struct err e;
    for (int i = 0; i < 3; i++) engine_submit(g, &r[i], &e);
    engine_close(g);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_at_a_stop_id_and_not_before_min_tokens),
        cmocka_unit_test(a_continuation_returns_the_rest_of_the_unbroken_answer),
        cmocka_unit_test(cancel_frees_everything_in_every_state),
        cmocka_unit_test(what_cannot_run_is_refused_at_once),
        cmocka_unit_test(a_full_queue_refuses_and_a_deadline_ends),
        cmocka_unit_test(followers_share_their_leaders_prompt),
        cmocka_unit_test(prompt_logprobs_alone_need_no_token),
        cmocka_unit_test(rest_costs_no_processor_time),
    };
    return cmocka_run_group_tests(tests, open_engine, close_engine);
}
