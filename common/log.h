/* log.h - one line per event on stderr: time, level, subsystem, request id, message, key=value pairs.
 *
 *     log_info("http", req->id, "request refused", LOG_STR("path", path), LOG_U64("bytes", n));
 *
 * Text form:  2026-11-22T10:00:00.123Z INFO  http req-1f0a: request refused path="/v1/x y" bytes=12
 * JSON form (log_open with json): one object per line with the same fields.
 *
 * Any thread; a line is one write(2), so lines never mix. Values are escaped: no byte from outside can begin a new
 * line or a new field. A line that cannot be written is dropped and counted, never waited for or fatal. Lines of the
 * same subsystem and message at WARN and above beyond LOG_BURST in one second are counted and reported once the
 * second is over ("suppressed=123").
 */
#ifndef CHOIR_COMMON_LOG_H
#define CHOIR_COMMON_LOG_H

#include "common/base.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };
#define LOG_BURST 20

struct log_options {
    enum log_level level; /* the least that is written */
    bool json;
    bool color; /* text form only; log_open turns it off when stderr is no terminal */
};
void log_open(const struct log_options *o); /* before other threads start; without it: INFO, text */
bool log_level_parse(const char *name, enum log_level *out);
bool log_enabled(enum log_level level);
uint64_t log_dropped_count(void);

enum log_kind { LOG_KIND_END, LOG_KIND_STR, LOG_KIND_U64, LOG_KIND_I64, LOG_KIND_F64, LOG_KIND_BOOL };
struct log_pair {
    enum log_kind kind;
    const char *key;
    union {
        const char *s; /* NULL is written as null */
        uint64_t u;
        int64_t i;
        double f;
        bool b;
    } v;
};
#define LOG_STR(k, val) ((struct log_pair){LOG_KIND_STR, (k), {.s = (val)}})
#define LOG_U64(k, val) ((struct log_pair){LOG_KIND_U64, (k), {.u = (val)}})
#define LOG_I64(k, val) ((struct log_pair){LOG_KIND_I64, (k), {.i = (val)}})
#define LOG_F64(k, val) ((struct log_pair){LOG_KIND_F64, (k), {.f = (val)}})
#define LOG_BOOL(k, val) ((struct log_pair){LOG_KIND_BOOL, (k), {.b = (val)}})

/* subsystem and message are literals (the rate limit compares their text); request_id may be NULL. */
void log_line(enum log_level level, const char *subsystem, const char *request_id, const char *message,
              const struct log_pair *pairs);

#define LOG_PAIRS(...) ((const struct log_pair[]){__VA_ARGS__ __VA_OPT__(, ){LOG_KIND_END, NULL, {.u = 0}}})
#define LOG_AT(level, sub, id, msg, ...)                                                                               \
    do {                                                                                                               \
        if (log_enabled(level)) log_line((level), (sub), (id), (msg), LOG_PAIRS(__VA_ARGS__));                         \
    } while (0)
#define log_debug(sub, id, msg, ...) LOG_AT(LOG_DEBUG, sub, id, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_info(sub, id, msg, ...) LOG_AT(LOG_INFO, sub, id, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_warn(sub, id, msg, ...) LOG_AT(LOG_WARN, sub, id, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_error(sub, id, msg, ...) LOG_AT(LOG_ERROR, sub, id, msg __VA_OPT__(, ) __VA_ARGS__)

#endif
