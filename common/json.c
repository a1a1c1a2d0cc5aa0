/* json.c - bounded parsing and strict reading of JSON (json.h).
 *
 * Design: json_prescan is the guard. It knows nothing of grammar beyond strings, brackets and separators; it only
 * has to over-estimate what jansson 2.14 allocates for the same bytes (tests/common/test_json.c measures that it
 * does), so whatever is not JSON is left for jansson to refuse.
 * Owner: no state; a document belongs to one thread.
 * Invariants: 1. nothing is allocated before the prescan has passed.  2. no recursion on input here, and jansson's
 * is bounded by depth_max.  3. a getter that returns false has written *e and left *out alone.
 */
#include "common/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Upper bounds of what jansson 2.14 takes from malloc on a 64-bit machine, with malloc's own 16 bytes. */
enum {
    COST_OBJECT = 288,   /* json_object_t, and the 8 buckets that it starts with */
    COST_ARRAY = 144,    /* json_array_t, and 8 slots */
    COST_STRING = 80,    /* json_string_t and its text, or a pair of an object; the bytes come on top */
    COST_SCALAR = 48,    /* number; true, false and null cost nothing but the slot */
    COST_SEPARATOR = 24, /* a slot of an array, which doubles by copying */
    COST_MEMBER = 64,    /* a share of the buckets, which double by copying */
    COST_BYTE = 1,       /* of a string, in the tree */
    COST_LEXER = 4,      /* times the longest string: the lexer's buffer while it doubles, and the copy */
};

static bool scalar_begins(unsigned char c) {
    return (c >= '0' && c <= '9') || c == '-' || c == 't' || c == 'f' || c == 'n';
}

/* The index after the string that begins at bytes[i] == '"' (n when it does not end). */
static size_t string_skip(const char *bytes, size_t i, size_t n) {
    for (i++; i < n; i++) {
        if (bytes[i] == '\\') {
            i++;
        } else if (bytes[i] == '"') {
            return i + 1;
        }
    }
    return n;
}

bool json_prescan(const char *bytes, size_t n, const struct json_limits *limits, uint64_t *tree_bytes, struct err *e) {
    const uint32_t depth_max = limits && limits->depth_max ? limits->depth_max : JSON_DEPTH_MAX;
    const uint64_t amplification = limits && limits->amplification ? limits->amplification : 20;
    const uint64_t slack = limits && limits->slack_bytes ? limits->slack_bytes : (uint64_t)1 << 20;
    const uint64_t budget = n * amplification + slack;
    uint64_t cost = 0, longest = 0;
    uint32_t depth = 0;
    bool in_scalar = false;
    uint64_t members = 0;
    size_t i = 0;
    while (i < n) {
        const unsigned char c = (unsigned char)bytes[i];
        if (scalar_begins(c)) {
            if (!in_scalar) cost += COST_SCALAR;
            in_scalar = true;
            i++;
            continue;
        }
        if (c == '"') {
            size_t end = string_skip(bytes, i, n);
            cost += COST_STRING + COST_BYTE * (end - i);
            longest = size_max(longest, end - i);
            in_scalar = false;
            i = end;
        } else {
            if (c == '{' || c == '[') {
                cost += c == '{' ? COST_OBJECT : COST_ARRAY;
                if (++depth > depth_max)
                    return err_set(e, ERR_BAD_JSON, "JSON is nested deeper than %u levels at byte %zu.", depth_max, i);
            } else if ((c == '}' || c == ']') && depth > 0) {
                depth--;
            } else if (c == ',') {
                cost += COST_SEPARATOR;
            } else if (c == ':') {
                cost += COST_MEMBER;
                if (limits && limits->members_max && ++members > limits->members_max)
                    return err_set(e, ERR_BAD_JSON, "JSON has more than %llu object members at byte %zu.",
                                   (unsigned long long)limits->members_max, i);
            }
            /* letters, '.', '+' go on with a scalar; all else ends it */
            if (c == ',' || c == ':' || c <= ' ' || c == '{' || c == '}' || c == '[' || c == ']') in_scalar = false;
            i++;
        }
        if (cost > budget)
            return err_set(e, ERR_BAD_JSON,
                           "JSON has too many small values for its size (the limit is passed at byte %zu).", i);
    }
    cost += COST_LEXER * longest;
    *tree_bytes = cost;
    return true;
}

