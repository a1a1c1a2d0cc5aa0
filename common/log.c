/* log.c - lines on stderr (log.h).
 *
 * Design: a line is built on the stack of the calling thread and handed over with one write(2), which the kernel
 * keeps whole for pipes up to PIPE_BUF and for files opened for appending; a longer line loses whole pairs at its end.
 * The rate limit is a small table of (subsystem, message) pairs, hashed, each with its current second and count.
 * A reader that has stopped reading (a full pipe, a stopped terminal) must not stop the program: a line is written
 * only when poll(2) says that there is room, and is dropped and counted otherwise. A pipe has room when a page of it is
 * free, so a line fits, unless another process fills the same pipe in between. A split line counts as dropped.
 * Threads: any. `limit_lock` guards `limits`, `write_lock` keeps the room for the line that found it; the options are
 * written before threads start; the counter is atomic.
 * Invariants: 1. no control byte and no quote from a value reaches a line unescaped.  2. log_line never
 * allocates, never waits for a reader, and keeps errno.
 */
#include "common/log.h"
#include "common/strbuf.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 4000 /* below PIPE_BUF (4,096) */
#define VALUE_BYTES_MAX 1000
#define LIMITS_COUNT 64

struct limit {
    const char *subsystem, *message;
    int64_t second;
    uint32_t count;
};

static struct log_options options = {.level = LOG_INFO};
static struct limit limits[LIMITS_COUNT];
static pthread_mutex_t limit_lock = PTHREAD_MUTEX_INITIALIZER; /* guards limits */
static pthread_mutex_t write_lock = PTHREAD_MUTEX_INITIALIZER; /* from poll to write */
static _Atomic uint64_t dropped;                               /* statistics: relaxed */

static const char *const level_names[] = {"DEBUG", "INFO", "WARN", "ERROR", "OFF"};

void log_open(const struct log_options *o) {
    options = *o;
    if (options.color && !isatty(STDERR_FILENO)) options.color = false;
}

bool log_level_parse(const char *name, enum log_level *out) {
    for (int i = 0; i <= LOG_OFF; i++) {
        if (strcasecmp(name, level_names[i]) != 0) continue;
        *out = (enum log_level)i;
        return true;
    }
    return false;
}

bool log_enabled(enum log_level level) {
    return level >= options.level && level < LOG_OFF;
}

uint64_t log_dropped_count(void) {
    return atomic_load_explicit(&dropped, memory_order_relaxed);
}

/* A line under construction; `full` once something did not fit. */
struct line {
    char text[LINE_BYTES_MAX + 8];
    size_t count;
    bool full;
};

static void line_add(struct line *l, const char *s, size_t n) {
    if (l->full || n > LINE_BYTES_MAX - l->count) {
        l->full = true;
        return;
    }
    memcpy(l->text + l->count, s, n);
    l->count += n;
}

static void line_str(struct line *l, const char *s) {
    line_add(l, s, strlen(s));
}

/* Escaped as in JSON. Well-formed UTF-8 passes, but for the C1 controls, which terminals obey; other bytes become
 * U+FFFD, so that every line stays valid UTF-8. */
static void line_escaped(struct line *l, const char *s) {
    static const char hex[] = "0123456789abcdef";
    const size_t n_all = strlen(s), n = size_min(n_all, VALUE_BYTES_MAX);
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i];
        bool valid;
        const size_t length = utf8_length(s + i, n_all - i, &valid);
        const bool c1 = valid && c == 0xc2 && (unsigned char)s[i + 1] < 0xa0;
        if (c == '"' || c == '\\') {
            const char two[2] = {'\\', (char)c};
            line_add(l, two, 2);
        } else if (c < 0x20 || c == 0x7f || c1) {
            const unsigned char low = c1 ? (unsigned char)s[i + 1] : c;
            const char six[6] = {'\\', 'u', '0', '0', hex[low >> 4], hex[low & 15]};
            line_add(l, six, 6);
        } else if (!valid) {
            line_str(l, "\xef\xbf\xbd");
        } else {
            line_add(l, s + i, length);
        }
        i += length;
    }
    if (n < n_all) line_str(l, "...");
}

static void line_quoted(struct line *l, const char *s) {
    line_str(l, "\"");
    line_escaped(l, s);
    line_str(l, "\"");
}

static bool is_plain(const char *s) {
    if (!*s) return false;
    for (; *s; s++)
        if (*s <= ' ' || *s >= 0x7f || *s == '"' || *s == '\\' || *s == '=') return false;
    return true;
}

static void line_value(struct line *l, const struct log_pair *pair) {
    char number[40];
    switch (pair->kind) {
    case LOG_KIND_STR:
        if (!pair->v.s) {
            line_str(l, "null");
        } else if (!options.json && is_plain(pair->v.s)) {
            line_escaped(l, pair->v.s);
        } else {
            line_quoted(l, pair->v.s);
        }
        return;
    case LOG_KIND_U64:
        snprintf(number, sizeof number, "%" PRIu64, pair->v.u);
        break;
    case LOG_KIND_I64:
        snprintf(number, sizeof number, "%" PRId64, pair->v.i);
        break;
    case LOG_KIND_F64:
        if (isfinite(pair->v.f)) {
            snprintf(number, sizeof number, "%.6g", pair->v.f);
        } else {
            snprintf(number, sizeof number, "null");
        }
        break;
    case LOG_KIND_BOOL:
        snprintf(number, sizeof number, "%s", pair->v.b ? "true" : "false");
        break;
    case LOG_KIND_END:
        return;
    }
    line_str(l, number);
}

