/* prompt.h - from a checked request to the token ids the engine takes, and the lengths that follow from them. */
#ifndef CHOIR_SERVER_PROMPT_H
#define CHOIR_SERVER_PROMPT_H

#include "server/api.h"

struct prompt_tokens {
    int32_t *ids; /* [n], malloc'ed */
    uint32_t n;
};

/* Tokenizes all prompts (or the messages) of a completions or chat request into out[r->n_prompts]. Each fits the
 * model's context with room for what is asked. False with *e: nothing is left to free. */
bool prompts_encode(const struct api_request *r, const struct tokenizer *t, uint32_t max_model_len,
                    struct prompt_tokens *out, struct err *e);
/* How many tokens may be generated after a prompt of n_prompt tokens. */
uint32_t prompt_max_tokens(const struct api_request *r, uint32_t n_prompt, uint32_t max_model_len);
void prompts_free(struct prompt_tokens *prompts, uint32_t n_prompts);

#endif
