/* pattern.c - pre-tokenizing by a regular expression from tokenizer.json, with PCRE2.
 *
 * The patterns are written for Oniguruma. What means the same in PCRE2 is passed on, \s and \S are spelled out
 * (PCRE2's \s has U+180E), \uXXXX is rewritten, anything else is refused by name when the tokenizer is opened.
 *
 * Hostile text against a backtracking matcher: an attempt sees a small window of the text and runs under a small
 * match limit. Where PCRE2 wants to look behind the window's end (a "partial match") or uses up the limit, the attempt
 * is made again with more, which is charged to an account in proportion to the text. Once that is used up (no pattern
 * in use does it), the rest of the text is one pre-token: defined, and linear.
 *
 * The compiled pattern is immutable and shared; match data belong to one encode.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/text_int.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define SPACES "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

enum {
    PATTERN_BYTES_MAX = 8192,
    WINDOW_FIRST = 512, /* bytes that a first attempt sees: words need a few dozen */
    WINDOW_FACTOR = 8,  /* between attempts */
    LIMIT_FIRST = 128,  /* match limit of a first attempt */
    LIMIT_FACTOR = 16,
    ACCOUNT_PER_BYTE = 128, /* bytes and match steps that second attempts may take for each byte of text */
    ACCOUNT_FIRST = 1000000,
};

struct pattern {
    pcre2_code *code;
};

/* ---- translating ---- */

struct output {
    char bytes[8 * PATTERN_BYTES_MAX];
    size_t n;
};

static bool put(struct output *o, const char *s, size_t n) {
    if (n > sizeof o->bytes - o->n) return false;
    memcpy(o->bytes + o->n, s, n);
    o->n += n;
    return true;
}

static bool put_text(struct output *o, const char *s) { return put(o, s, strlen(s)); }

/* Copies an escape that means the same to both; 0 for one that does not (or not surely). */
static size_t translate_escape(const char *s, bool in_class, struct output *o) {
    char c = s[1];
    if (c == 's') return put_text(o, in_class ? SPACES : "[" SPACES "]") ? 2 : 0;
    if (c == 'S' && !in_class) return put_text(o, "[^" SPACES "]") ? 2 : 0;
    if (c == 'u') {
        if (strspn(s + 2, "0123456789abcdefABCDEF") < 4) return 0;
        return put_text(o, "\\x{") && put(o, s + 2, 4) && put_text(o, "}") ? 6 : 0;
    }
    bool sign = c > 0 && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ", c) != NULL;
    bool same = sign || (c != 0 && strchr("pPdDrntfx", c) != NULL);
    return same && put(o, s, 2) ? 2 : 0;
}

static bool translate(const char *regex, struct output *o, struct err *e) {
    bool in_class = false;
    for (const char *s = regex; *s;) {
        if (*s == '\\') {
            size_t n = translate_escape(s, in_class, o);
            bool printable = s[1] > ' ' && s[1] < 127;
            if (n == 0) return err_set(e, ERR_LOAD, "Tokenizer: its regular expression has \\%c, which is not supported.", printable ? s[1] : '?');
            s += n;
            continue;
        }
        if (in_class && (*s == '[' || (*s == '&' && s[1] == '&'))) {
            return err_set(e, ERR_LOAD, "Tokenizer: its regular expression has a set operation, which is not supported.");
        }
        if (*s == '[') {
            in_class = true;
            size_t n = s[1] == '^' ? 2 : 1;
            if (s[n] == ']') return err_set(e, ERR_LOAD, "Tokenizer: its regular expression has an empty set.");
            if (!put(o, s, n)) return err_set(e, ERR_LOAD, "Tokenizer: its regular expression is too long.");
            s += n;
            continue;
        }
        if (*s == ']') in_class = false;
        if (!put(o, s++, 1)) return err_set(e, ERR_LOAD, "Tokenizer: its regular expression is too long.");
    }
    return true;
}

/* ---- compiling ---- */