json_t *json_parse(const char *bytes, size_t n, const struct json_limits *limits, struct err *e) {
    uint64_t tree_bytes;
    if (n == 0) {
        err_set(e, ERR_BAD_JSON, "The request body is empty; it must be a JSON object.");
        return NULL;
    }
    if (!json_prescan(bytes, n, limits, &tree_bytes, e)) return NULL;
    json_error_t at;
    json_t *doc = json_loadb(bytes, n, JSON_REJECT_DUPLICATES, &at);
    if (!doc)
        err_set(e, ERR_BAD_JSON, "The request body is not valid JSON: %s (line %d, byte %d).", at.text, at.line,
                at.position);
    return doc;
}

struct json_at json_top(const json_t *doc) {
    return (struct json_at){.value = doc};
}

bool json_member(const struct json_at *object, const char *key, struct json_at *out) {
    const json_t *value = json_object_get(object->value, key);
    if (!value || json_is_null(value)) return false;
    *out = (struct json_at){.value = value, .parent = object, .key = key};
    return true;
}

bool json_require(const struct json_at *object, const char *key, struct json_at *out, struct err *e) {
    if (json_member(object, key, out)) return true;
    struct json_at missing = {.parent = object, .key = key};
    return json_err(&missing, ERR_MISSING_FIELD, e, "Missing required parameter");
}

struct json_at json_item(const struct json_at *array, size_t index) {
    return (struct json_at){.value = json_array_get(array->value, index), .parent = array, .index = index};
}

size_t json_count(const struct json_at *at) {
    return json_is_array(at->value) ? json_array_size(at->value) : json_object_size(at->value);
}

/* Writes the path back to front, from the value up to the top; what does not fit is cut at the front. */
void json_path(const struct json_at *at, char *out, size_t out_bytes) {
    char part[JSON_PATH_MAX];
    size_t begin = out_bytes - 1;
    out[begin] = '\0';
    for (; at->parent; at = at->parent) {
        int n = at->key ? snprintf(part, sizeof part, "%s%s", at->parent->parent ? "." : "", at->key)
                        : snprintf(part, sizeof part, "[%zu]", at->index);
        size_t fits = size_min((size_t)n, sizeof part - 1);
        size_t copied = size_min(fits, begin);
        memcpy(out + begin - copied, part + fits - copied, copied);
        begin -= copied;
    }
    memmove(out, out + begin, out_bytes - begin);
}

bool json_err(const struct json_at *at, enum err_code code, struct err *e, const char *fmt, ...) {
    char path[JSON_PATH_MAX], text[400];
    json_path(at, path, sizeof path);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    /* A key may hold anything a client sent: only printable ASCII goes into a message or param. */
    for (char *p = path; *p; p++)
        if (*p < ' ' || *p > '~') *p = '?';
    /* The path is added where the text does not name it itself. */
    size_t n = strlen(text);
    if (n > 0 && text[n - 1] == '.') text[n - 1] = '\0';
    char quoted[JSON_PATH_MAX + 2];
    snprintf(quoted, sizeof quoted, "'%s'", path);
    if (!path[0] || strstr(text, quoted)) return err_set_param(e, code, path, "%s.", text);
    return err_set_param(e, code, path, "%s: '%s'.", text, path);
}

