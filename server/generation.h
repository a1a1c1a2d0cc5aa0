/* generation.h - one completions or chat request from its tokens to the last byte of its reply.
 *
 * Life:  HTTP thread: generation_open -> (inbox of output.h) -> output thread: generation_submit, then
 * generation_event for every event of its choices, generation_flush after each batch of events, until
 * generation_over; then generation_close.
 *
 *   WAITING --first event--> RUNNING (streams have sent their header) --all choices complete--> ANSWERED
 *      \____________ failure of a choice, client gone, shutdown ____________________________________/
 *
 * ANSWERED means that the reply handle is given back. The memory stays until the engine has sent the last event of
 * every choice, because it reads the requests until then.
 *
 * Owner: the HTTP thread until the hand-over, then the output thread alone; so there is no lock. The one thing that
 * others touch is `gone`, set by the HTTP thread that sees the client go.
 */
#ifndef CHOIR_SERVER_GENERATION_H
#define CHOIR_SERVER_GENERATION_H

#include <stdatomic.h>

#include "common/http_server.h"
#include "server/api.h"
#include "server/logprobs.h"
#include "server/prompt.h"

struct server;
struct generation;

/* What the choices of one prompt share. */
struct prompt_part {
    struct prompt_tokens tokens;
    uint32_t n_cached;
    bool waits;              /* for the prompt's log-probabilities, which come before any text */
    uint32_t n_scored;       /* positions whose log-probabilities have come; they come in order */
    uint32_t n_chars;        /* code points of the echo */
    uint32_t n_scored_chars; /* of these, before the next position to score */
    struct detok detok;      /* of the positions scored so far */
    struct strbuf echo;
    struct logprobs_legacy legacy; /* of the echo */
    struct strbuf logprobs;        /* prompt_logprobs */
};

struct choice {
    struct engine_request request; /* user: this choice */
    struct generation *generation;
    struct prompt_part *prompt;
    uint32_t index;
    bool open;                 /* the engine owes its last event */
    const char *finish_reason; /* NULL until the text is complete */
    int stop_index;            /* the stop string that ended it, or -1 */
    int32_t stop_token;        /* the stop token that the request named, or -1 */
    struct detok detok;
    struct stop_scan scan;
    struct strbuf text; /* streams: not sent yet; else all. Its last bytes may begin a stop string */
    struct strbuf token_ids, chat_logprobs; /* likewise, without their brackets */
    struct logprobs_legacy legacy;          /* likewise */
    uint32_t n_tokens;                      /* counted in usage */
    uint32_t n_chars;                       /* code points decoded, the echo's included */
    bool begun;                             /* streams: its first chunk is out */
    bool ended;                             /* streams: its chunk with finish_reason is out */
    uint64_t token_ns;                      /* time of the last token */
};

struct generation {
    struct server *server;
    struct http_reply *reply; /* NULL: answered */
    atomic_bool gone;
    bool began;                     /* streams: the header is out */
    bool queued_flush;              /* is in the output thread's list of this batch */
    struct generation *prev, *next; /* output thread's list of all */
    struct generation *next_flush;
    struct generation *next_inbox;

    struct api_request api;
    struct prompt_part *prompts; /* [api.n_prompts] */
    struct choice *choices;      /* [n_choices], index = prompt * n + i */
    uint32_t n_choices;
    uint32_t n_open;       /* choices whose last event is to come */
    uint32_t n_incomplete; /* choices without finish_reason */
    uint64_t salt;
    char id[HTTP_ID_MAX];
    char reply_id[HTTP_ID_MAX + 16]; /* "cmpl-..." */
    int64_t created;
    struct strbuf head; /* the members that every chunk begins with */
    struct strbuf out;  /* what is written next */
    uint64_t received_ns, submitted_ns, started_ns, first_token_ns;
    int status; /* of the reply, for the log */
};

struct generation_usage {
    uint64_t prompt, cached, completion; /* tokens; a prompt counts once, however many choices it has */
};
struct generation_usage generation_usage(const struct generation *g);

/* Takes over *api and the prompts' ids (also when it fails: *e). Registers on_gone with the reply. */
struct generation *generation_open(struct server *s, struct http_reply *reply, const struct http_request *q,
                                   struct api_request *api, struct prompt_tokens *prompts, struct err *e);

/* ---- output thread ---- */
void generation_submit(struct generation *g);
void generation_event(struct generation *g, struct choice *c, struct engine_event *ev);
void generation_flush(struct generation *g);
/* Answers with the error (before the first byte: as its status; later: as the last event of a cut stream), cancels. */
void generation_fail(struct generation *g, const struct err *e);
/* The client has gone: nothing is written any more. */
void generation_drop(struct generation *g);
static inline bool generation_over(const struct generation *g) {
    return !g->reply && g->n_open == 0;
}
void generation_close(struct generation *g);

/* ---- choice.c: tokens become text ---- */
void choice_open(struct choice *c, struct generation *g, uint32_t index);
void choice_token(struct choice *c, const struct engine_event *ev);
void choice_finish(struct choice *c, enum finish_reason finish, int32_t stop_token);
void choice_free(struct choice *c);
bool prompt_part_open(struct prompt_part *p, struct generation *g);
void prompt_part_scored(struct prompt_part *p, struct generation *g, const struct engine_event *ev);
void prompt_part_free(struct prompt_part *p);

/* ---- reply.c: text becomes JSON ---- */
void reply_head_write(struct generation *g);
/* Appends the next chunk of a choice to g->out, if there is something to say. */
void reply_chunk_write(struct generation *g, struct choice *c);
void reply_stream_end_write(struct generation *g);
void reply_body_write(struct generation *g);

#endif
