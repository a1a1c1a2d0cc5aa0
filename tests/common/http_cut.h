/* http_cut.h - a stand-in for libmicrohttpd: cuts a raw request head the way 0.9.75 does, so that the strict check can
 * be tested and fuzzed without a network. */
#ifndef CHOIR_TESTS_HTTP_CUT_H
#define CHOIR_TESTS_HTTP_CUT_H

#include "common/http_int.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* What libmicrohttpd 0.9.75 makes of a head: lines end at CRLF or LF, values at a NUL, nameless fields are dropped. */
struct cut {
    char block[4096];
    char target[4096];
    struct http_field fields[HTTP_FIELDS_MAX];
    struct http_head head;
};

static inline char *cut_line(char **at, char *end) {
    char *line = *at;
    for (char *p = line; p < end; p++) {
        if (*p != '\n') continue;
        if (p > line && p[-1] == '\r') p[-1] = '\0';
        *p = '\0';
        *at = p + 1;
        return line;
    }
    return NULL;
}

static inline bool cut_head(struct cut *c, const char *raw, size_t n) {
    char *at = c->block, *const end = c->block + n;
    memset(c, 0, sizeof *c);
    if (n >= sizeof c->block) return false;
    memcpy(c->block, raw, n);
    char *line = cut_line(&at, end);
    const char *line_end = line ? at - (at - line >= 2 && raw[at - c->block - 2] == '\r' ? 2 : 1) : NULL;
    char *target = line ? memchr(line, ' ', (size_t)(at - line)) : NULL;
    if (!target) return false;
    *target++ = '\0';
    const size_t rest = (size_t)(at - target);
    char *version = NULL;
    for (size_t i = 0; i < rest; i++)
        if (target[i] == ' ') version = target + i;
    if (!version) return false;
    *version++ = '\0';
    if (line_end - version != 8) return false; /* so long is "HTTP/1.1" */
    strcpy(c->target, target);
    char *mark = strchr(target, '?');
    if (mark) *mark = '\0';
    while ((line = cut_line(&at, end)) && *line) {
        char *colon = strchr(line, ':');
        if (!colon) return false;
        *colon++ = '\0';
        while (*colon == ' ' || *colon == '\t') colon++;
        if (*line && c->head.headers.count < HTTP_FIELDS_MAX)
            c->fields[c->head.headers.count++] = (struct http_field){line, colon, strlen(line), strlen(colon)};
    }
    if (!line) return false;
    c->head.headers.fields = c->fields;
    c->head.block = c->head.method = c->block;
    c->head.block_bytes = (size_t)(at - c->block);
    c->head.target = c->target;
    c->head.version = version;
    return true;
}

#endif
