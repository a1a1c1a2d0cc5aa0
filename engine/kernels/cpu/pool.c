/* pool.c - a thread pool for jobs of microseconds.
 *
 * One word, `remaining`, holds the number of items not yet handed out. A thread takes an item by decrementing it;
 * zero means that there is nothing to do, and is the value that idle workers wait on: they spin SPIN_NS, then
 * sleep in futex_wait. The caller takes items too, then waits for `done` in the same way.
 *
 * Invariants
 * 1. `job` is written only by pool_run while remaining == 0 and done == n of the last job.
 * 2. A thread reads `job` only between taking an item and adding it to `done`; by 1 the job stands still then.
 * 3. Workers add their items once, after they found nothing more to take; an item of job A that is not added
 *    yet keeps pool_run(A) from returning, so that a worker never mixes two jobs in one addition.
 */
#include "engine/kernels/cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kernels/cpu/fpmode.h"

enum {
    SPIN_NS = 20000, /* longer than the gaps between the operations of a step, shorter than a time slice */
    SPIN_NS_OVERSUBSCRIBED = 1000, /* more threads than CPUs: the one we wait for may need this CPU */
    SPINS_PER_CLOCK = 32,
};

struct job {
    void (*fn)(void *arg, uint32_t item);
    void *arg;
    uint32_t n;
};

struct pool {
    /* Items not handed out. Stored by the caller (release) after `job`; taken by RMW (acquire). */
    _Alignas(64) _Atomic uint32_t remaining;
    /* Items finished. Added to (release) after an item's writes; read by the caller (acquire). */
    _Alignas(64) _Atomic uint32_t done;
    /* Dekker pairs, all seq_cst: the worker counts itself in and then looks at `remaining` (in futex_wait), the
     * caller stores `remaining` and then looks at n_sleeping; `caller_sleeps` against `done` alike. */
    _Alignas(64) _Atomic uint32_t n_sleeping;
    _Atomic uint32_t caller_sleeps;
    _Atomic bool stop; /* set before the last `remaining`; ordered by it */
    _Alignas(64) struct job job;
    uint32_t n_threads; /* with the caller */
    uint64_t spin_ns;
    pthread_t workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t while_value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, while_value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Spins while *word == value, for spin_ns at most. */
static void spin_while(const struct pool *p, _Atomic uint32_t *word, uint32_t value) {
    uint64_t deadline = 0;
    for (uint32_t i = 1; atomic_load_explicit(word, memory_order_relaxed) == value; i++) {
        _mm_pause();
        if (i % SPINS_PER_CLOCK) continue;
        uint64_t now = time_now_ns();
        if (!deadline) deadline = now + p->spin_ns;
        if (now >= deadline) return;
    }
}

static bool item_take(struct pool *p, uint32_t *remaining) {
    uint32_t r = atomic_load_explicit(&p->remaining, memory_order_relaxed);
    do {
        if (r == 0) return false;
    } while (
        !atomic_compare_exchange_weak_explicit(&p->remaining, &r, r - 1, memory_order_acquire, memory_order_relaxed));
    *remaining = r;
    return true;
}

/* Takes and runs items until none is left; returns how many. */
static uint32_t items_run(struct pool *p) {
    uint32_t n = 0;
    for (uint32_t r; item_take(p, &r); n++) {
        if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return n + 1;
        p->job.fn(p->job.arg, p->job.n - r);
    }
    return n;
}

static void *worker_main(void *arg) {
    struct pool *p = arg;
    fpmode_enter();
    for (;;) {
        uint32_t r = atomic_load_explicit(&p->remaining, memory_order_relaxed);
        if (r == 0) spin_while(p, &p->remaining, 0);
        if (atomic_load_explicit(&p->remaining, memory_order_relaxed) == 0) {
            atomic_fetch_add(&p->n_sleeping, 1);
            futex_wait(&p->remaining, 0);
            atomic_fetch_sub(&p->n_sleeping, 1);
            continue;
        }
        uint32_t n = items_run(p);
        if (n == 0) continue;
        if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return NULL;
        uint32_t total = p->job.n;
        if (atomic_fetch_add(&p->done, n) + n == total && atomic_load(&p->caller_sleeps)) futex_wake(&p->done, 1);
    }
}

static void done_wait(struct pool *p, uint32_t n) {
    for (;;) {
        uint32_t done = atomic_load_explicit(&p->done, memory_order_acquire);
        if (done == n) return;
        spin_while(p, &p->done, done);
        done = atomic_load_explicit(&p->done, memory_order_relaxed);
        if (done == n) continue;
        atomic_store(&p->caller_sleeps, 1);
        done = atomic_load(&p->done);
        if (done != n) futex_wait(&p->done, done);
        atomic_store_explicit(&p->caller_sleeps, 0, memory_order_relaxed);
    }
}

static void items_publish(struct pool *p, uint32_t n) {
    atomic_store(&p->remaining, n);
    uint32_t sleeping = atomic_load(&p->n_sleeping);
    if (sleeping) futex_wake(&p->remaining, n < sleeping ? n : sleeping);
}

void pool_run(struct pool *p, uint32_t n, void (*fn)(void *arg, uint32_t item), void *arg) {
    unsigned mode = fpmode_enter();
    if (n <= 1 || p->n_threads == 1) {
        for (uint32_t i = 0; i < n; i++) fn(arg, i);
    } else {
        p->job = (struct job){.fn = fn, .arg = arg, .n = n};
        atomic_store_explicit(&p->done, 0, memory_order_relaxed);
        items_publish(p, n);
        atomic_fetch_add(&p->done, items_run(p));
        done_wait(p, n);
    }
    fpmode_leave(mode);
}

static uint32_t cpus_allowed(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : (uint32_t)n;
}

/* Workers take no signals: those belong to the program's own threads. */
static void workers_start(struct pool *p, uint32_t n_workers) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->n_threads - 1 < n_workers) {
        if (pthread_create(&p->workers[p->n_threads - 1], NULL, worker_main, p) != 0) break;
        pthread_setname_np(p->workers[p->n_threads - 1], "choir-compute");
        p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

struct pool *pool_open(uint32_t n_threads) {
    uint32_t n_cpus = cpus_allowed();
    if (n_threads == 0) n_threads = n_cpus;
    if (n_threads > POOL_THREADS_MAX) n_threads = POOL_THREADS_MAX;
    size_t bytes = round_up(sizeof(struct pool) + (n_threads - 1) * sizeof(pthread_t), 64);
    struct pool *p = aligned_alloc(64, bytes);
    if (!p) return NULL;
    memset(p, 0, bytes);
    p->spin_ns = n_threads > n_cpus ? SPIN_NS_OVERSUBSCRIBED : SPIN_NS;
    p->n_threads = 1;
    workers_start(p, n_threads - 1);
    return p;
}

void pool_close(struct pool *p) {
    if (!p) return;
    uint32_t n_workers = p->n_threads - 1;
    if (n_workers) {
        atomic_store_explicit(&p->stop, true, memory_order_relaxed);
        items_publish(p, n_workers); /* each worker takes one and leaves */
        for (uint32_t i = 0; i < n_workers; i++) pthread_join(p->workers[i], NULL);
    }
    free(p);
}

uint32_t pool_threads(const struct pool *p) {
    return p->n_threads;
}
