/* api_input.c - what a request brings to work on: prompts, token ids, messages.
 *
 * Every count is compared with its named limit before memory is taken for it, and memory is the request's arena.
 */
#include "server/api_int.h"

#include <string.h>

/* ---- prompts ---- */

static bool prompt_read(struct api_parse *p, const struct json_at *at, struct api_prompt *out) {
    if (json_is_string(at->value)) return json_as_string(at, SIZE_MAX, &out->text, &out->n_text, p->e);
    if (!json_is_array(at->value))
        return json_err(at, ERR_BAD_TYPE, p->e, "A prompt must be a string or an array of token ids.");
    return api_token_ids_read(p, at, 1, UINT32_MAX, &out->ids, &out->n_ids);
}

bool part_prompt(struct api_parse *p, const struct json_at *at) {
    struct api_request *r = p->out;
    if (r->endpoint == API_TOKENIZE && !json_is_string(at->value))
        return json_err(at, ERR_BAD_TYPE, p->e, "'prompt' must be a string.");
    /* An array of numbers is one prompt; any other array holds prompts. */
    bool several = json_is_array(at->value) && !json_is_number(json_array_get(at->value, 0));
    if (several && !json_as_array(at, 1, PROMPTS_MAX, p->e)) return false;
    size_t n = several ? json_count(at) : 1;
    r->prompts = api_part_alloc(p, n, sizeof *r->prompts);
    if (!r->prompts) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_at item = several ? json_item(at, i) : *at;
        if (!prompt_read(p, &item, &r->prompts[i])) return false;
    }
    r->n_prompts = (uint32_t)n;
    return true;
}

bool part_tokens(struct api_parse *p, const struct json_at *at) {
    return api_token_ids_read(p, at, 0, UINT32_MAX, &p->out->tokens, &p->out->n_tokens);
}

/* ---- messages ---- */

static bool text_part_read(struct api_parse *p, const struct json_at *at, const char **text, size_t *n) {
    static const char *const names[] = {"type", "text"};
    struct json_at type, value;
    const char *type_name;
    if (!json_as_object(at, p->e) || !json_require(at, "type", &type, p->e)) return false;
    if (!json_as_string(&type, 64, &type_name, NULL, p->e)) return false;
    if (strcmp(type_name, "text") != 0)
        return json_err(&type, ERR_UNSUPPORTED_FIELD, p->e, "Only text parts are supported.");
    if (!json_only_members(at, names, ARRAY_COUNT(names), p->e)) return false;
    return json_require(at, "text", &value, p->e) && json_as_string(&value, SIZE_MAX, text, n, p->e);
}

/* Text parts become one text, joined by line breaks. */
static bool content_parts_read(struct api_parse *p, const struct json_at *at, struct chat_message *m) {
    if (!json_as_array(at, 1, CONTENT_PARTS_MAX, p->e)) return false;
    size_t n_parts = json_count(at), n_total = 0, n;
    const char *text;
    for (size_t i = 0; i < n_parts; i++) {
        struct json_at part = json_item(at, i);
        if (!text_part_read(p, &part, &text, &n)) return false;
        n_total += n + 1; /* cannot wrap: the body that holds them is far smaller */
    }
    char *joined = api_part_alloc(p, n_total, 1);
    if (!joined) return false;
    size_t used = 0;
    for (size_t i = 0; i < n_parts; i++) {
        struct json_at part = json_item(at, i);
        if (!text_part_read(p, &part, &text, &n)) return false;
        if (i > 0) joined[used++] = '\n';
        memcpy(joined + used, text, n);
        used += n;
    }
    m->content = joined;
    m->n_content = used;
    return true;
}

static bool role_read(struct api_parse *p, const struct json_at *message, const char **role) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    struct json_at at;
    const char *name;
    if (!json_require(message, "role", &at, p->e) || !json_as_string(&at, 64, &name, NULL, p->e)) return false;
    for (size_t i = 0; i < ARRAY_COUNT(roles); i++) {
        if (strcmp(roles[i], name) != 0) continue;
        *role = roles[i];
        return true;
    }
    return json_err(&at, ERR_BAD_VALUE, p->e, "'role' must be system, developer, user, assistant or tool.");
}

static bool message_read(struct api_parse *p, const struct json_at *at, struct chat_message *m) {
    static const char *const names[] = {"role", "content", "name", "tool_call_id", "refusal", "tool_calls"};
    if (!json_as_object(at, p->e) || !json_only_members(at, names, ARRAY_COUNT(names), p->e)) return false;
    struct json_at content, calls;
    const char *label = NULL;
    if (!role_read(p, at, &m->role)) return false;
    if (!json_opt_string(at, "name", 256, &label, NULL, p->e)) return false;
    if (!json_opt_string(at, "tool_call_id", 256, &label, NULL, p->e)) return false;
    if (!json_opt_string(at, "refusal", SIZE_MAX, &label, NULL, p->e)) return false;
    if (json_member(at, "tool_calls", &calls) && !(json_is_array(calls.value) && json_count(&calls) == 0))
        return json_err(&calls, ERR_UNSUPPORTED_FIELD, p->e, "'tool_calls' is not supported.");
    if (!json_require(at, "content", &content, p->e)) return false;
    if (json_is_array(content.value)) return content_parts_read(p, &content, m);
    return json_as_string(&content, SIZE_MAX, &m->content, &m->n_content, p->e);
}

bool part_messages(struct api_parse *p, const struct json_at *at) {
    if (!json_as_array(at, 1, MESSAGES_MAX, p->e)) return false;
    size_t n = json_count(at);
    p->out->messages = api_part_alloc(p, n, sizeof *p->out->messages);
    if (!p->out->messages) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_at item = json_item(at, i);
        if (!message_read(p, &item, &p->out->messages[i])) return false;
    }
    p->out->n_messages = (uint32_t)n;
    if (p->out->endpoint == API_CHAT) p->out->n_prompts = 1;
    return true;
}
