/* base.c - the crash report of ASSERT, and the clock. */
#include "common/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

_Noreturn void assert_fail(const char *cond, const char *file, int line) {
    fprintf(stderr, "choir: broken invariant: %s (%s:%d). This is a bug of Choir; please report it with this line.\n",
            cond, file, line);
    abort();
}

uint64_t time_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
