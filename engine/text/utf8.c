/* utf8.c - UTF-8: checking, repairing, decoding, and the character classes of the pre-tokenizers.
 *
 * Pure functions, any thread. The table of well-formed sequences is Unicode 16, table 3-7; an ill-formed one is
 * replaced by one U+FFFD for each maximal subpart (section 3.9, "U+FFFD Substitution of Maximal Subparts").
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>

_Thread_local uint64_t text_work;

struct range {
    uint32_t first, last;
};
#include "engine/text/unicode_ranges.inc"

/* Length by the lead byte and the range of the second byte; 0: never a lead byte. */
static uint32_t lead_length(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xbf;
    if (lead < 0xc2) return 0;
    if (lead < 0xe0) return 2;
    if (lead < 0xf0) {
        if (lead == 0xe0) *low = 0xa0;  /* no overlong forms */
        if (lead == 0xed) *high = 0x9f; /* no surrogates */
        return 3;
    }
    if (lead > 0xf4) return 0;
    if (lead == 0xf0) *low = 0x90;
    if (lead == 0xf4) *high = 0x8f; /* not above U+10FFFF */
    return 4;
}

uint32_t utf8_char_length(const char *s, size_t n, uint32_t *n_bad, bool *truncated) {
    const uint8_t *p = (const uint8_t *)s;
    uint8_t low, high;
    *truncated = false;
    *n_bad = 1;
    if (p[0] < 0x80) return 1;
    uint32_t length = lead_length(p[0], &low, &high);
    if (length == 0) return 0;
    for (uint32_t i = 1; i < length; i++) {
        *n_bad = i;
        if (i == n) {
            *truncated = true;
            return 0;
        }
        if (p[i] < low || p[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

uint32_t utf8_decode(const char *s, uint32_t *n_bytes) {
    const uint8_t *p = (const uint8_t *)s;
    if (p[0] < 0x80) {
        *n_bytes = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *n_bytes = 2;
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    }
    if (p[0] < 0xf0) {
        *n_bytes = 3;
        return (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    }
    *n_bytes = 4;
    return (p[0] & 7u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

uint32_t utf8_encode(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* First position at or after `at` that is not the start of a valid character; n if there is none. */
static size_t find_invalid(const char *s, size_t n, size_t at) {
    uint32_t n_bad;
    bool truncated;
    while (at < n) {
        uint64_t eight;
        if (n - at >= 8 && (memcpy(&eight, s + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8;
            continue;
        }
        uint32_t length = utf8_char_length(s + at, n - at, &n_bad, &truncated);
        if (length == 0) return at;
        at += length;
    }
    return n;
}

bool utf8_valid(const char *s, size_t n) {
    return find_invalid(s, n, 0) == n;
}

char *utf8_repair(const char *s, size_t n, size_t *n_out) {
    if (n > (SIZE_MAX - 1) / 3) return NULL;
    bool truncated;
    uint32_t n_bad;
    size_t n_replaced = 0, n_removed = 0;
    for (size_t at = 0; (at = find_invalid(s, n, at)) < n; at += n_bad) {
        utf8_char_length(s + at, n - at, &n_bad, &truncated);
        n_replaced++;
        n_removed += n_bad;
    }
    char *out = malloc(n - n_removed + 3 * n_replaced + 1);
    if (!out) return NULL;
    size_t from = 0, to = 0;
    while (from < n) {
        size_t end = find_invalid(s, n, from);
        memcpy(out + to, s + from, end - from);
        to += end - from;
        from = end;
        if (from == n) break;
        utf8_char_length(s + from, n - from, &n_bad, &truncated);
        memcpy(out + to, "\xef\xbf\xbd", 3);
        to += 3;
        from += n_bad;
    }
    out[to] = '\0';
    *n_out = to;
    return out;
}

static bool in_ranges(const struct range *r, size_t n, uint32_t c) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > r[middle].last) {
            low = middle + 1;
        } else if (c < r[middle].first) {
            high = middle;
        } else {
            return true;
        }
    }
    return false;
}

bool char_is_space(uint32_t c) {
    return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

enum char_class char_class_of(uint32_t c) {
    if (c < 0x80) {
        if ((c | 0x20) - 'a' < 26) return CHAR_LETTER;
        if (c - '0' < 10) return CHAR_NUMBER;
        return char_is_space(c) ? CHAR_SPACE : CHAR_OTHER;
    }
    if (in_ranges(letter_ranges, ARRAY_COUNT(letter_ranges), c)) return CHAR_LETTER;
    if (char_is_space(c)) return CHAR_SPACE;
    return in_ranges(number_ranges, ARRAY_COUNT(number_ranges), c) ? CHAR_NUMBER : CHAR_OTHER;
}
