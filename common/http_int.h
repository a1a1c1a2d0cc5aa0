/* http_int.h - what the files of the HTTP server share.
 *
 *   http_server.c  open, drain, close              http_check.c  is this request head strictly HTTP?
 *   http_loop.c    the thread: events, deadlines   http_route.c  routes, keys, origins
 *   http_sock.c    accept, run, refuse, close      http_reply.c  answers, from any thread
 *   http_conn.c    libmicrohttpd's callbacks
 *
 * One loop thread owns a share of the connections and everything in `struct http_conn`. Each connection has a
 * libmicrohttpd daemon of its own (768 bytes and one descriptor), in external-loop mode without a listening socket:
 * so every callback, the library's error log included, says which connection it is about, and one connection can be
 * run, suspended or stopped without touching another. Only the loop thread calls libmicrohttpd.
 * Other threads reach a loop through http_loop_push alone.
 */
#ifndef CHOIR_COMMON_HTTP_INT_H
#define CHOIR_COMMON_HTTP_INT_H

#include "common/http_server.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#define HTTP_POOL_BYTES ((size_t)32 << 10) /* libmicrohttpd's memory per connection: bounds the header */
#define HTTP_TARGET_BYTES_MAX 8192         /* request target; longer: 414 */
#define HTTP_FIELDS_MAX 100                /* header fields; more: 431 */
/* A refused request's body up to this size is read, to keep the connection. */
#define HTTP_SWALLOW_BYTES_MAX ((uint64_t)64 << 10)
/* How long, and how much, a client whose connection is given up may go on sending. */
#define HTTP_LINGER_NS 2000000000u
#define HTTP_LINGER_BYTES_MAX ((uint64_t)4 << 20)
#define HTTP_LINGERS_MAX 256 /* per loop */
#define HTTP_OVER_MS 2000    /* header deadline of connections above connections_max */
#define HTTP_RESERVE_MIN 32  /* connections above connections_max, for HTTP_VITAL routes */
#define HTTP_HEADERS_MAX 8   /* extra reply headers */
/* A reply that holds no more than this is never refused or cut for reply_bytes_total_max: it is about what a connection
 * costs anyway, and errors, health and metrics have to get through. */
#define HTTP_REPLY_SMALL_BYTES ((uint64_t)64 << 10)

struct http_field {
    const char *name, *value; /* NUL-terminated, in libmicrohttpd's memory, valid as long as the request */
    size_t name_bytes, value_bytes;
};
struct http_header_list {
    struct http_field *fields; /* [count] */
    size_t count;
};

/* ---- http_check.c ---- */

struct http_head {
    const char *block; /* [block_bytes] the raw head as the library left it: separators replaced by NUL */
    size_t block_bytes;
    const char *target; /* as it was sent */
    const char *method, *version;
    struct http_header_list headers;
};
struct http_facts { /* of a head that passed */
    bool http_1_0, chunked, expects_continue;
    uint64_t content_length; /* 0 when there is none */
    const char *host;
};
bool http_head_check(const struct http_head *h, struct http_facts *facts, struct err *e);
const struct http_field *http_field_find(const struct http_header_list *l, const char *name);

/* ---- http_route.c ---- */

struct http_match {
    const struct http_route *route; /* or NULL */
    bool path_known;                /* some route has the path */
    bool preflight;                 /* a CORS preflight to be answered 204 */
    char allow[96];                 /* methods of the path */
};
struct http_reply;
/* Fills request.route, params, key_index. False with *e when the request is refused; *m is filled in any case. */
bool http_route_request(struct http_reply *r, struct http_match *m, struct err *e);
/* The value of Access-Control-Allow-Origin for this request, or NULL. */
const char *http_cors_origin(const struct http_reply *r);

/* ---- replies: shared between the loop and the answering thread ---- */

