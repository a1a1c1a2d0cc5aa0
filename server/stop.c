/* stop.c - finds stop strings in streamed text; see stop.h for the rule.
 *
 * Invariants
 * 1. matched[s] is the length of the longest proper prefix of string s that is a suffix of everything fed.
 * 2. matched[s] < strings[s].n between calls: after a full match it is the border of that match.
 * 3. Strings are whole UTF-8 and UTF-8 synchronizes itself, so a match begins and ends between characters.
 */
#include "server/stop.h"

void stop_set_init(struct stop_set *set) {
    for (uint32_t s = 0; s < set->n_strings; s++) {
        struct stop_string *str = &set->strings[s];
        ASSERT(str->n >= 1 && str->n <= STOP_BYTES_MAX);
        str->border[0] = 0;
        uint16_t k = 0;
        for (uint32_t i = 1; i < str->n; i++) {
            while (k > 0 && str->text[i] != str->text[k]) k = str->border[k - 1];
            if (str->text[i] == str->text[k]) k++;
            str->border[i] = k;
        }
    }
}

/* True when the string is complete with this byte; *matched is then its longest border. */
static bool string_step(const struct stop_string *str, uint16_t *matched, char c) {
    uint16_t k = *matched;
    while (k > 0 && str->text[k] != c) k = str->border[k - 1];
    if (str->text[k] == c) k++;
    bool full = k == str->n;
    *matched = full ? str->border[k - 1] : k;
    return full;
}

struct stop_hit stop_scan_feed(struct stop_scan *scan, const struct stop_set *set, const char *text, size_t n,
                               bool armed) {
    if (set->n_strings == 0) return (struct stop_hit){.index = -1, .n_kept = n};
    for (size_t i = 0; i < n; i++) {
        int best = -1;
        for (uint32_t s = 0; s < set->n_strings; s++) {
            bool full = string_step(&set->strings[s], &scan->matched[s], text[i]);
            if (full && (best < 0 || set->strings[s].n > set->strings[best].n)) best = (int)s;
        }
        if (best >= 0 && armed) return (struct stop_hit){.index = best, .n_kept = i + 1};
    }
    return (struct stop_hit){.index = -1, .n_kept = n};
}

size_t stop_scan_held(const struct stop_scan *scan, const struct stop_set *set) {
    size_t held = 0;
    for (uint32_t s = 0; s < set->n_strings; s++) held = size_max(held, scan->matched[s]);
    return held;
}
