/* nfc.c - Unicode normalization form C (UAX 15), linear in its input.
 *
 * Data and composition are utf8proc's; the canonical ordering is ours, because utf8proc sorts a run of combining
 * marks by exchanging neighbours, which a hostile text makes quadratic. Pure functions, any thread.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Characters below U+0300 neither decompose nor combine with what follows among themselves; their lead bytes are
 * below that of U+0300. */
bool nfc_is_trivial(const char *s, size_t n) {
    uint8_t highest = 0;
    for (size_t i = 0; i < n; i++) highest |= (uint8_t)((uint8_t)s[i] >= 0xcc);
    text_work += n;
    return highest == 0;
}

static int class_of(int32_t c) {
    return utf8proc_get_property(c)->combining_class;
}

/* Stable sort of a run of combining marks by their class: by counting. */
static bool order_long_run(int32_t *run, size_t n) {
    size_t start[257] = {0};
    int32_t *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return false;
    for (size_t i = 0; i < n; i++) start[class_of(run[i]) + 1]++;
    for (size_t i = 1; i < 257; i++) start[i] += start[i - 1];
    for (size_t i = 0; i < n; i++) sorted[start[class_of(run[i])]++] = run[i];
    memcpy(run, sorted, n * sizeof *run);
    free(sorted);
    return true;
}

static void order_short_run(int32_t *run, size_t n) {
    for (size_t i = 1; i < n; i++) {
        int32_t c = run[i];
        size_t at = i;
        for (; at > 0 && class_of(run[at - 1]) > class_of(c); at--) run[at] = run[at - 1];
        text_work += i - at;
        run[at] = c;
    }
}

static bool order_marks(int32_t *chars, size_t n) {
    enum { SHORT_RUN = 24 }; /* below it, exchanging is faster than counting */
    for (size_t at = 0; at < n;) {
        size_t end = at;
        while (end < n && class_of(chars[end]) != 0) end++;
        text_work += end - at + 1;
        if (end - at > SHORT_RUN) {
            if (!order_long_run(chars + at, end - at)) return false;
        } else {
            order_short_run(chars + at, end - at);
        }
        at = end + 1;
    }
    return true;
}

/* Canonical decomposition; at most two characters for a byte (U+01D5: three for two bytes). */
static size_t decompose(const char *s, size_t n, int32_t *chars, size_t n_max) {
    size_t n_chars = 0;
    for (size_t at = 0; at < n;) {
        uint32_t n_bytes;
        int boundary = 0;
        int32_t c = (int32_t)utf8_decode(s + at, &n_bytes);
        utf8proc_ssize_t added = utf8proc_decompose_char(c, chars + n_chars, (utf8proc_ssize_t)(n_max - n_chars),
                                                         UTF8PROC_DECOMPOSE, &boundary);
        ASSERT(added > 0 && (size_t)added <= n_max - n_chars);
        n_chars += (size_t)added;
        at += n_bytes;
    }
    text_work += n_chars;
    return n_chars;
}

char *nfc_normalize(const char *s, size_t n, size_t *n_out) {
    size_t n_max = 2 * n + 4;
    int32_t *chars = malloc(n_max * sizeof *chars);
    if (!chars) return NULL;
    size_t n_chars = decompose(s, n, chars, n_max);
    char *out = NULL;
    if (order_marks(chars, n_chars)) {
        utf8proc_ssize_t n_composed =
            utf8proc_normalize_utf32(chars, (utf8proc_ssize_t)n_chars, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        ASSERT(n_composed >= 0);
        out = malloc(4 * (size_t)n_composed + 1);
        *n_out = 0;
        for (utf8proc_ssize_t i = 0; out && i < n_composed; i++)
            *n_out += utf8_encode((uint32_t)chars[i], out + *n_out);
    }
    free(chars);
    return out;
}