enum http_stage {
    STAGE_HEAD,    /* the request line was seen */
    STAGE_BODY,    /* checked and routed; the body comes in */
    STAGE_HANDLER, /* the handler is running */
    STAGE_WAIT,    /* it returned without an answer: the connection is suspended */
    STAGE_SEND,    /* the answer has been handed to libmicrohttpd */
};

struct http_reply {
    struct http_server *server;
    struct http_loop *loop;
    atomic_int refs; /* 1 of the loop until the request is completed, 1 of the answering side while it has the handle */

    /* of the loop thread */
    struct http_conn *conn;
    enum http_stage stage;
    struct http_request request;
    struct http_facts facts;
    struct http_match match;
    struct http_header_list headers;
    char id[HTTP_ID_MAX], client_id[HTTP_CLIENT_ID_MAX + 1];
    char method[16];
    char *target; /* raw; path, NUL, query once routed */
    char *params; /* what request.params point into */
    char *body;
    size_t body_bytes, body_capacity;
    struct err refusal; /* to be answered once the body has been swallowed; ERR_NONE: none */
    uint64_t bytes_out;
    int status_sent;

    pthread_mutex_t lock; /* guards the fields below; taken before the loop's lock */
    bool handle_out;      /* the answering side has the handle */
    bool begun, ended, aborted;
    bool gone;       /* the client is lost: nothing more will be sent */
    bool overflow;   /* gone because too much waited for the client */
    bool detached;   /* the loop is done with it */
    bool suspended;  /* the connection sleeps until the loop is pushed */
    bool in_handler; /* the loop thread looks at the reply right after the handler: no push needed */
    bool comments;
    int status;
    char content_type[96];
    struct {
        char *name, *value;
    } extra[HTTP_HEADERS_MAX];
    size_t n_extra;
    struct strbuf out;
    size_t out_sent;
    uint64_t held_bytes; /* of memory, this reply's part of the server's reply_bytes */
    uint64_t written_ns;
    void (*on_gone)(void *arg);
    void *on_gone_arg;

    /* guarded by the loop's lock */
    struct http_reply *next_pushed;
    bool pushed;
};

struct http_reply *http_reply_new(struct http_conn *conn, const char *target);
void http_reply_unref(struct http_reply *r);
void http_reply_body_free(struct http_reply *r); /* loop: after the handler */
/* Sets how much memory the reply holds (invariant 4 of http_reply.c); false when that is too much for the server.
 * r->lock is held, or nobody else has the reply. */
bool http_reply_hold(struct http_reply *r, uint64_t bytes);
void http_reply_lose(struct http_reply *r);   /* loop: the client is gone; runs on_gone once */
void http_reply_detach(struct http_reply *r); /* loop: completed; drops the loop's reference */
enum http_start { START_QUEUED, START_WAIT, START_CLOSE };
enum http_start http_reply_start(struct http_reply *r); /* loop, in the access handler: answer, or suspend */
/* All header lines besides Content-Type and Content-Length, given one by one. */
void http_reply_headers(struct http_reply *r, int status, void (*add)(void *arg, const char *name, const char *value),
                        void *arg);

/* ---- connections and loops ---- */

enum http_source_kind { SOURCE_WAKE, SOURCE_LISTEN, SOURCE_SOCKET, SOURCE_DAEMON, SOURCE_LINGER };
struct http_source { /* what an epoll event points to */
    enum http_source_kind kind;
    void *owner;
};

enum http_phase {
    PHASE_FRESH,  /* accepted, nothing came yet */
    PHASE_IDLE,   /* between requests */
    PHASE_HEAD,   /* a header is coming in */
    PHASE_BODY,   /* a body is coming in */
    PHASE_HANDLE, /* with the program */
    PHASE_SEND,   /* a reply, or a part of one, is going out */
};

