/* fuzz_http_head.c - the strict head check against a second, independent reading of the raw bytes.
 *
 * The bytes are cut as libmicrohttpd cuts them (http_cut.h); whatever then passes must also be a head by the plain
 * grammar of RFC 9112, read from the untouched bytes: CRLF line ends, no NUL (but NUL LF: docs/HTTP.md), one Host,
 * sane framing fields.
 */
#include "http_cut.h"

#include <ctype.h>
#include <stdlib.h>

const char *const fuzz_words[] = {"GET /a HTTP/1.1\r\n",
                                  "POST / HTTP/1.0\r\n",
                                  "Host: x\r\n",
                                  "Content-Length: 5\r\n",
                                  "\r\n",
                                  "Transfer-Encoding: chunked",
                                  "\r\n\r\n",
                                  "\n",
                                  ": ",
                                  "Expect: 100-continue\r\n",
                                  "[::1]:80",
                                  " HTTP/1.1",
                                  "%00",
                                  "?a=b&c",
                                  "\t",
                                  NULL};

static void check(bool ok) {
    if (!ok) abort();
}

/* How many lines of [text, end) begin with this field name. */
static int count_fields(const char *text, const char *end, const char *name) {
    const size_t n = strlen(name);
    int count = 0;
    for (const char *p = text; (p = memmem(p, (size_t)(end - p), "\r\n", 2)); p += 2)
        if ((size_t)(end - p) > n + 2 && strncasecmp(p + 2, name, n) == 0 && p[n + 2] == ':') count++;
    return count;
}

/* The one thing that cannot be told from CRLF (docs/HTTP.md): NULs at line ends. Where there are NULs, every pair of
 * NUL, CR and LF is read as the CRLF that it will be taken for; all else must be strict even then. */
static void repair(char *raw, char *end) {
    if (!memchr(raw, '\0', (size_t)(end - raw))) return;
    for (char *p = raw; p + 1 < end; p++) {
        if (!memchr("\0\r\n", p[0], 3) || !memchr("\0\r\n", p[1], 3)) continue;
        p[0] = '\r';
        *++p = '\n';
    }
}

static void check_raw(const char *raw, const char *end, const struct http_facts *facts) {
    for (const char *p = raw; p < end; p++) {
        const unsigned char c = (unsigned char)*p;
        check(c >= ' ' || c == '\t' || c == '\r' || c == '\n');
        if (c == '\r') check(p + 1 < end && p[1] == '\n');
        if (c == '\n') check(p > raw && p[-1] == '\r');
        if (c == '\n' && p + 1 < end) check(p[1] != ' ' && p[1] != '\t' && p[1] != ':');
    }
    const int hosts = count_fields(raw, end, "Host"), lengths = count_fields(raw, end, "Content-Length"),
              codings = count_fields(raw, end, "Transfer-Encoding");
    check(hosts == 1 || (hosts == 0 && facts->http_1_0));
    check(lengths + codings <= 1 && (codings == 1) == facts->chunked);
    check(lengths == 1 || facts->content_length == 0);
    check(!(facts->chunked && facts->http_1_0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct cut c;
    static char raw[sizeof c.block];
    struct http_facts facts;
    struct err e = {0};
    if (size >= sizeof raw) return 0;
    memcpy(raw, data, size);
    if (!cut_head(&c, raw, size)) return 0;
    if (http_head_check(&c.head, &facts, &e)) {
        repair(raw, raw + c.head.block_bytes);
        check_raw(raw, raw + c.head.block_bytes, &facts);
    } else {
        check(e.code != ERR_NONE && e.message[0]);
    }
    return 0;
}