static void line_time(struct line *l) {
    struct timespec now;
    struct tm utc;
    char text[40];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + n, sizeof text - n, ".%03dZ", (int)(now.tv_nsec / 1000000));
    line_str(l, text);
}

static void line_head_text(struct line *l, enum log_level level, const char *subsystem, const char *id,
                           const char *message) {
    static const char *const colors[] = {"\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m"};
    char name[8];
    line_time(l);
    snprintf(name, sizeof name, " %-5s", level_names[level]);
    if (options.color) line_str(l, colors[level]);
    line_str(l, name);
    if (options.color) line_str(l, "\x1b[0m");
    line_str(l, " ");
    line_str(l, subsystem);
    if (id) {
        line_str(l, " ");
        line_escaped(l, id);
    }
    line_str(l, ": ");
    line_escaped(l, message);
}

static void line_head_json(struct line *l, enum log_level level, const char *subsystem, const char *id,
                           const char *message) {
    line_str(l, "{\"time\":\"");
    line_time(l);
    line_str(l, "\",\"level\":\"");
    line_str(l, level_names[level]);
    line_str(l, "\",\"subsystem\":");
    line_quoted(l, subsystem);
    if (id) {
        line_str(l, ",\"request_id\":");
        line_quoted(l, id);
    }
    line_str(l, ",\"message\":");
    line_quoted(l, message);
}

static void line_pair(struct line *l, const struct log_pair *pair) {
    const size_t count_before = l->count;
    line_str(l, options.json ? ",\"" : " ");
    line_escaped(l, pair->key);
    line_str(l, options.json ? "\":" : "=");
    line_value(l, pair);
    if (l->full) l->count = count_before; /* a whole pair or none: a cut line must stay readable */
}

/* The bytes written; -1: none. */
static ssize_t write_if_room(const char *bytes, size_t n) {
    ssize_t written = -1;
    pthread_mutex_lock(&write_lock);
    do {
        struct pollfd fd = {.fd = STDERR_FILENO, .events = POLLOUT};
        if (poll(&fd, 1, 0) == 0 || (fd.revents && !(fd.revents & POLLOUT))) break;
        written = write(STDERR_FILENO, bytes, n);
    } while (written < 0 && errno == EINTR);
    pthread_mutex_unlock(&write_lock);
    return written;
}

static void line_write(struct line *l) {
    if (options.json) {
        l->text[l->count++] = '}';
    } else if (l->full) {
        memcpy(l->text + l->count, " ...", 4);
        l->count += 4;
    }
    l->text[l->count++] = '\n';
    const ssize_t written = write_if_room(l->text, l->count);
    if (written != (ssize_t)l->count) atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed);
}

/* True when the line may go out; *suppressed: how many like it were held back before. */
static bool limit_pass(const char *subsystem, const char *message, uint64_t *suppressed) {
    const int64_t second = (int64_t)(time_now_ns() / 1000000000u);
    uint32_t hash = 2166136261u;
    for (const char *p = message; *p; p++) hash = (hash ^ (unsigned char)*p) * 16777619u;
    struct limit *entry = &limits[hash % LIMITS_COUNT];
    bool pass = true;
    *suppressed = 0;
    pthread_mutex_lock(&limit_lock);
    const bool same =
        entry->message && strcmp(entry->message, message) == 0 && strcmp(entry->subsystem, subsystem) == 0;
    if (same && entry->second == second) {
        pass = ++entry->count <= LOG_BURST;
    } else {
        if (same && entry->count > LOG_BURST) *suppressed = entry->count - LOG_BURST;
        *entry = (struct limit){subsystem, message, second, 1};
    }
    pthread_mutex_unlock(&limit_lock);
    return pass;
}

void log_line(enum log_level level, const char *subsystem, const char *request_id, const char *message,
              const struct log_pair *pairs) {
    const int saved_errno = errno;
    uint64_t suppressed = 0;
    struct line l;
    l.count = 0;
    l.full = false;
    if (!log_enabled(level)) return;
    if (level >= LOG_WARN && !limit_pass(subsystem, message, &suppressed)) {
        errno = saved_errno;
        return;
    }
    if (options.json) {
        line_head_json(&l, level, subsystem, request_id, message);
    } else {
        line_head_text(&l, level, subsystem, request_id, message);
    }
    for (; pairs && pairs->kind != LOG_KIND_END; pairs++) line_pair(&l, pairs);
    if (suppressed > 0) line_pair(&l, &LOG_U64("suppressed", suppressed));
    line_write(&l);
    errno = saved_errno;
}
