/* api.h - what a client asks for, checked: the body of a request as a struct.
 *
 * The only way from JSON to the rest of the server. Types, ranges, names and the rules between fields are checked
 * here, from one table (api_fields.def), before anything is sized by them; what leaves api_parse is valid for a
 * model with this vocabulary, but for the lengths that are known only after tokenizing (prompt.h).
 *
 * Any thread; a request belongs to one thread at a time.
 */
#ifndef CHOIR_SERVER_API_H
#define CHOIR_SERVER_API_H

#include "common/json.h"
#include "engine/engine.h"
#include "server/arena.h"
#include "server/stop.h"

enum api_endpoint { API_COMPLETIONS = 1, API_CHAT = 2, API_TOKENIZE = 4, API_DETOKENIZE = 8 };

/* What a request is checked against. */
struct api_model {
    const char *const *names; /* [n_names], n_names >= 1: the first one is reported in replies */
    size_t n_names;
    uint32_t n_vocab;
    const struct tokenizer *tokenizer; /* for its end tokens; NULL: none */
};

struct api_prompt {
    const char *text; /* NULL: ids; points into the document */
    size_t n_text;
    const int32_t *ids; /* [n_ids] */
    uint32_t n_ids;
};

struct api_request {
    enum api_endpoint endpoint;
    struct arena arena; /* owns everything below that does not point into the document */
    json_t *doc;        /* until api_request_drop_doc */

    struct api_prompt *prompts; /* [n_prompts] */
    uint32_t n_prompts;
    struct chat_message *messages; /* [n_messages] */
    uint32_t n_messages;
    const int32_t *tokens; /* [n_tokens], to detokenize */
    uint32_t n_tokens;
    bool add_generation_prompt, add_special_tokens;

    int32_t max_tokens;            /* -1: not given */
    int32_t max_completion_tokens; /* -1: not given; api_parse folds it into max_tokens */
    int32_t min_tokens;
    int32_t n;
    int32_t top_k;
    struct sampling_params sampling;
    bool has_seed;

    struct stop_set stop;
    int32_t *stop_ids; /* [n_stop_ids], unique */
    uint32_t n_stop_ids;
    bool include_stop, ignore_eos;

    int32_t n_logprobs; /* -1: none; of both endpoints */
    int32_t top_logprobs;
    bool chat_logprobs;
    int32_t prompt_logprobs; /* -1: none */
    bool echo, return_token_ids, tokens_as_ids, return_token_strs, skip_special_tokens;

    bool stream, include_usage, continuous_usage;
    int32_t priority;
    const char *cache_salt; /* NULL: none; points into the document */
    size_t n_cache_salt;
};

/* False: *e names the field, and *out holds nothing. Afterwards: api_request_free. */
bool api_parse(struct api_request *out, enum api_endpoint endpoint, const struct api_model *model, const char *body,
               size_t body_bytes, struct err *e);
/* Frees the JSON document; prompt texts, messages and cache_salt are gone then. */
void api_request_drop_doc(struct api_request *r);
void api_request_free(struct api_request *r);

#endif
