/* fuzz_json.c - bytes from outside through the prescan, the parser and every getter, by a schema-free walk.
 *
 * Besides what the sanitizers see, it checks the promises of json.h: the prescan's bound holds for the tree that is
 * built; a refused body is BAD_JSON with a message; an error about a value is printable and names a path; and what is
 * written back from the tree is JSON that reads back equal.
 */
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_words[] = {"{\"a\":",
                                  "[",
                                  "]",
                                  "}",
                                  "null",
                                  "true",
                                  "1e400",
                                  "\\u0000",
                                  "\\ud800\\udc00",
                                  "\"",
                                  "1.5",
                                  "-0",
                                  "9223372036854775807",
                                  "[[[[[[[[",
                                  "{},",
                                  "\xef\xbb\xbf",
                                  "\xc3\xa9",
                                  "\"a\":1",
                                  "0.1,",
                                  NULL};

static void check(bool ok) {
    if (!ok) abort();
}

static void check_error(const struct err *e) {
    check(e->code != ERR_NONE && e->message[0]);
    for (const char *p = e->param; *p; p++) check(*p >= ' ' && *p <= '~');
}

/* Writes a tree with strbuf; the depth is bounded by the parser. */
static void write_value(struct strbuf *b, const json_t *v) {
    const char *key;
    json_t *member;
    size_t i;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        strbuf_add_char(b, '{');
        i = 0;
        json_object_foreach((json_t *)(uintptr_t)v, key, member) {
            if (i++ > 0) strbuf_add_char(b, ',');
            strbuf_add_json_str(b, key);
            strbuf_add_char(b, ':');
            write_value(b, member);
        }
        strbuf_add_char(b, '}');
        break;
    case JSON_ARRAY:
        strbuf_add_char(b, '[');
        for (i = 0; i < json_array_size(v); i++) {
            if (i > 0) strbuf_add_char(b, ',');
            write_value(b, json_array_get(v, i));
        }
        strbuf_add_char(b, ']');
        break;
    case JSON_STRING:
        strbuf_add_json(b, json_string_value(v), json_string_length(v));
        break;
    case JSON_INTEGER:
        strbuf_add_i64(b, json_integer_value(v));
        break;
    case JSON_REAL:
        strbuf_add_double(b, json_real_value(v));
        break;
    case JSON_TRUE:
        strbuf_add_str(b, "true");
        break;
    case JSON_FALSE:
        strbuf_add_str(b, "false");
        break;
    case JSON_NULL:
        strbuf_add_str(b, "null");
        break;
    }
}

static void read_value(const struct json_at *at) {
    struct err e = {0};
    bool flag;
    int64_t n;
    double d;
    const char *s;
    size_t bytes;
    int fits = 0;
    fits += json_as_object(at, &e);
    if (!fits) check_error(&e);
    fits += json_as_array(at, 0, SIZE_MAX, &e);
    fits += json_as_bool(at, &flag, &e);
    fits += json_as_i64(at, INT64_MIN, INT64_MAX, &n, &e);
    if (!json_is_integer(at->value)) fits += json_as_double(at, -1e308, 1e308, &d, &e);
    fits += json_as_string(at, SIZE_MAX, &s, &bytes, &e);
    check(fits <= 1); /* a value has one type */
    if (!json_as_array(at, 2, 3, &e)) check_error(&e);
    if (!json_as_i64(at, -3, 3, &n, &e)) check_error(&e);
    if (!json_as_string(at, 2, &s, NULL, &e)) check_error(&e);
}

static void walk(const struct json_at *at) {
    static const char *const known[] = {"a", "messages"};
    read_value(at);
    if (json_is_array(at->value)) {
        for (size_t i = 0; i < size_min(json_count(at), 8); i++) {
            const struct json_at item = json_item(at, i);
            walk(&item);
        }
    } else if (json_is_object(at->value)) {
        struct err e;
        struct json_at member;
        const char *key;
        json_t *value;
        if (!json_only_members(at, known, ARRAY_COUNT(known), &e)) check_error(&e);
        json_object_foreach((json_t *)(uintptr_t)at->value, key, value) {
            check(json_member(at, key, &member) == !json_is_null(value));
            if (!json_is_null(value)) walk(&member);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    struct strbuf b = {0};
    json_t *doc = json_parse((const char *)data, size, NULL, &e);
    if (!doc) {
        check(e.code == ERR_BAD_JSON);
        json_add_err(&b, &e);
        json_t *reply = json_loadb(b.data, b.count, 0, NULL);
        check(reply != NULL);
        json_decref(reply);
    } else {
        const struct json_at top = json_top(doc);
        walk(&top);
        write_value(&b, doc);
        json_t *again = json_loadb(b.data, b.count, 0, NULL);
        check(again && json_equal(doc, again));
        json_decref(again);
        json_decref(doc);
    }
    strbuf_free(&b);
    return 0;
}
