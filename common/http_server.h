/* http_server.h - an HTTP/1.1 server for JSON APIs and event streams, over libmicrohttpd.
 *
 * What it hides: the library's traps (docs/HTTP.md has the table), request framing checks, limits and deadlines,
 * keys, CORS, error replies in OpenAI's shape, detection of clients that went away, back-pressure, drain.
 *
 * A request. The route's handler runs once, on an HTTP thread, when the complete body is there. It gets the request
 * (valid until it returns) and a reply handle, which it answers in place or keeps and lets any other thread answer:
 *
 *     static void on_chat(struct http_reply *r, const struct http_request *q, void *arg) {
 *         struct err e;
 *         struct job *job = job_new(q->body, q->body_bytes, &e);
 *         if (!job) { http_reply_err(r, &e); return; }
 *         http_reply_on_gone(r, job_cancel, job);
 *         submit(job, r);                           -- elsewhere, later, from another thread:
 *     }                                                http_reply_begin(r, 200, HTTP_SSE, HTTP_KEEPALIVE_COMMENTS);
 *                                                      http_reply_write(r, "data: ...\n\n", n);  ... http_reply_end(r);
 *
 * A handler must not block and should return within milliseconds: other connections of its thread wait.
 *
 * The handle is owned by whoever answers, and is given back by exactly one ending call: http_reply_send,
 * http_reply_err, http_reply_end or http_reply_abort. That also holds after the client has gone: writes are then
 * dropped (they return false) and the ending call frees the handle.
 *
 * on_gone runs at most once, on an HTTP thread, when the client closed its end or reset the connection, or was cut
 * because it read too slowly or the server closes. It runs with the handle locked: it must not call http_reply_*,
 * nor wait for a lock that another thread holds while calling http_reply_*. Once an ending call has returned, on_gone
 * is not running and will never run: only then free what its argument points to. (It may also run inside
 * http_reply_on_gone, when the client is gone already.)
 *
 * All http_reply_* calls on one handle come from one thread at a time; different handles are independent.
 */
#ifndef CHOIR_COMMON_HTTP_SERVER_H
#define CHOIR_COMMON_HTTP_SERVER_H

#include "common/err.h"
#include "common/strbuf.h"

#define HTTP_JSON "application/json"
#define HTTP_SSE "text/event-stream; charset=utf-8"
#define HTTP_PARAMS_MAX 4
#define HTTP_ID_MAX 64         /* our request ids: "req-" + 32 hex digits */
#define HTTP_CLIENT_ID_MAX 128 /* of a client's own X-Request-Id, echoed as X-Client-Request-Id */

struct http_server;
struct http_request {
    const char *method;
    const char *path;                    /* raw, without the query; begins with '/' */
    const char *query;                   /* raw, after '?', or NULL */
    const char *route;                   /* pattern of the route that matched */
    const char *params[HTTP_PARAMS_MAX]; /* what the pattern's {} matched, percent-decoded, valid UTF-8 */
    const char *body;                    /* [body_bytes], a NUL follows; never NULL */
    size_t body_bytes;
    const char *peer;                       /* "192.0.2.1:5000" */
    const char *id;                         /* ours, also sent as X-Request-Id */
    const char *client_id;                  /* the client's X-Request-Id if it is 1..128 visible ASCII bytes, or NULL */
    int key_index;                          /* which API key let it in; -1: none needed */
    uint64_t received_ns;                   /* when its header was complete */
    const struct http_header_list *headers; /* for http_request_header */
    struct http_server *server;             /* handlers may run before http_server_open has returned it */
};
/* The value of the first header of that name (any case), or NULL. */
const char *http_request_header(const struct http_request *q, const char *name);

struct http_reply;
typedef void http_handler(struct http_reply *r, const struct http_request *q, void *arg);

enum http_route_flags {
    HTTP_OPEN = 1,     /* needs no API key */
    HTTP_ANY_TYPE = 2, /* POST bodies need not be application/json */
    HTTP_VITAL = 4,    /* answered also when connections_max is reached: health and readiness */
    HTTP_QUIET = 8,    /* log at DEBUG, not INFO (health, metrics) */
};

/* path: literal segments, {} for one non-empty segment, {*} last for the rest ("/v1/models/{*}"). Matched on the
 * raw bytes that were sent: an encoded or doubled slash never equals a plain one. */
struct http_route {
    const char *method;
    const char *path;
    http_handler *handler;
    unsigned flags;
};

/* For metrics: after each request, on an HTTP thread or the thread of the ending call. */
struct http_done {
    const char *method, *route; /* route pattern; "" when none matched */
    const char *id;
    int status;    /* 0: gone before a status line was sent */
    bool complete; /* the whole reply was handed to the kernel */
    uint64_t bytes_in, bytes_out, duration_ns;
};

