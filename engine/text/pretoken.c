/* pretoken.c - the pre-tokenizers of Llama 3 and Qwen by hand, one character class at a time.
 *
 * Both are this pattern, with N digits to a number (Llama 3: 3, Qwen: 1), alternatives tried in order:
 *
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)      a contraction's ending
 *   | [^\r\n\p{L}\p{N}]?\p{L}+        letters, with one character before them that is no line break or number
 *   | \p{N}{1,N}                      digits
 *   |  ?[^\s\p{L}\p{N}]+[\r\n]*       signs, with a space before and line breaks after
 *   | \s*[\r\n]+                      white space up to its last line break
 *   | \s+(?!\S)                       white space but the last character before something else
 *   | \s+
 *
 * By hand for two reasons: it cannot backtrack, and its classes are those of our table, whatever the version of the
 * regular-expression library. Tests compare it with PCRE2 running the pattern itself.
 *
 * Invariant: a run of white space is scanned at most three times (to its last line break, to its last character,
 * and that character), everything else at most twice: linear.
 */
#include "engine/text/text_int.h"

static enum char_class class_at(const char *text, size_t n, size_t at, uint32_t *c, uint32_t *n_bytes) {
    text_work++;
    if (at >= n) {
        *n_bytes = 0;
        *c = 0;
        return CHAR_SPACE;
    }
    *c = utf8_decode(text + at, n_bytes);
    return char_class_of(*c);
}

/* End of the run of one class from `at`, of at most n_chars. */
static size_t run_end(const char *text, size_t n, size_t at, enum char_class class, size_t n_chars) {
    uint32_t c, n_bytes;
    while (at < n && n_chars-- > 0 && class_at(text, n, at, &c, &n_bytes) == class) at += n_bytes;
    return at;
}

static char lower(const char *text, size_t n, size_t at) {
    if (at >= n) return 0;
    return text[at] >= 'A' && text[at] <= 'Z' ? (char)(text[at] + 32) : text[at];
}

/* Length of a contraction's ending at text[at], which is an apostrophe; 0: none. U+017F is a case of s. */
static size_t contraction_length(const char *text, size_t n, size_t at) {
    char a = lower(text, n, at + 1), b = lower(text, n, at + 2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return a == '\xc5' && b == '\xbf' ? 3 : 0;
}

static size_t space_end(const char *text, size_t n, size_t at) {
    uint32_t c, n_bytes;
    size_t last = at, after_break = at, end = at, n_chars = 0;
    while (end < n && class_at(text, n, end, &c, &n_bytes) == CHAR_SPACE) {
        last = end;
        end += n_bytes;
        n_chars++;
        if (c == '\r' || c == '\n') after_break = end;
    }
    if (after_break > at) return after_break;
    return end == n || n_chars == 1 ? end : last;
}

static size_t signs_end(const char *text, size_t n, size_t at) {
    at = run_end(text, n, at, CHAR_OTHER, SIZE_MAX);
    while (at < n && (text[at] == '\r' || text[at] == '\n')) at++;
    text_work++;
    return at;
}

size_t pretoken_end(enum pre_tokenizer pre, const char *text, size_t n, size_t at) {
    if (pre == PRE_NONE) return n;
    uint32_t c, next_c, n_bytes, next_n;
    enum char_class class = class_at(text, n, at, &c, &n_bytes);
    if (c == '\'') {
        size_t length = contraction_length(text, n, at);
        if (length > 0) return at + length;
    }
    if (class == CHAR_LETTER) return run_end(text, n, at, CHAR_LETTER, SIZE_MAX);
    if (class == CHAR_NUMBER) return run_end(text, n, at, CHAR_NUMBER, pre == PRE_LLAMA3 ? 3 : 1);
    enum char_class next = class_at(text, n, at + n_bytes, &next_c, &next_n);
    if (next == CHAR_LETTER && c != '\r' && c != '\n') return run_end(text, n, at + n_bytes, CHAR_LETTER, SIZE_MAX);
    if (class == CHAR_OTHER) return signs_end(text, n, at);
    if (c == ' ' && next == CHAR_OTHER) return signs_end(text, n, at + 1);
    return space_end(text, n, at);
}