struct pattern *pattern_open(const char *regex, struct err *e) {
    if (strlen(regex) > PATTERN_BYTES_MAX || !utf8_valid(regex, strlen(regex))) {
        err_set(e, ERR_LOAD, "Tokenizer: its regular expression is too long or not valid UTF-8.");
        return NULL;
    }
    struct pattern *p = malloc(sizeof *p);
    struct output *o = calloc(1, sizeof *o);
    if (!p || !o) err_set(e, ERR_LOAD, "No memory for the tokenizer's regular expression.");
    bool ok = p && o && translate(regex, o, e);
    if (ok) {
        int error;
        PCRE2_SIZE at;
        p->code = pcre2_compile((PCRE2_SPTR)o->bytes, o->n, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, NULL);
        ok = p->code != NULL;
        if (!ok) err_set(e, ERR_LOAD, "Tokenizer: its regular expression does not compile (PCRE2 error %d at byte %zu).", error, (size_t)at);
    }
    free(o);
    if (!ok) {
        free(p);
        return NULL;
    }
    pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD); /* where it cannot, matching is slower and the same */
    return p;
}

void pattern_close(struct pattern *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    free(p);
}

/* ---- matching ---- */

struct scan {
    const struct pattern *p;
    const char *text;
    size_t n;
    pcre2_match_data *data;
    pcre2_match_context *context;
    uint64_t account;
};

static bool charge(struct scan *s, uint64_t cost) {
    text_work += cost;
    if (s->account < cost) return false;
    s->account -= cost;
    return true;
}

/* End of a window of about n_bytes from `at`, between characters. */
static size_t window_end(const struct scan *s, size_t at, size_t n_bytes) {
    if (n_bytes >= s->n - at) return s->n;
    size_t end = at + n_bytes;
    while (((uint8_t)s->text[end] & 0xc0) == 0x80) end--;
    return end;
}

/* Next match at or after `at`: true with [*start, *end). False: none, or the account is used up. */
static bool scan_next(struct scan *s, size_t at, size_t *start, size_t *end) {
    size_t window = WINDOW_FIRST;
    uint64_t limit = LIMIT_FIRST;
    for (;;) {
        size_t seen = window_end(s, at, window);
        uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | (seen < s->n ? PCRE2_PARTIAL_HARD : 0);
        pcre2_set_match_limit(s->context, (uint32_t)(limit < UINT32_MAX ? limit : UINT32_MAX));
        int rc = pcre2_match(s->p->code, (PCRE2_SPTR)s->text, seen, at, options, s->data, s->context);
        text_work++;
        if (rc == PCRE2_ERROR_PARTIAL) {
            window *= WINDOW_FACTOR;
            if (!charge(s, size_min(window, s->n - at))) return false;
        } else if (rc == PCRE2_ERROR_MATCHLIMIT) {
            limit *= LIMIT_FACTOR;
            if (!charge(s, limit)) return false;
        } else if (rc == PCRE2_ERROR_NOMATCH && seen < s->n) {
            at = seen;
        } else {
            if (rc < 0) return false; /* no match, or a stack limit */
            const PCRE2_SIZE *v = pcre2_get_ovector_pointer(s->data);
            *start = v[0];
            *end = v[1];
            return true;
        }
    }
}

static bool scan_all(struct encoder *c, struct scan *s) {
    size_t at = 0, start, end;
    while (at < s->n && scan_next(s, at, &start, &end)) {
        if (start < at || end <= start) break; /* \K or a look-behind's oddities: the rest is one pre-token */
        if (start > at && !bpe_encode_word(c, s->text + at, start - at)) return false;
        if (!bpe_encode_word(c, s->text + start, end - start)) return false;
        at = end;
    }
    return at == s->n || bpe_encode_word(c, s->text + at, s->n - at);
}

bool pattern_encode(struct encoder *c, const struct pattern *p, const char *text, size_t n) {
    struct scan s = {.p = p, .text = text, .n = n, .account = (uint64_t)n * ACCOUNT_PER_BYTE + ACCOUNT_FIRST};
    s.data = pcre2_match_data_create_from_pattern(p->code, NULL);
    s.context = pcre2_match_context_create(NULL);
    bool ok = s.data && s.context ? scan_all(c, &s) : encoder_no_memory(c);
    pcre2_match_context_free(s.context);
    pcre2_match_data_free(s.data);
    return ok;
}
