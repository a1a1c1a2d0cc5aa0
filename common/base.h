/* base.h - what every module may assume: assertions, small integer helpers, time.
 *
 * Rank 0 of the include order: includes nothing of ours.
 */
#ifndef CHOIR_COMMON_BASE_H
#define CHOIR_COMMON_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Live in release builds: a broken invariant prints file, line and condition and aborts. For our own
 * bugs only; what comes from a file, a socket or a person gets a `struct err`. */
#define ASSERT(cond) ((cond) ? (void)0 : assert_fail(#cond, __FILE__, __LINE__))
_Noreturn void assert_fail(const char *cond, const char *file, int line);

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

static inline size_t size_min(size_t a, size_t b) {
    return a < b ? a : b;
}
static inline size_t size_max(size_t a, size_t b) {
    return a > b ? a : b;
}
static inline size_t round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}
static inline size_t div_up(size_t n, size_t d) {
    return (n + d - 1) / d;
}

/* Nanoseconds of CLOCK_MONOTONIC: every deadline and duration. */
uint64_t time_now_ns(void);

#endif
