/* limits.h - every bound the server puts on one request. Each is checked before anything is sized by it. */
#ifndef CHOIR_SERVER_LIMITS_H
#define CHOIR_SERVER_LIMITS_H

#include "common/base.h"

enum {
    CHOICES_PER_PROMPT_MAX = 64, /* n */
    PROMPTS_MAX = 64,            /* prompts of one completions request */
    CHOICES_MAX = 256,           /* prompts * n: requests that one body puts into the engine's queue */
    MESSAGES_MAX = 4096,
    JSON_MEMBERS_MAX = 1 << 16,   /* object members of one body: building the tree takes microseconds each */
    TOKENIZE_BYTES_MAX = 1 << 20, /* text of one /tokenize request, which an HTTP thread works on meanwhile */
    CONTENT_PARTS_MAX = 4096,     /* per message */
    STOP_STRINGS_MAX = 16,
    STOP_BYTES_MAX = 1024, /* of one stop string */
    CACHE_SALT_BYTES_MAX = 1024,
    METADATA_PAIRS_MAX = 16,
    METADATA_KEY_BYTES_MAX = 64,
    METADATA_VALUE_BYTES_MAX = 512,
    MODEL_NAME_BYTES_MAX = 256,
    /* (tokens with log-probabilities) x (alternatives + 1) in one reply: what a reply may hold in memory,
     * about 100 bytes each */
    LOGPROB_ENTRIES_MAX = 1 << 17,
    /* bytes of a stream that a client has not read yet; past it the client is too slow and is let go */
    STREAM_BACKLOG_BYTES_MAX = 8 << 20,
    API_KEYS_MAX = 256,
    API_KEY_BYTES_MAX = 256,
    MODEL_ALIASES_MAX = 32,
};

#endif
