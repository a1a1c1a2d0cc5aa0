/* prompt.c - tokenizing a request's prompts, and the checks that need their length. Runs on the HTTP threads. */
#include "server/prompt.h"
#include "server/api_int.h"

#include <stdlib.h>
#include <string.h>

enum { COMPLETION_TOKENS_DEFAULT = 16 };

static bool ids_copy(const struct api_prompt *p, struct prompt_tokens *out, struct err *e) {
    out->ids = malloc((size_t)p->n_ids * sizeof *out->ids);
    if (!out->ids) return api_no_memory(e);
    memcpy(out->ids, p->ids, (size_t)p->n_ids * sizeof *out->ids);
    out->n = p->n_ids;
    return true;
}

static const char *prompt_field(const struct api_request *r) {
    return r->endpoint == API_CHAT ? "messages" : "prompt";
}

static bool context_err(const struct api_request *r, uint32_t max_model_len, uint32_t n_prompt, struct err *e) {
    uint32_t n_more = r->max_tokens >= 0 ? (uint32_t)r->max_tokens : 1;
    return err_set_param(
        e, ERR_CONTEXT_LENGTH, prompt_field(r),
        "This model's maximum context length is %u tokens. However, you requested at least %llu tokens "
        "(%u in the %s, %u in the completion). Please reduce the length of the %s or completion.",
        max_model_len, (unsigned long long)n_prompt + n_more, n_prompt, prompt_field(r), n_more, prompt_field(r));
}

static bool prompt_encode(const struct api_request *r, uint32_t index, const struct tokenizer *t,
                          uint32_t max_model_len, struct prompt_tokens *out, struct err *e) {
    size_t n = 0;
    bool ok = true;
    if (r->endpoint == API_CHAT) {
        ok = chat_encode(t, r->messages, r->n_messages, r->add_generation_prompt, max_model_len, &out->ids, &n, e);
    } else if (r->prompts[index].text) {
        const struct api_prompt *p = &r->prompts[index];
        unsigned flags = r->add_special_tokens ? TOKENIZE_ADD_SPECIAL : 0;
        ok = tokenizer_encode(t, p->text, p->n_text, flags, max_model_len, &out->ids, &n, e);
    } else {
        if (!ids_copy(&r->prompts[index], out, e)) return false;
        n = out->n;
    }
    if (!ok) {
        if (e->code == ERR_CONTEXT_LENGTH) return context_err(r, max_model_len, max_model_len + 1, e);
        return false;
    }
    out->n = (uint32_t)n;
    if (n == 0) return err_set_param(e, ERR_BAD_VALUE, prompt_field(r), "The prompt has no tokens.");
    uint64_t n_more = r->max_tokens >= 0 ? (uint64_t)r->max_tokens : 1;
    if (n + n_more > max_model_len) return context_err(r, max_model_len, out->n, e);
    if ((uint32_t)r->min_tokens > prompt_max_tokens(r, out->n, max_model_len))
        return err_set_param(e, ERR_CONTEXT_LENGTH, "min_tokens",
                             "'min_tokens' is more than the context has room for.");
    return true;
}

/* What the log-probabilities of the whole reply may come to. */
static bool logprobs_fit(const struct api_request *r, const struct prompt_tokens *prompts, uint32_t max_model_len,
                         struct err *e) {
    int n_prompt_top = r->prompt_logprobs;
    if (r->echo && r->n_logprobs > n_prompt_top) n_prompt_top = r->n_logprobs;
    uint64_t entries = 0;
    for (uint32_t i = 0; i < r->n_prompts; i++) {
        uint64_t copies = r->echo ? (uint64_t)r->n : 1;
        entries += (uint64_t)prompts[i].n * (uint64_t)(n_prompt_top + 1) * copies;
        uint64_t n_out = prompt_max_tokens(r, prompts[i].n, max_model_len);
        if (!r->stream) entries += n_out * (uint64_t)(r->n_logprobs + 1) * (uint64_t)r->n;
    }
    if (entries <= LOGPROB_ENTRIES_MAX) return true;
    const char *field = r->n_logprobs > 0         ? (r->endpoint == API_CHAT ? "top_logprobs" : "logprobs")
                        : r->prompt_logprobs >= 0 ? "prompt_logprobs"
                                                  : "logprobs";
    return err_set_param(e, ERR_BAD_VALUE, field,
                         "The reply could hold %llu log-probabilities, more than %d: ask for fewer of them, fewer "
                         "tokens or choices, or a stream.",
                         (unsigned long long)entries, LOGPROB_ENTRIES_MAX);
}

bool prompts_encode(const struct api_request *r, const struct tokenizer *t, uint32_t max_model_len,
                    struct prompt_tokens *out, struct err *e) {
    memset(out, 0, r->n_prompts * sizeof *out);
    bool ok = true;
    for (uint32_t i = 0; i < r->n_prompts && ok; i++) ok = prompt_encode(r, i, t, max_model_len, &out[i], e);
    if (ok && logprobs_fit(r, out, max_model_len, e)) return true;
    prompts_free(out, r->n_prompts);
    return false;
}

uint32_t prompt_max_tokens(const struct api_request *r, uint32_t n_prompt, uint32_t max_model_len) {
    uint32_t left = max_model_len - n_prompt;
    if (r->max_tokens >= 0) return (uint32_t)r->max_tokens;
    if (r->endpoint == API_CHAT) return left;
    uint32_t standard =
        (uint32_t)(r->min_tokens > COMPLETION_TOKENS_DEFAULT ? r->min_tokens : COMPLETION_TOKENS_DEFAULT);
    return standard < left ? standard : left;
}

void prompts_free(struct prompt_tokens *prompts, uint32_t n_prompts) {
    for (uint32_t i = 0; i < n_prompts; i++) free(prompts[i].ids);
}
