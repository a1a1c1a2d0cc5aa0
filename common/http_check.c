/* http_check.c - is this request head strictly HTTP/1.1? (http_int.h)
 *
 * libmicrohttpd 0.9.75 reads a head leniently: it drops fields without a name, cuts values at a NUL, takes a bare LF
 * for a line end, silently uses the first of two Content-Lengths. Each of these lets a front proxy and this server
 * disagree on where a request ends. What it leaves behind, though, is the whole head in one block, in which it has
 * only put NULs in place of separators: method NUL target NUL version NUL NUL, then name NUL blanks value NUL NUL
 * for every field, then NUL NUL. This check walks that block against the list of fields that the library reports:
 * they must fill it exactly, so nothing was dropped, cut, folded or ended by anything but CRLF.
 * Stateless; any thread.
 */
#include "common/http_int.h"

#include <string.h>
#include <strings.h>

static bool is_token_char(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!is_token_char((unsigned char)s[i])) return false;
    return n > 0;
}

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f');
}

static bool bad(struct err *e, const char *what) {
    return err_set(e, ERR_BAD_HTTP, "The request is not valid HTTP: %s.", what);
}

/* Origin form only: '/', visible ASCII, sound percent escapes, none of them a NUL. */
static bool check_target(const char *t, struct err *e) {
    if (strlen(t) > HTTP_TARGET_BYTES_MAX)
        return err_set(e, ERR_URI_TOO_LONG, "The request target is longer than %d bytes.", HTTP_TARGET_BYTES_MAX);
    if (t[0] != '/') return bad(e, "the target does not begin with '/'");
    for (const char *p = t; *p; p++) {
        if (*p <= ' ' || *p >= 0x7f || *p == '#' || *p == '\\') return bad(e, "the target has a forbidden character");
        if (*p != '%') continue;
        if (!is_hex(p[1]) || !is_hex(p[2])) return bad(e, "the target has a broken percent escape");
        if (p[1] == '0' && p[2] == '0') return bad(e, "the target has an escaped NUL");
    }
    return true;
}

/* Advances *at over the request line. */
static bool check_request_line(const struct http_head *h, size_t *at, struct err *e) {
    const size_t n_method = strlen(h->method), n_target = strlen(h->target), n_version = 8;
    const size_t n = n_method + 1 + n_target + 1 + n_version + 2;
    if (h->method != h->block || !is_token(h->method, n_method)) return bad(e, "the method is malformed");
    if (h->block_bytes < n + 2) return bad(e, "the request line is malformed");
    const char *version = h->block + n_method + 1 + n_target + 1;
    if (version[-1] != '\0' || h->version != version) return bad(e, "the request line is malformed");
    if (version[n_version] != '\0' || version[n_version + 1] != '\0') return bad(e, "a line does not end in CRLF");
    if (memcmp(version, "HTTP/1.", 7) != 0 || (version[7] != '1' && version[7] != '0'))
        return err_set(e, ERR_BAD_HTTP_VERSION, "This server speaks HTTP/1.1 and HTTP/1.0.");
    *at = n;
    return check_target(h->target, e);
}

/* Advances *at over one field, which must begin exactly there. */
static bool check_field(const struct http_head *h, const struct http_field *f, size_t *at, struct err *e) {
    const char *const end = h->block + h->block_bytes;
    if (f->name != h->block + *at) return bad(e, "a header line is malformed");
    if (!is_token(f->name, f->name_bytes)) return bad(e, "a header name is malformed");
    const char *p = f->name + f->name_bytes;
    if (p >= end || *p != '\0') return bad(e, "a header line is malformed");
    for (p++; p < end && (*p == ' ' || *p == '\t'); p++) {
    }
    if (f->value_bytes > 0 && f->value != p) return bad(e, "a header value is malformed");
    for (size_t i = 0; i < f->value_bytes; i++) {
        const unsigned char c = (unsigned char)f->value[i];
        if ((c < ' ' && c != '\t') || c == 0x7f) return bad(e, "a header value has a control character");
    }
    p += f->value_bytes;
    if (end - p < 4 || p[0] != '\0' || p[1] != '\0')
        return bad(e, "a header line is malformed or does not end in CRLF");
    *at = (size_t)(p + 2 - h->block);
    return true;
}

