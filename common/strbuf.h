/* strbuf.h - a growing byte string: replies, SSE events, log lines and metrics are written into one.
 *
 * Growth doubles. Memory that runs out, or a size over STRBUF_BYTES_MAX, does not abort: the buffer turns
 * `failed`, keeps what it has and ignores every later append, so that a writer checks once, at the end.
 * Not shared between threads. Zero-initialised is empty; strbuf_free makes it empty again.
 */
#ifndef CHOIR_COMMON_STRBUF_H
#define CHOIR_COMMON_STRBUF_H

#include "common/base.h"

#define STRBUF_BYTES_MAX ((size_t)1 << 30)

struct strbuf {
    char *data; /* [capacity], always NUL-terminated when not NULL */
    size_t count;
    size_t capacity;
    bool failed;
};

void strbuf_free(struct strbuf *b);
static inline void strbuf_clear(struct strbuf *b) {
    b->count = 0;
    b->failed = false;
    if (b->data) b->data[0] = '\0';
}
/* Room for n more bytes; false when there is none. */
bool strbuf_reserve(struct strbuf *b, size_t n);
/* Gives the malloc'ed bytes away (NULL when failed; never NULL otherwise) and leaves the buffer empty. */
char *strbuf_take(struct strbuf *b, size_t *count);
const char *strbuf_cstr(const struct strbuf *b); /* never NULL */

void strbuf_add(struct strbuf *b, const void *bytes, size_t n);
void strbuf_add_str(struct strbuf *b, const char *s);
void strbuf_add_char(struct strbuf *b, char c);
void strbuf_printf(struct strbuf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
void strbuf_add_u64(struct strbuf *b, uint64_t v);
void strbuf_add_i64(struct strbuf *b, int64_t v);

/* A JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD (one per maximal wrong part, as the
 * Unicode standard section 3.9 recommends), so that the output is always valid JSON. */
void strbuf_add_json(struct strbuf *b, const char *s, size_t n);
void strbuf_add_json_str(struct strbuf *b, const char *s); /* NULL: null */
/* The shortest decimal that reads back as the same double / float (at some powers of two one digit more); infinities
 * and NaN, which JSON lacks: null. */
void strbuf_add_double(struct strbuf *b, double v);
void strbuf_add_float(struct strbuf *b, float v);

/* How many of the n >= 1 bytes at s are one well-formed UTF-8 character (*valid), or, when they begin none, the
 * maximal wrong part that one U+FFFD stands for (Unicode standard, section 3.9, table 3-7). */
size_t utf8_length(const char *s, size_t n, bool *valid);

#endif
