/* strbuf.c - the growing byte string of strbuf.h.
 *
 * Design: capacity doubles from 256; every append goes through strbuf_reserve, the only place that allocates and
 * the only one that can fail. Numbers are printed with the C library and read back to find the shortest form: the
 * programs never call setlocale, so the decimal point is a point.
 * Owner: one thread at a time.
 * Invariants: 1. data is NULL or data[count] == 0 and count < capacity.  2. once failed, nothing is appended.
 */
#include "common/strbuf.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void strbuf_free(struct strbuf *b) {
    free(b->data);
    *b = (struct strbuf){0};
}

bool strbuf_reserve(struct strbuf *b, size_t n) {
    if (b->failed) return false;
    if (n < b->capacity - b->count) return true; /* invariant 1: 0 - 0 when empty */
    if (n >= STRBUF_BYTES_MAX || b->count + n + 1 > STRBUF_BYTES_MAX) {
        b->failed = true;
        return false;
    }
    size_t capacity = size_max(b->capacity * 2, 256);
    while (capacity < b->count + n + 1) capacity *= 2;
    char *data = realloc(b->data, capacity);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->capacity = capacity;
    b->data[b->count] = '\0';
    return true;
}

char *strbuf_take(struct strbuf *b, size_t *count) {
    strbuf_reserve(b, 0);
    if (b->failed) {
        strbuf_free(b);
        *count = 0;
        return NULL;
    }
    char *data = b->data;
    *count = b->count;
    *b = (struct strbuf){0};
    return data;
}

const char *strbuf_cstr(const struct strbuf *b) {
    return b->data ? b->data : "";
}

void strbuf_add(struct strbuf *b, const void *bytes, size_t n) {
    if (n == 0 || !strbuf_reserve(b, n)) return;
    memcpy(b->data + b->count, bytes, n);
    b->count += n;
    b->data[b->count] = '\0';
}

void strbuf_add_str(struct strbuf *b, const char *s) {
    strbuf_add(b, s, strlen(s));
}

void strbuf_add_char(struct strbuf *b, char c) {
    strbuf_add(b, &c, 1);
}

void strbuf_printf(struct strbuf *b, const char *fmt, ...) {
    if (!strbuf_reserve(b, 128)) return;
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(b->data + b->count, b->capacity - b->count, fmt, args);
    ASSERT(n >= 0);
    if ((size_t)n >= b->capacity - b->count) {
        b->data[b->count] = '\0';
        if (strbuf_reserve(b, (size_t)n)) {
            vsnprintf(b->data + b->count, b->capacity - b->count, fmt, again);
            b->count += (size_t)n;
        }
    } else {
        b->count += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

void strbuf_add_u64(struct strbuf *b, uint64_t v) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v > 0);
    strbuf_add(b, digits + at, sizeof digits - at);
}

void strbuf_add_i64(struct strbuf *b, int64_t v) {
    if (v < 0) strbuf_add_char(b, '-');
    strbuf_add_u64(b, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
}

size_t utf8_length(const char *text, size_t n, bool *valid) {
    const unsigned char *s = (const unsigned char *)text;
    *valid = true;
    if (s[0] < 0x80) return 1;
    *valid = false;
    size_t need;
    unsigned char low = 0x80, high = 0xbf; /* of the second byte */
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        need = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        need = 3;
        if (s[0] == 0xe0) low = 0xa0;
        if (s[0] == 0xed) high = 0x9f;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        need = 4;
        if (s[0] == 0xf0) low = 0x90;
        if (s[0] == 0xf4) high = 0x8f;
    } else {
        return 1;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= n || s[i] < low || s[i] > high) return i;
        low = 0x80;
        high = 0xbf;
    }
    *valid = true;
    return need;
}

static void add_escaped(struct strbuf *b, unsigned char c) {
    static const char hex[] = "0123456789abcdef";
    char two[2] = {'\\', 0};
    switch (c) {
    case '"':
        two[1] = '"';
        break;
    case '\\':
        two[1] = '\\';
        break;
    case '\n':
        two[1] = 'n';
        break;
    case '\r':
        two[1] = 'r';
        break;
    case '\t':
        two[1] = 't';
        break;
    default: {
        const char six[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
        strbuf_add(b, six, sizeof six);
        return;
    }
    }
    strbuf_add(b, two, 2);
}

void strbuf_add_json(struct strbuf *b, const char *s, size_t n) {
    const unsigned char *p = (const unsigned char *)s;
    strbuf_add_char(b, '"');
    size_t begin = 0, i = 0; /* [begin, i) is plain text that waits to be copied */
    while (i < n) {
        bool valid;
        if (p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\') {
            i++;
            continue;
        }
        size_t length = utf8_length(s + i, n - i, &valid);
        if (valid && p[i] >= 0x80) {
            i += length;
            continue;
        }
        strbuf_add(b, s + begin, i - begin);
        if (valid) {
            add_escaped(b, p[i]);
        } else {
            strbuf_add(b, "\xef\xbf\xbd", 3);
        }
        i += length;
        begin = i;
    }
    strbuf_add(b, s + begin, i - begin);
    strbuf_add_char(b, '"');
}

void strbuf_add_json_str(struct strbuf *b, const char *s) {
    if (s) {
        strbuf_add_json(b, s, strlen(s));
    } else {
        strbuf_add(b, "null", 4);
    }
}

/* A whole number gets ".0", so that readers with types see the same type every time. */
static void add_number(struct strbuf *b, const char *text) {
    strbuf_add_str(b, text);
    if (!strpbrk(text, ".e")) strbuf_add(b, ".0", 2);
}

void strbuf_add_double(struct strbuf *b, double v) {
    char text[40];
    if (!isfinite(v)) {
        strbuf_add(b, "null", 4);
        return;
    }
    /* 15 digits always survive the way to a normal double, 17 always bring it back; %g drops trailing zeros. */
    for (int digits = fabs(v) < DBL_MIN ? 1 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    add_number(b, text);
}

void strbuf_add_float(struct strbuf *b, float v) {
    char text[40];
    if (!isfinite(v)) {
        strbuf_add(b, "null", 4);
        return;
    }
    for (int digits = fabsf(v) < FLT_MIN ? 1 : 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    add_number(b, text);
}