struct http_server_options {
    const char *host;                 /* NULL: "127.0.0.1"; "0.0.0.0", "::" (both families), an address, or localhost */
    uint16_t port;                    /* 0: any; http_server_port tells */
    uint32_t n_threads;               /* 0: 1 */
    uint32_t connections_max;         /* 0: 1,024; more are told 503 and closed, but for HTTP_VITAL routes */
    uint64_t body_bytes_max;          /* 0: 8 MiB, per request */
    uint64_t body_bytes_total_max;    /* 0: 256 MiB, of all requests that have not been handled yet */
    uint32_t header_timeout_ms;       /* 0: 10,000, from the first byte to the end of the header */
    uint32_t body_timeout_ms;         /* 0: 30,000, whole body */
    uint32_t idle_timeout_ms;         /* 0: 75,000, between requests of one connection */
    uint32_t write_stall_ms;          /* 0: 30,000 without the client taking a byte that waits for it */
    uint32_t keepalive_comment_ms;    /* 0: 15,000, of streams with HTTP_KEEPALIVE_COMMENTS */
    uint32_t drain_bytes_per_s_min;   /* 0: 1,024, averaged over write_stall_ms while bytes wait for the client */
    uint64_t stream_buffer_bytes_max; /* 0: 1 MiB per reply handle, waiting for a slow client */
    uint64_t reply_bytes_total_max;   /* 0: 256 MiB, of all replies that clients have not taken; past it whole replies
                                         become 503, and streams that hold much are cut. Small replies always go */
    const char *const *api_keys;      /* none: every route is open */
    size_t n_api_keys;
    const char *const *cors_origins; /* "*" or origins; none: no CORS headers, preflights refused */
    size_t n_cors_origins;
    const char *const *allowed_hosts; /* Host header names (without port) that are served; none: all */
    size_t n_allowed_hosts;
    const char *server_name;         /* Server header; NULL: "choir" */
    const struct http_route *routes; /* must live on */
    size_t n_routes;
    void *arg;                                             /* to handlers */
    void (*on_done)(void *arg, const struct http_done *d); /* or NULL */
};

/* Listens and serves when it returns. NULL with *e: cause and hint. */
struct http_server *http_server_open(const struct http_server_options *o, struct err *e);
uint16_t http_server_port(const struct http_server *s);
/* Stops accepting (the port is free at once), closes idle connections, lets running requests finish, each reply with
 * Connection: close. True when none is left; false when timeout_ms passed first. May be called again. Requests that
 * arrive meanwhile on open connections get 503. */
bool http_server_drain(struct http_server *s, uint32_t timeout_ms);
/* Cuts what is left (on_gone runs), waits until every reply handle has been given back by its ending call, and frees
 * the server. Not from a handler or from the only thread that could end the handles. */
void http_server_close(struct http_server *s);

struct http_server_stats {
    uint32_t connections, requests; /* open now; begun and not finished */
    uint64_t body_bytes;            /* held now */
    uint64_t reply_bytes;           /* held now */
    uint64_t accepted, refused, bad_requests, gone, timeouts;
};
void http_server_stats(const struct http_server *s, struct http_server_stats *out);

/* ---- answering: see the rules at the top ---- */

/* At most once per handle, before the ending call. */
void http_reply_on_gone(struct http_reply *r, void (*on_gone)(void *arg), void *arg);
bool http_reply_is_gone(struct http_reply *r);
const char *http_reply_id(const struct http_reply *r); /* the request's id; valid until the ending call */

/* A header of the reply: before begin, send or err. Name and value are ours or checked: ASSERTs on control bytes. */
void http_reply_header(struct http_reply *r, const char *name, const char *value);

/* Whole replies; both end the handle. Bytes are copied. http_reply_err adds Retry-After (1 s, unless set by
 * http_reply_header) to 429 and 503, WWW-Authenticate to 401, and x-should-retry: false to 500. */
void http_reply_send(struct http_reply *r, int status, const char *content_type, const void *body, size_t n);
void http_reply_err(struct http_reply *r, const struct err *e);
/* As send, taking the buffer's memory; a failed buffer becomes a 500, one over reply_bytes_total_max a 503. */
void http_reply_send_buf(struct http_reply *r, int status, const char *content_type, struct strbuf *b);

/* Streams: chunked. begin sends the header at once. write copies; false: the client is gone (or was cut because too
 * much waited for it: stream_buffer_bytes_max, reply_bytes_total_max): stop producing and call end or abort. */
enum http_begin_flags { HTTP_KEEPALIVE_COMMENTS = 1 }; /* ": keep-alive" lines while nothing is written */
bool http_reply_begin(struct http_reply *r, int status, const char *content_type, unsigned flags);
bool http_reply_write(struct http_reply *r, const void *bytes, size_t n);
void http_reply_end(struct http_reply *r);   /* orderly: everything written is sent, then the last chunk */
void http_reply_abort(struct http_reply *r); /* what was written is sent, then the connection is cut without the last
                                                chunk, so that the client's HTTP library sees a broken reply. Before
                                                begin: the connection is closed without a reply. */

#endif
