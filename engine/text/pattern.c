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

static bool put_text(struct output *o, const char *s) {
    return put(o, s, strlen(s));
}

/* Copies an escape that means the same to both; 0 for one that does not (or not surely). */
static size_t translate_escape(const char *s, bool in_class, struct output *o) {
    char c = s[1];
    if (c == 's') return put_text(o, in_class ? SPACES : "[" SPACES "]") ? 2 : 0;
    if (c == 'S' && !in_class) return put_text(o, "[^" SPACES "]") ? 2 : 0;
    if (c == 'u') {
        if (strspn(s + 2, "0123456789abcdefABCDEF") < 4) return 0;
        return put_text(o, "\\x{") && put(o, s + 2, 4) && put_text(o, "}") ? 6 : 0;
    }
    if (c != 0 && strchr("pPx", c) && s[2] == '{') { /* whole, so that its braces are not taken for a repetition */
        const char *end = strchr(s, '}');
        size_t n = end ? (size_t)(end + 1 - s) : 0;
        return put(o, s, n) ? n : 0;
    }
    bool sign = c > 0 && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ", c) != NULL;
    bool same = sign || (c != 0 && strchr("pPdDrntfx", c) != NULL);
    return same && put(o, s, 2) ? 2 : 0;
}

/* What at s is written the same but means something else to Oniguruma (Ruby's syntax), or is an error there. */
static const char *different_at(const char *s, bool in_class) {
    if (in_class) return *s == '[' || strncmp(s, "&&", 2) == 0 ? "a set operation" : NULL;
    if (strncmp(s, "[]", 2) == 0 || strncmp(s, "[^]", 3) == 0) return "an empty set";
    if (strncmp(s, "(*", 2) == 0) return "a verb";
    if (strncmp(s, "}+", 2) == 0) return "a repeated {}"; /* possessive in PCRE2 */
    if (strncmp(s, "{,", 2) == 0) return "a {} without a minimum";
    if (strncmp(s, "(?", 2) != 0) return NULL;
    static const char *const groups[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
    for (size_t i = 0; i < ARRAY_COUNT(groups); i++) {
        if (strncmp(s, groups[i], strlen(groups[i])) == 0) return NULL;
    }
    return "a kind of group";
}

static bool translate(const char *regex, struct output *o, struct err *e) {
    bool in_class = false, fits = true;
    for (const char *s = regex; *s && fits;) {
        const char *different = *s == '\\' ? NULL : different_at(s, in_class);
        if (different) {
            return err_set(e, ERR_LOAD, "Tokenizer: its regular expression has %s, which is not supported.", different);
        }
        size_t n = 1;
        if (*s == '\\') {
            n = translate_escape(s, in_class, o);
            char c = s[1] > ' ' && s[1] < 127 ? s[1] : '?';
            if (n == 0)
                return err_set(e, ERR_LOAD, "Tokenizer: its regular expression has \\%c, which is not supported.", c);
        } else {
            if (*s == '[' || *s == ']') in_class = *s == '[';
            fits = put(o, s, n);
        }
        s += n;
    }
    return fits || err_set(e, ERR_LOAD, "Tokenizer: its regular expression is too long.");
}

/* ---- compiling ---- */

static bool compile(struct pattern *p, const struct output *o, struct err *e) {
    int error = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return err_set(e, ERR_LOAD, "No memory for the tokenizer's regular expression.");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    /* In Ruby's syntax ^ and $ are always those of lines. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    p->code = pcre2_compile((PCRE2_SPTR)o->bytes, o->n, options, &error, &at, context);
    pcre2_compile_context_free(context);
    if (p->code) return true;
    return err_set(e, ERR_LOAD, "Tokenizer: its regular expression does not compile (PCRE2 error %d at byte %zu).",
                   error, (size_t)at);
}

struct pattern *pattern_open(const char *regex, struct err *e) {
    if (strlen(regex) > PATTERN_BYTES_MAX || !utf8_valid(regex, strlen(regex))) {
        err_set(e, ERR_LOAD, "Tokenizer: its regular expression is too long or not valid UTF-8.");
        return NULL;
    }
    struct pattern *p = malloc(sizeof *p);
    struct output *o = calloc(1, sizeof *o);
    if (!p || !o) err_set(e, ERR_LOAD, "No memory for the tokenizer's regular expression.");
    bool ok = p && o && translate(regex, o, e);
    ok = ok && compile(p, o, e);
    free(o);
    if (!ok) {
        free(p);
        return NULL;
    }
    /* Where it cannot be compiled to machine code, matching is slower and the same. */
    pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
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
