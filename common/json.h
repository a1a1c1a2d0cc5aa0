/* json.h - reading JSON that comes from outside: bounded, strict, with errors that name the field.
 *
 * Parsing. json_parse first walks the bytes once without allocating: it checks the nesting depth and adds up
 * what jansson's tree will cost, and refuses before the first node is built (research: `[{},{},...]` costs jansson
 * 79 times its size). Then jansson parses with duplicates rejected. Errors are BAD_JSON with the byte offset.
 *
 * Reading. A `struct json_at` is a value with the way to it ("messages[2].content"); it lives on the stack and
 * points to its parent, so paths cost nothing until an error is written. The rules of every getter: null counts
 * as absent; an integer field takes JSON integers only (5.0, "5" and true are BAD_TYPE); a number out of range is
 * BAD_VALUE; nothing is ever converted silently. json_opt_* leave *out as it was when the member is absent, so
 * defaults are set beforehand.
 *
 * Writing is strbuf.h: replies are appended as text, no tree is built for them.
 * Any thread; a document is not shared between threads.
 */
#ifndef CHOIR_COMMON_JSON_H
#define CHOIR_COMMON_JSON_H

#include "common/err.h"
#include "common/strbuf.h"

#include <jansson.h>

#define JSON_DEPTH_MAX 64
#define JSON_PATH_MAX 128 /* bytes of a path in an error; longer ones are cut at the front */

struct json_limits {
    uint32_t depth_max;     /* 0: JSON_DEPTH_MAX */
    uint32_t amplification; /* tree bytes allowed per body byte; 0: 20 */
    uint64_t slack_bytes;   /* tree bytes allowed besides; 0: 1 MiB */
    uint64_t members_max;   /* of all objects together, each a hashed insertion; 0: no bound of its own */
};

/* The tree (free with json_decref), or NULL and *e (BAD_JSON, with the byte offset in the message). Only an
 * object or array at the top. limits may be NULL. */
json_t *json_parse(const char *bytes, size_t n, const struct json_limits *limits, struct err *e);
/* The walk before parsing on its own: an upper bound of the heap that jansson's tree would take. */
bool json_prescan(const char *bytes, size_t n, const struct json_limits *limits, uint64_t *tree_bytes, struct err *e);

struct json_at {
    const json_t *value;
    const struct json_at *parent; /* NULL at the top */
    const char *key;              /* of a member, NULL for an item */
    size_t index;                 /* of an item */
};

struct json_at json_top(const json_t *doc);
/* False when absent or null. `object` must be an object (json_as_object) and outlive *out. */
bool json_member(const struct json_at *object, const char *key, struct json_at *out);
bool json_require(const struct json_at *object, const char *key, struct json_at *out,
                  struct err *e); /* MISSING_FIELD */
struct json_at json_item(const struct json_at *array, size_t index);
size_t json_count(const struct json_at *array_or_object);

/* Type checks of a value at hand. */
bool json_as_object(const struct json_at *at, struct err *e);
bool json_as_array(const struct json_at *at, size_t count_min, size_t count_max, struct err *e);
bool json_as_bool(const struct json_at *at, bool *out, struct err *e);
bool json_as_i64(const struct json_at *at, int64_t min, int64_t max, int64_t *out, struct err *e);
bool json_as_double(const struct json_at *at, double min, double max, double *out, struct err *e);
/* UTF-8, NUL-terminated, never holds NUL; owned by the document. */
bool json_as_string(const struct json_at *at, size_t bytes_max, const char **out, size_t *n_bytes, struct err *e);

/* Members that may be absent (or null). True: read or absent; *out is untouched when absent. */
bool json_opt_bool(const struct json_at *object, const char *key, bool *out, struct err *e);
bool json_opt_i64(const struct json_at *object, const char *key, int64_t min, int64_t max, int64_t *out, struct err *e);
bool json_opt_i32(const struct json_at *object, const char *key, int32_t min, int32_t max, int32_t *out, struct err *e);
bool json_opt_u32(const struct json_at *object, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                  struct err *e);
bool json_opt_double(const struct json_at *object, const char *key, double min, double max, double *out, struct err *e);
bool json_opt_float(const struct json_at *object, const char *key, float min, float max, float *out, struct err *e);
bool json_opt_string(const struct json_at *object, const char *key, size_t bytes_max, const char **out, size_t *n_bytes,
                     struct err *e); /* n_bytes may be NULL */

/* Every member's name must be in names[n_names]; otherwise UNKNOWN_FIELD naming the first that is not (a null
 * member of an unknown name is refused as well). */
bool json_only_members(const struct json_at *object, const char *const *names, size_t n_names, struct err *e);

/* The path of a value ("" at the top), and an error about it; returns false. */
void json_path(const struct json_at *at, char *out, size_t out_bytes);
bool json_err(const struct json_at *at, enum err_code code, struct err *e, const char *fmt, ...) PRINTF_LIKE(4, 5);

/* Appends {"error":{"message","type","param","code"}} for *e: the one shape of every error reply. */
void json_add_err(struct strbuf *b, const struct err *e);

#endif
