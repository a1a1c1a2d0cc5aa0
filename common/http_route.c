/* http_route.c - which route a request means, and whether it may have it (http_int.h).
 *
 * Order of the questions, so that nothing is told to who may not know it: Host allowed, CORS preflight, key (needed
 * unless the very route that would run is open), path, method, content type. The path that is matched is the raw one
 * that was sent, byte for byte; it is the same string for the key check and the dispatch, so no spelling of a path
 * (encoded, doubled slash, absolute) can pass one and reach the other.
 * Loop thread only.
 */
#include "common/http_int.h"
#include "common/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- paths ---- */

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return (c | 0x20) - 'a' + 10;
}

/* Decodes n raw bytes (escapes are sound: http_check.c) into out; false unless it is UTF-8 without controls. */
static bool decode(const char *raw, size_t n, char *out) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (raw[i] == '%') {
            out[count++] = (char)(hex_value(raw[i + 1]) * 16 + hex_value(raw[i + 2]));
            i += 2;
        } else {
            out[count++] = raw[i];
        }
    }
    out[count] = '\0';
    for (size_t i = 0; i < count;) {
        bool valid;
        const unsigned char c = (unsigned char)out[i];
        i += utf8_length(out + i, count - i, &valid);
        if (!valid || c < ' ' || c == 0x7f) return false;
    }
    return true;
}

/* Matches the raw path; params (may be NULL: only asking) takes the decoded parts one after the other. */
static bool path_matches(const char *pattern, const char *path, struct http_reply *r) {
    size_t n_params = 0;
    char *room = r ? r->params : NULL;
    while (*pattern) {
        if (*pattern != '{') {
            if (*pattern++ != *path++) return false;
            continue;
        }
        const bool rest = pattern[1] == '*';
        const size_t n = rest ? strlen(path) : strcspn(path, "/");
        if (n == 0) return false;
        if (r) {
            ASSERT(n_params < HTTP_PARAMS_MAX);
            if (!decode(path, n, room)) return false;
            r->request.params[n_params++] = room;
            room += strlen(room) + 1;
        }
        pattern += rest ? 3 : 2;
        path += n;
    }
    return *path == '\0';
}

static bool method_matches(const char *route_method, const char *method) {
    return strcmp(route_method, method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(route_method, "GET") == 0);
}

static void find_route(struct http_reply *r, struct http_match *m) {
    const struct http_server_options *o = &r->server->o;
    for (size_t i = 0; i < o->n_routes; i++) {
        const struct http_route *route = &o->routes[i];
        if (!path_matches(route->path, r->request.path, NULL)) continue;
        m->path_known = true;
        const size_t n = strlen(m->allow);
        snprintf(m->allow + n, sizeof m->allow - n, "%s%s", n > 0 ? ", " : "", route->method);
        if (!m->route && method_matches(route->method, r->request.method)) m->route = route;
    }
    if (m->route && !path_matches(m->route->path, r->request.path, r)) *m = (struct http_match){0}; /* no clean UTF-8 */
}

/* ---- who may ---- */

static bool host_allowed(const struct http_reply *r) {
    const struct http_server_options *o = &r->server->o;
    const char *host = r->facts.host;
    if (o->n_allowed_hosts == 0) return true;
    if (!host) return false;
    const char *colon = host[0] == '[' ? strchr(strchr(host, ']'), ':') : strchr(host, ':');
    const size_t n = colon ? (size_t)(colon - host) : strlen(host);
    for (size_t i = 0; i < o->n_allowed_hosts; i++)
        if (strlen(o->allowed_hosts[i]) == n && strncasecmp(o->allowed_hosts[i], host, n) == 0) return true;
    return false;
}

const char *http_cors_origin(const struct http_reply *r) {
    const struct http_server_options *o = &r->server->o;
    const struct http_field *origin = http_field_find(&r->headers, "Origin");
    if (!origin) return NULL;
    for (size_t i = 0; i < o->n_cors_origins; i++) {
        if (strcmp(o->cors_origins[i], "*") == 0) return "*";
        if (strcmp(o->cors_origins[i], origin->value) == 0) return o->cors_origins[i];
    }
    return NULL;
}

/* The index of the key that was given, compared with every key in full; -1: none fits. */
static int find_key(const struct http_reply *r) {
    const struct http_server *s = r->server;
    const struct http_field *f = http_field_find(&r->headers, "Authorization");
    if (!f || f->value_bytes < 7 || strncasecmp(f->value, "Bearer ", 7) != 0) return -1;
    const char *key = f->value + 7;
    size_t n = f->value_bytes - 7;
    for (; n > 0 && *key == ' '; n--) key++;
    for (; n > 0 && (key[n - 1] == ' ' || key[n - 1] == '\t');) n--;
    int found = -1;
    for (size_t i = 0; i < s->o.n_api_keys; i++)
        if (secret_equal(key, n, s->o.api_keys[i], s->key_bytes[i])) found = (int)i;
    return found;
}

/* "application/json" with or without parameters. */
static bool is_json_type(const struct http_field *f) {
    static const char json[] = HTTP_JSON;
    const size_t n = sizeof json - 1;
    if (!f || strncasecmp(f->value, json, n) != 0) return false;
    const char c = f->value[n];
    return c == '\0' || c == ';' || c == ' ' || c == '\t';
}

static bool has_body_method(const char *method) {
    return strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0 || strcmp(method, "PATCH") == 0;
}

bool http_route_request(struct http_reply *r, struct http_match *m, struct err *e) {
    struct http_request *q = &r->request;
    *m = (struct http_match){0};
    find_route(r, m);
    if (!host_allowed(r)) return err_set(e, ERR_ORIGIN_REFUSED, "The Host of this request is not served here.");
    if (strcmp(q->method, "OPTIONS") == 0 && m->path_known && http_cors_origin(r) &&
        http_field_find(&r->headers, "Access-Control-Request-Method")) {
        m->preflight = true;
        return true;
    }
    q->key_index = -1;
    if (r->server->o.n_api_keys > 0 && !(m->route && (m->route->flags & HTTP_OPEN))) {
        q->key_index = find_key(r);
        if (q->key_index < 0)
            return err_set(e, ERR_BAD_KEY, "%s",
                           http_field_find(&r->headers, "Authorization")
                               ? "Incorrect API key provided."
                               : "You didn't provide an API key: send the header 'Authorization: Bearer KEY'.");
    }
    if (!m->path_known) return err_set(e, ERR_NO_ROUTE, "Unknown path. There is nothing at it on this server.");
    if (!m->route) return err_set(e, ERR_BAD_METHOD, "This path does not take that method; it takes %s.", m->allow);
    q->route = m->route->path;
    if (has_body_method(q->method) && !(m->route->flags & HTTP_ANY_TYPE) &&
        !is_json_type(http_field_find(&r->headers, "Content-Type")))
        return err_set(e, ERR_BAD_CONTENT_TYPE, "The Content-Type must be application/json.");
    return true;
}

const char *http_request_header(const struct http_request *q, const char *name) {
    const struct http_field *f = http_field_find(q->headers, name);
    return f ? f->value : NULL;
}
