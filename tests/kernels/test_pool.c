/* test_pool.c - the pool runs every item exactly once, returns after the last, keeps the arithmetic mode, sleeps. */
#include "tests/kernels/kernels_test.h"

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "engine/kernels/cpu/fpmode.h"
#include "engine/kernels/cpu/pool.h"

enum { ITEMS_MAX = 3000 };

struct counts {
    _Atomic uint32_t runs[ITEMS_MAX];
    uint32_t plain[ITEMS_MAX]; /* written without atomics: the pool orders it before pool_run returns */
    uint32_t value;
};

static void count_item(void *arg, uint32_t item) {
    struct counts *c = arg;
    atomic_fetch_add_explicit(&c->runs[item], 1, memory_order_relaxed);
    c->plain[item] = c->value + item;
}

static void run_and_check(struct pool *p, struct counts *c, uint32_t n, uint32_t value) {
    memset(c, 0, sizeof *c);
    c->value = value;
    pool_run(p, n, count_item, c);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(c->runs[i], 1);
        assert_int_equal(c->plain[i], value + i);
    }
    for (uint32_t i = n; i < ITEMS_MAX; i++) assert_int_equal(c->runs[i], 0);
}

/* Jobs of every size back to back, with pauses long enough for workers to fall asleep, more threads than CPUs. */
static void test_every_item_once(void **state) {
    (void)state;
    static const uint32_t threads[] = {1, 2, 3, 8, 33};
    struct counts *c = malloc(sizeof *c);
    struct rng r = {123};
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
        struct pool *p = pool_open(threads[i]);
        assert_int_equal(pool_threads(p), threads[i]);
        for (uint32_t round = 0; round < 300; round++) {
            const uint32_t n = rng_below(&r, 4) ? rng_below(&r, 20) : rng_below(&r, ITEMS_MAX);
            run_and_check(p, c, n, round);
            if (round % 50 == 0) nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL);
        }
        pool_close(p);
    }
    free(c);
}

static void slow_item(void *arg, uint32_t item) {
    if (item % 5 == 0) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL); /* longer than anyone spins */
    count_item(arg, item);
}

/* An item that takes long makes the caller sleep; it is woken when the last one is done. */
static void test_caller_waits_for_slow_items(void **state) {
    (void)state;
    struct counts *c = malloc(sizeof *c);
    struct pool *p = pool_open(4);
    for (uint32_t round = 0; round < 50; round++) {
        memset(c, 0, sizeof *c);
        pool_run(p, 17, slow_item, c);
        for (uint32_t i = 0; i < 17; i++) assert_int_equal(c->runs[i], 1);
    }
    pool_close(p);
    free(c);
}

static void mode_item(void *arg, uint32_t item) {
    uint32_t *modes = arg;
    modes[item] = _mm_getcsr() & ~0x3fu; /* without the sticky flags */
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

/* Items flush denormals and round to nearest on every thread; the caller's own mode comes back. */
static void test_arithmetic_mode(void **state) {
    (void)state;
    uint32_t modes[64];
    const unsigned before = _mm_getcsr();
    fesetround(FE_UPWARD);
    const unsigned callers = _mm_getcsr();
    struct pool *p = pool_open(3);
    pool_run(p, 64, mode_item, modes);
    for (int i = 0; i < 64; i++) assert_int_equal(modes[i], FPMODE_KERNELS);
    pool_run(p, 1, mode_item, modes);
    assert_int_equal(modes[0], FPMODE_KERNELS);
    assert_int_equal(_mm_getcsr() & ~0x3fu, callers & ~0x3fu);
    pool_close(p);
    _mm_setcsr(before);
}

/* An idle pool uses no CPU: over a fifth of a second the process' clock moves by the spinning at its start only. */
static void test_idle_pool_sleeps(void **state) {
    (void)state;
    struct counts *c = malloc(sizeof *c);
    struct pool *p = pool_open(4);
    run_and_check(p, c, 100, 0);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* beyond the spin */
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    const double used = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    assert_true(used < 0.005); /* CPU time, not wall-clock: a spinning worker would use 0.2 s */
    run_and_check(p, c, 100, 7);
    pool_close(p);
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_caller_waits_for_slow_items),
        cmocka_unit_test(test_arithmetic_mode),
        cmocka_unit_test(test_idle_pool_sleeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