static const char *type_name(const json_t *v) {
    if (!v) return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

static bool wrong_type(const struct json_at *at, const char *expected, struct err *e) {
    return json_err(at, ERR_BAD_TYPE, e, "Invalid type, expected %s but got %s", expected, type_name(at->value));
}

bool json_as_object(const struct json_at *at, struct err *e) {
    return json_is_object(at->value) || wrong_type(at, "an object", e);
}

bool json_as_array(const struct json_at *at, size_t count_min, size_t count_max, struct err *e) {
    if (!json_is_array(at->value)) return wrong_type(at, "an array", e);
    size_t count = json_array_size(at->value);
    if (count < count_min || count > count_max)
        return json_err(at, ERR_BAD_VALUE, e, "Invalid length, expected %zu to %zu items but got %zu", count_min,
                        count_max, count);
    return true;
}

bool json_as_bool(const struct json_at *at, bool *out, struct err *e) {
    if (!json_is_boolean(at->value)) return wrong_type(at, "a boolean", e);
    *out = json_is_true(at->value);
    return true;
}

bool json_as_i64(const struct json_at *at, int64_t min, int64_t max, int64_t *out, struct err *e) {
    if (!json_is_integer(at->value)) return wrong_type(at, "an integer", e);
    int64_t v = json_integer_value(at->value);
    if (v < min || v > max)
        return json_err(at, ERR_BAD_VALUE, e, "Invalid value, expected an integer from %lld to %lld but got %lld",
                        (long long)min, (long long)max, (long long)v);
    *out = v;
    return true;
}

bool json_as_double(const struct json_at *at, double min, double max, double *out, struct err *e) {
    if (!json_is_number(at->value)) return wrong_type(at, "a number", e);
    double v = json_number_value(at->value);
    if (!(v >= min && v <= max))
        return json_err(at, ERR_BAD_VALUE, e, "Invalid value, expected a number from %g to %g but got %g", min, max, v);
    *out = v;
    return true;
}

bool json_as_string(const struct json_at *at, size_t bytes_max, const char **out, size_t *n_bytes, struct err *e) {
    if (!json_is_string(at->value)) return wrong_type(at, "a string", e);
    size_t n = json_string_length(at->value);
    if (n > bytes_max)
        return json_err(at, ERR_BAD_VALUE, e, "Invalid value, expected at most %zu bytes but got %zu", bytes_max, n);
    *out = json_string_value(at->value);
    if (n_bytes) *n_bytes = n;
    return true;
}

bool json_opt_bool(const struct json_at *object, const char *key, bool *out, struct err *e) {
    struct json_at at;
    return !json_member(object, key, &at) || json_as_bool(&at, out, e);
}

bool json_opt_i64(const struct json_at *object, const char *key, int64_t min, int64_t max, int64_t *out,
                  struct err *e) {
    struct json_at at;
    return !json_member(object, key, &at) || json_as_i64(&at, min, max, out, e);
}

bool json_opt_i32(const struct json_at *object, const char *key, int32_t min, int32_t max, int32_t *out,
                  struct err *e) {
    int64_t v = *out;
    if (!json_opt_i64(object, key, min, max, &v, e)) return false;
    *out = (int32_t)v;
    return true;
}

bool json_opt_u32(const struct json_at *object, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                  struct err *e) {
    int64_t v = *out;
    if (!json_opt_i64(object, key, min, max, &v, e)) return false;
    *out = (uint32_t)v;
    return true;
}

bool json_opt_double(const struct json_at *object, const char *key, double min, double max, double *out,
                     struct err *e) {
    struct json_at at;
    return !json_member(object, key, &at) || json_as_double(&at, min, max, out, e);
}

bool json_opt_float(const struct json_at *object, const char *key, float min, float max, float *out, struct err *e) {
    double v = (double)*out;
    if (!json_opt_double(object, key, (double)min, (double)max, &v, e)) return false;
    *out = (float)v;
    return true;
}

bool json_opt_string(const struct json_at *object, const char *key, size_t bytes_max, const char **out, size_t *n_bytes,
                     struct err *e) {
    struct json_at at;
    return !json_member(object, key, &at) || json_as_string(&at, bytes_max, out, n_bytes, e);
}

static bool is_one_of(const char *key, const char *const *names, size_t n_names) {
    for (size_t i = 0; i < n_names; i++)
        if (strcmp(key, names[i]) == 0) return true;
    return false;
}

bool json_only_members(const struct json_at *object, const char *const *names, size_t n_names, struct err *e) {
    /* jansson iterates non-const trees only; nothing is changed here */
    json_t *tree = (json_t *)(uintptr_t)object->value;
    const char *key;
    json_t *value;
    json_object_foreach(tree, key, value) {
        if (is_one_of(key, names, n_names)) continue;
        struct json_at at = {.value = value, .parent = object, .key = key};
        return json_err(&at, ERR_UNKNOWN_FIELD, e, "Unknown parameter");
    }
    return true;
}

void json_add_err(struct strbuf *b, const struct err *e) {
    const struct err_info *info = err_info(e->code);
    strbuf_add_str(b, "{\"error\":{\"message\":");
    strbuf_add_json_str(b, e->message[0] ? e->message : info->text);
    strbuf_add_str(b, ",\"type\":");
    strbuf_add_json_str(b, info->type);
    strbuf_add_str(b, ",\"param\":");
    strbuf_add_json_str(b, e->param[0] ? e->param : NULL);
    strbuf_add_str(b, ",\"code\":");
    strbuf_add_json_str(b, info->code);
    strbuf_add_str(b, "}}");
}
