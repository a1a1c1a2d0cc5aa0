/* test_stop.c - stop strings: the cut depends on the text alone, not on how it was cut into tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/stop.h"

enum { ALPHABET = 2, TEXT_MAX = 40, STOP_MAX = 6 };

static uint32_t rng_state;
static uint32_t rng(uint32_t n) {
    rng_state = rng_state * 1664525u + 1013904223u;
    return (rng_state >> 8) % n;
}

static void text_draw(char *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = (char)('a' + rng(ALPHABET));
    out[n] = '\0';
}

/* The definition, by looking at every end: earliest end, then longest. Matches that end before `armed_from` bytes do
 * not count. */
static int naive(const struct stop_set *set, const char *text, size_t n, size_t armed_from, size_t *end) {
    for (size_t e = 1; e <= n; e++) {
        int best = -1;
        for (uint32_t s = 0; s < set->n_strings && e > armed_from; s++) {
            uint32_t len = set->strings[s].n;
            if (len > e || memcmp(text + e - len, set->strings[s].text, len) != 0) continue;
            if (best < 0 || len > set->strings[best].n) best = (int)s;
        }
        *end = e;
        if (best >= 0) return best;
    }
    return -1;
}

/* The longest end of text[0..n) that is the beginning of a string, but not all of it. */
static size_t naive_held(const struct stop_set *set, const char *text, size_t n) {
    size_t held = 0;
    for (uint32_t s = 0; s < set->n_strings; s++)
        for (size_t k = 1; k < set->strings[s].n && k <= n; k++)
            if (memcmp(text + n - k, set->strings[s].text, k) == 0) held = size_max(held, k);
    return held;
}

static void random_texts_in_random_pieces(void **state) {
    (void)state;
    for (uint32_t seed = 1; seed <= 20000; seed++) {
        rng_state = seed;
        char text[TEXT_MAX + 1], strings[STOP_STRINGS_MAX][STOP_MAX + 1];
        uint16_t borders[STOP_STRINGS_MAX][STOP_MAX];
        struct stop_string list[STOP_STRINGS_MAX];
        struct stop_set set = {.strings = list, .n_strings = 1 + rng(4)};
        for (uint32_t s = 0; s < set.n_strings; s++) {
            list[s] = (struct stop_string){.text = strings[s], .n = 2 + rng(STOP_MAX - 1), .border = borders[s]};
            text_draw(strings[s], list[s].n);
        }
        stop_set_init(&set);
        size_t n = 1 + rng(TEXT_MAX), armed_from = rng(3) ? 0 : rng((uint32_t)n), end = 0, at = 0;
        text_draw(text, (uint32_t)n);
        int expected = naive(&set, text, n, armed_from, &end);
        struct stop_scan scan = {0};
        struct stop_hit hit = {.index = -1};
        while (at < n && hit.index < 0) {
            size_t limit = at < armed_from ? armed_from : n;
            size_t piece = 1 + rng((uint32_t)(limit - at));
            hit = stop_scan_feed(&scan, &set, text + at, piece, at >= armed_from);
            at += hit.n_kept;
            if (hit.index < 0) assert_int_equal(stop_scan_held(&scan, &set), naive_held(&set, text, at));
        }
        if (hit.index != expected) fail_msg("seed %u: string %d, expected %d", seed, hit.index, expected);
        if (expected >= 0) assert_int_equal(at, end);
    }
}

static void no_strings_hold_nothing(void **state) {
    (void)state;
    struct stop_set set = {0};
    struct stop_scan scan = {0};
    struct stop_hit hit = stop_scan_feed(&scan, &set, "text", 4, true);
    assert_int_equal(hit.index, -1);
    assert_int_equal(hit.n_kept, 4);
    assert_int_equal(stop_scan_held(&scan, &set), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_texts_in_random_pieces),
        cmocka_unit_test(no_strings_hold_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