static bool check_block(const struct http_head *h, struct err *e) {
    size_t at = 0;
    if (!check_request_line(h, &at, e)) return false;
    if (h->headers.count > HTTP_FIELDS_MAX)
        return err_set(e, ERR_HEADER_TOO_BIG, "The request has more than %d header fields.", HTTP_FIELDS_MAX);
    for (size_t i = 0; i < h->headers.count; i++)
        if (!check_field(h, &h->headers.fields[i], &at, e)) return false;
    if (at + 2 != h->block_bytes || h->block[at] != '\0' || h->block[at + 1] != '\0')
        return bad(e, "the header has bytes that belong to no line");
    return true;
}

static bool is_field(const struct http_field *f, const char *name) {
    return strlen(name) == f->name_bytes && strncasecmp(f->name, name, f->name_bytes) == 0;
}

const struct http_field *http_field_find(const struct http_header_list *l, const char *name) {
    for (size_t i = 0; i < l->count; i++)
        if (is_field(&l->fields[i], name)) return &l->fields[i];
    return NULL;
}

static bool find_single(const struct http_header_list *l, const char *name, const struct http_field **out,
                        struct err *e) {
    *out = NULL;
    for (size_t i = 0; i < l->count; i++) {
        if (!is_field(&l->fields[i], name)) continue;
        if (*out) return err_set(e, ERR_BAD_HTTP, "The request is not valid HTTP: %s is there twice.", name);
        *out = &l->fields[i];
    }
    return true;
}

/* name, IPv4 or [IPv6], with :port or without: nothing that could be read as a part of a URL. */
static bool check_host(const struct http_field *f, struct err *e) {
    const char *p = f->value, *const end = p + f->value_bytes;
    size_t n = 0;
    if (p < end && *p == '[') {
        for (p++; p < end && (is_hex(*p) || *p == ':' || *p == '.'); p++) n++;
        if (p == end || *p++ != ']') return bad(e, "Host is malformed");
    } else {
        for (; p < end && ((*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') ||
                           *p == '.' || *p == '-' || *p == '_');
             p++)
            n++;
    }
    if (p < end && *p == ':') {
        const char *port = ++p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p - port > 5) return bad(e, "Host is malformed");
    }
    return (p == end && n > 0 && n <= 255) || bad(e, "Host is malformed");
}

static bool check_framing(const struct http_head *h, struct http_facts *facts, struct err *e) {
    const struct http_field *te, *cl;
    if (!find_single(&h->headers, "Transfer-Encoding", &te, e) || !find_single(&h->headers, "Content-Length", &cl, e))
        return false;
    if (te && cl) return bad(e, "it has both Transfer-Encoding and Content-Length");
    if (te) {
        if (facts->http_1_0) return bad(e, "HTTP/1.0 has no Transfer-Encoding");
        if (te->value_bytes != 7 || strncasecmp(te->value, "chunked", 7) != 0)
            return bad(e, "Transfer-Encoding is not exactly 'chunked'");
        facts->chunked = true;
    }
    if (cl) {
        uint64_t length = 0;
        if (cl->value_bytes == 0 || cl->value_bytes > 15) return bad(e, "Content-Length is malformed");
        for (size_t i = 0; i < cl->value_bytes; i++) {
            if (cl->value[i] < '0' || cl->value[i] > '9') return bad(e, "Content-Length is malformed");
            length = length * 10 + (uint64_t)(cl->value[i] - '0');
        }
        facts->content_length = length;
    }
    return true;
}

bool http_head_check(const struct http_head *h, struct http_facts *facts, struct err *e) {
    const struct http_field *host, *expect;
    *facts = (struct http_facts){0};
    if (!check_block(h, e)) return false;
    facts->http_1_0 = h->version[7] == '0';
    if (!find_single(&h->headers, "Host", &host, e) || !find_single(&h->headers, "Expect", &expect, e)) return false;
    if (!host && !facts->http_1_0) return bad(e, "Host is missing");
    if (host && !check_host(host, e)) return false;
    facts->host = host ? host->value : NULL;
    if (expect) {
        if (strcasecmp(expect->value, "100-continue") != 0)
            return err_set(e, ERR_EXPECTATION, "The only Expect that is met is 100-continue.");
        facts->expects_continue = true;
    }
    return check_framing(h, facts, e);
}
