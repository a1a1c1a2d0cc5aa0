/* api_parse.c - a request body against the table of fields, then the rules between fields.
 *
 * Invariants
 * 1. Every member of the body meets exactly one row of the table, or the request is refused by its name.
 * 2. A field of the request struct is written only by its row; what is absent or null keeps the default.
 * 3. On failure nothing is left to free.
 */
#include "server/api_int.h"

#include <stdlib.h>
#include <string.h>

enum field_kind { FIELD_INT, FIELD_REAL, FIELD_BOOL, FIELD_PART, FIELD_NOOP, FIELD_REFUSED };

struct field {
    const char *name;
    unsigned where;
    enum field_kind kind;
    size_t offset;                                             /* INT: int32_t, REAL: float, BOOL: bool */
    double min, max;                                           /* INT, REAL */
    bool (*parse)(struct api_parse *, const struct json_at *); /* PART */
    enum noop_type noop;
    const char *neutral; /* REFUSED: JSON array of accepted values, or "" */
    const char *help;
};

#define C (unsigned)API_COMPLETIONS
#define H (unsigned)API_CHAT
#define T (unsigned)API_TOKENIZE
#define D (unsigned)API_DETOKENIZE
#define MEMBER(m) .offset = offsetof(struct api_request, m)
#define INT(name, where, member, least, most, text)                                                                    \
    {#name, where, FIELD_INT, MEMBER(member), .min = (double)(least), .max = (double)(most), .help = text},
#define REAL(name, where, member, least, most, text)                                                                   \
    {#name, where, FIELD_REAL, MEMBER(member), .min = (double)(least), .max = (double)(most), .help = text},
#define BOOL(name, where, member, text) {#name, where, FIELD_BOOL, MEMBER(member), .help = text},
#define PART(name, where, parser, text) {#name, where, FIELD_PART, .parse = parser, .help = text},
#define NOOP(name, where, type, text) {#name, where, FIELD_NOOP, .noop = type, .help = text},
#define REFUSED(name, where, values, text) {#name, where, FIELD_REFUSED, .neutral = values, .help = text},
static const struct field fields[] = {
#include "server/api_fields.def"
};
#undef C
#undef H
#undef T
#undef D

bool api_no_memory(struct err *e) {
    return err_set(e, ERR_OVERLOADED, "There is no memory for this request now; try again later.");
}

static const struct field *field_find(const char *name, unsigned where) {
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++)
        if ((fields[i].where & where) && strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

/* Equal as JSON values, where 1 and 1.0 are the same number. */
static bool value_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) {
        double x = json_number_value(a), y = json_number_value(b);
        return x >= y && x <= y;
    }
    return json_equal(a, b) == 1;
}

static bool refused_check(const struct field *f, const struct json_at *at, struct err *e) {
    bool neutral = false;
    json_t *values = f->neutral[0] ? json_loads(f->neutral, 0, NULL) : NULL;
    for (size_t i = 0; i < json_array_size(values); i++) neutral |= value_equal(at->value, json_array_get(values, i));
    json_decref(values);
    if (neutral) return true;
    if (f->neutral[0])
        return json_err(at, ERR_UNSUPPORTED_FIELD, e, "'%s' is supported only with one of these values: %s.", f->name,
                        f->neutral);
    return json_err(at, ERR_UNSUPPORTED_FIELD, e, "'%s' is not supported.", f->name);
}

static bool field_read(struct api_parse *p, const struct field *f, const struct json_at *at) {
    void *member = (char *)p->out + f->offset;
    int64_t i;
    double x;
    switch (f->kind) {
    case FIELD_INT:
        if (!json_as_i64(at, (int64_t)f->min, (int64_t)f->max, &i, p->e)) return false;
        *(int32_t *)member = (int32_t)i;
        return true;
    case FIELD_REAL:
        if (!json_as_double(at, f->min, f->max, &x, p->e)) return false;
        *(float *)member = (float)x + 0.0f; /* -0 becomes 0 */
        return true;
    case FIELD_BOOL:
        return json_as_bool(at, (bool *)member, p->e);
    case FIELD_PART:
        return f->parse(p, at);
    case FIELD_NOOP:
        return api_noop_check(p, at, f->noop);
    case FIELD_REFUSED:
        return refused_check(f, at, p->e);
    }
    return false;
}

static bool fields_read(struct api_parse *p, const struct json_at *top) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)top->value, key, value) { /* only reads: jansson's iterator has no const form */
        struct json_at at = {.value = value, .parent = top, .key = key};
        const struct field *f = field_find(key, (unsigned)p->out->endpoint);
        if (!f) return json_err(&at, ERR_UNKNOWN_FIELD, p->e, "Unrecognized request argument");
        if (!json_is_null(value) && !field_read(p, f, &at)) return false;
    }
    return true;
}

static void defaults_set(struct api_request *r, enum api_endpoint endpoint) {
    *r = (struct api_request){
        .endpoint = endpoint,
        .add_generation_prompt = true,
        .add_special_tokens = true,
        .max_tokens = -1,
        .max_completion_tokens = -1,
        .n = 1,
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
        .n_logprobs = -1,
        .top_logprobs = -1,
        .prompt_logprobs = -1,
        .skip_special_tokens = true,
    };
}

