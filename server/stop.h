/* stop.h - stop strings in a stream of text that arrives in pieces of any size.
 *
 * The match that ends first wins; of those that end together, the longest. So where the text is cut depends on
 * the text alone, never on how it was cut into tokens. Text that may be the beginning of a match is held back.
 *
 * A `struct stop_set` is made once per request and then only read; a `struct stop_scan` belongs to one choice
 * and to the thread that feeds it. Time is linear in the text: one Knuth-Morris-Pratt automaton per string.
 */
#ifndef CHOIR_SERVER_STOP_H
#define CHOIR_SERVER_STOP_H

#include "server/limits.h"

struct stop_string {
    const char *text; /* [n], valid UTF-8 */
    uint32_t n;       /* 1..STOP_BYTES_MAX */
    uint16_t *border; /* [n]: longest proper prefix of text[0..i] that is also its suffix; filled by stop_set_init */
};

struct stop_set {
    struct stop_string *strings; /* [n_strings] */
    uint32_t n_strings;
};

/* Fills the border tables, whose memory the caller provides. */
void stop_set_init(struct stop_set *set);

struct stop_scan {
    uint16_t matched[STOP_STRINGS_MAX]; /* bytes of each string matched by the end of what was fed */
};

struct stop_hit {
    int index;     /* which string, or -1: none */
    size_t n_kept; /* bytes of `text` up to and including the match (none: all of them) */
};
/* Feeds text; when armed, stops at the first match (then the scan must not be fed again), else passes over matches. */
struct stop_hit stop_scan_feed(struct stop_scan *scan, const struct stop_set *set, const char *text, size_t n,
                               bool armed);
/* How many of the last bytes fed may be the beginning of a match. */
size_t stop_scan_held(const struct stop_scan *scan, const struct stop_set *set);

#endif