struct http_conn {
    struct http_source socket_source, daemon_source;
    struct http_loop *loop;
    struct http_conn *prev, *next;
    int fd;
    struct MHD_Daemon *daemon;
    struct MHD_Connection *mhd;
    struct http_reply *request; /* the current one, or NULL */
    enum http_phase phase;
    uint64_t phase_ns;    /* when it began */
    uint64_t progress_ns; /* of PHASE_SEND: when the client last took bytes, of which there were */
    uint64_t acked_bytes;
    uint64_t window_ns, window_acked; /* of PHASE_SEND: begin of the window whose average is looked at; 0: none yet */
    uint64_t taken_bytes;          /* that libmicrohttpd had read from the socket at the last check for being stuck */
    uint64_t calls, calls_checked; /* of callbacks, so far and at that check */
    bool half_closed;              /* the peer sent FIN */
    bool doomed;  /* to be closed: an error was sent past libmicrohttpd, or nobody waits for the answer */
    bool over;    /* above connections_max */
    bool closed;  /* libmicrohttpd has closed the socket */
    bool running; /* inside MHD_run or MHD_stop_daemon */
    bool again;   /* has more to do than one round allowed */
    bool dead;    /* in the loop's list of connections to free */
    char peer[64];
};

struct http_linger {
    struct http_source source;
    struct http_linger *next;
    int fd;
    uint64_t deadline_ns, bytes;
};

struct http_loop {
    struct http_server *server;
    pthread_t thread;
    int epoll_fd, wake_fd;
    struct http_source wake_source, listen_source;
    bool listening;
    struct http_conn *conns, *dead;
    struct http_linger *lingers;
    size_t n_lingers;
    uint64_t scan_ns; /* when deadlines are looked at next */
    bool again;
    pthread_mutex_t lock; /* guards pushed and the push fields of replies */
    struct http_reply *pushed;
};

struct http_server {
    struct http_server_options o; /* with defaults filled in; strings copied */
    char **strings;               /* all copies */
    size_t n_strings;
    size_t *key_bytes; /* [o.n_api_keys] */
    int listen_fd, spare_fd;
    uint16_t port;
    uint32_t reserve;
    struct http_loop *loops;        /* [o.n_threads] */
    atomic_bool draining, stopping; /* relaxed flags; a wake follows */
    atomic_uint connections, requests;
    atomic_uint loops_listening;
    /* statistics, relaxed; body_bytes and reply_bytes also bound what is held */
    atomic_uint_fast64_t body_bytes, reply_bytes, accepted, refused, bad_requests, gone, timeouts;

    pthread_mutex_t idle_lock; /* guards handles and spare_fd */
    uint32_t handles;          /* that the program has not given back */
    pthread_cond_t idle;       /* signalled when requests or handles reach 0, or the last loop stopped listening */
};

void *http_loop_main(void *loop);
void http_loop_wake(struct http_loop *loop);
void http_loop_push(struct http_reply *r); /* with r->lock held */
void http_loop_unpush(struct http_reply *r);
void http_loop_scan_by(struct http_loop *loop, uint64_t ns); /* deadlines are to be looked at by then */
void http_conn_phase(struct http_conn *c, enum http_phase phase);
void http_accept_all(struct http_loop *loop);
void http_conn_run(struct http_conn *c);   /* lets its daemon do what there is to do */
void http_conn_close(struct http_conn *c); /* at once; a request is completed as lost */
bool http_conn_has_unread(const struct http_conn *c);
void http_linger_read(struct http_loop *loop, struct http_linger *l);
void http_linger_free(struct http_loop *loop, struct http_linger *l);
/* Sends an error past libmicrohttpd and lets the client read it before the connection goes. r may be NULL. */
void http_conn_refuse(struct http_conn *c, struct http_reply *r, const struct err *e);
struct MHD_Daemon *http_conn_daemon(struct http_conn *c);
void http_server_notify(struct http_server *s);
void http_server_handle_done(struct http_server *s); /* s may be freed by the time it returns */
size_t http_error_bytes(struct http_server *s, struct http_reply *r, const struct err *e, struct strbuf *out);

#endif
