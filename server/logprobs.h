/* logprobs.h - log-probabilities as JSON text, in the three shapes that clients know.
 *
 * chat:   {"token","logprob","bytes","top_logprobs":[{"token","logprob","bytes"}]} per token; bytes are exact
 * legacy: four parallel arrays, as completions have them; a token that is no whole text is "bytes:\xe2\x80"
 * prompt: null, {"ID":{"logprob","rank","decoded_token"}} per position (vLLM's)
 *
 * Numbers are the shortest decimals that read back as the same float, so replies can be compared bit for bit.
 * Items are appended with a comma before all but the first: the caller owns the brackets.
 */
#ifndef CHOIR_SERVER_LOGPROBS_H
#define CHOIR_SERVER_LOGPROBS_H

#include "common/strbuf.h"
#include "engine/engine.h"

struct logprobs_style {
    const struct tokenizer *tokenizer;
    uint32_t n_top;     /* alternatives to show */
    bool tokens_as_ids; /* "token_id:5" for the token's text */
};

/* One sampled (or given) token and its alternatives. */
void logprobs_add_chat(struct strbuf *b, const struct logprobs_style *s, const struct sample_output *o);
void logprobs_add_prompt(struct strbuf *b, const struct logprobs_style *s, const struct sample_output *o);

struct logprobs_legacy {
    struct strbuf tokens, token_logprobs, top_logprobs, text_offset;
};
/* text_offset: code points of text before the token. o NULL: a token without log-probability (the first one). */
void logprobs_add_legacy(struct logprobs_legacy *l, const struct logprobs_style *s, int32_t token,
                         const struct sample_output *o, uint32_t text_offset);
void logprobs_legacy_append(struct logprobs_legacy *to, const struct logprobs_legacy *from);
void logprobs_legacy_clear(struct logprobs_legacy *l);
void logprobs_legacy_free(struct logprobs_legacy *l);
bool logprobs_legacy_failed(const struct logprobs_legacy *l);
/* {"text_offset":[...],"token_logprobs":[...],"tokens":[...],"top_logprobs":[...]} */
void logprobs_write_legacy(struct strbuf *b, const struct logprobs_legacy *l);

#endif