static bool missing(struct err *e, const char *name) {
    return err_set_param(e, ERR_MISSING_FIELD, name, "Missing required parameter: '%s'.", name);
}

static bool lengths_fold(struct api_request *r, struct err *e) {
    if (r->max_completion_tokens >= 0) {
        if (r->max_tokens >= 0 && r->max_tokens != r->max_completion_tokens)
            return err_set_param(e, ERR_BAD_VALUE, "max_tokens",
                                 "'max_tokens' and 'max_completion_tokens' differ; send one of them.");
        r->max_tokens = r->max_completion_tokens;
    }
    if (r->max_tokens == 0) {
        if (!r->echo && r->prompt_logprobs < 0)
            return err_set_param(e, ERR_BAD_VALUE, "max_tokens", "'max_tokens' 0 needs 'echo' or 'prompt_logprobs'.");
        if (r->n != 1) return err_set_param(e, ERR_BAD_VALUE, "n", "'n' must be 1 when 'max_tokens' is 0.");
    }
    if (r->max_tokens >= 0 && r->min_tokens > r->max_tokens)
        return err_set_param(e, ERR_BAD_VALUE, "min_tokens", "'min_tokens' is greater than 'max_tokens'.");
    return true;
}

static bool logprobs_fold(struct api_request *r, struct err *e) {
    if (r->endpoint == API_CHAT) {
        if (r->top_logprobs > 0 && !r->chat_logprobs)
            return err_set_param(e, ERR_BAD_VALUE, "top_logprobs", "'top_logprobs' needs 'logprobs': true.");
        if (r->chat_logprobs) r->n_logprobs = r->top_logprobs < 0 ? 0 : r->top_logprobs;
    }
    if (r->stream && r->prompt_logprobs >= 0)
        return err_set_param(e, ERR_BAD_VALUE, "prompt_logprobs", "'prompt_logprobs' cannot be streamed.");
    return true;
}

static bool ends_text(const struct api_request *r, const struct api_model *model, int32_t id) {
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] == id) return true;
    return !r->ignore_eos && model->tokenizer && tokenizer_is_eog(model->tokenizer, id);
}

/* Before min_tokens no token may be drawn that ends the text: some other one must be allowed. */
static bool allowed_check(const struct api_request *r, const struct api_model *model, struct err *e) {
    if (r->min_tokens == 0 || r->sampling.n_allowed == 0) return true;
    for (uint32_t i = 0; i < r->sampling.n_allowed; i++)
        if (!ends_text(r, model, r->sampling.allowed[i])) return true;
    return err_set_param(e, ERR_BAD_VALUE, "allowed_token_ids",
                         "'allowed_token_ids' has only tokens that end the text, but 'min_tokens' asks for others.");
}

/* The rules between fields. */
static bool rules_check(struct api_request *r, const struct api_model *model, struct err *e) {
    if (r->endpoint == API_DETOKENIZE) return r->tokens ? true : missing(e, "tokens");
    if (r->endpoint == API_TOKENIZE && r->n_prompts && r->n_messages)
        return err_set_param(e, ERR_BAD_VALUE, "messages", "Send either 'prompt' or 'messages'.");
    if (r->endpoint == API_CHAT && !r->n_messages) return missing(e, "messages");
    if (r->endpoint != API_CHAT && !r->n_prompts && !r->n_messages) return missing(e, "prompt");
    if (!lengths_fold(r, e) || !logprobs_fold(r, e) || !allowed_check(r, model, e)) return false;
    if (!r->stream && (r->include_usage || r->continuous_usage))
        return err_set_param(e, ERR_BAD_VALUE, "stream_options", "'stream_options' needs 'stream': true.");
    if ((uint64_t)r->n * r->n_prompts > CHOICES_MAX)
        return err_set_param(e, ERR_BAD_VALUE, "n", "'n' times the number of prompts must be at most %d.", CHOICES_MAX);
    r->sampling.top_k = r->top_k < 0 ? 0 : (uint32_t)r->top_k;
    if (r->sampling.temperature < 1e-5f) r->sampling.temperature = 0;
    return true;
}

/* A tree lives only while its request is being handled, one per HTTP thread. A list of one-digit token ids costs 24
 * times its bytes. */
static const struct json_limits doc_limits = {.amplification = 32, .members_max = JSON_MEMBERS_MAX};

bool api_parse(struct api_request *out, enum api_endpoint endpoint, const struct api_model *model, const char *body,
               size_t body_bytes, struct err *e) {
    defaults_set(out, endpoint);
    out->doc = json_parse(body, body_bytes, &doc_limits, e);
    if (!out->doc) return false;
    struct json_at top = json_top(out->doc);
    struct api_parse p = {.out = out, .model = model, .e = e};
    if (json_as_object(&top, e) && fields_read(&p, &top) && rules_check(out, model, e)) return true;
    api_request_free(out);
    return false;
}

void api_request_drop_doc(struct api_request *r) {
    json_decref(r->doc);
    r->doc = NULL;
    r->cache_salt = NULL;
    r->n_messages = 0;
}

void api_request_free(struct api_request *r) {
    json_decref(r->doc);
    r->doc = NULL;
    arena_free(&r->arena);
}
