/* api_parts.c - the request fields that have a shape of their own: token lists, stops, biases, options, metadata.
 *
 * Every count is compared with its named limit before memory is taken for it, and memory is the request's arena.
 */
#include "server/api_int.h"

#include <stdlib.h>
#include <string.h>

void *api_part_alloc(struct api_parse *p, size_t count, size_t bytes) {
    void *m = arena_alloc(&p->out->arena, count, bytes);
    if (!m) api_no_memory(p->e);
    return m;
}

static bool token_id_read(struct api_parse *p, const struct json_at *at, int32_t *out) {
    int64_t id;
    if (!json_as_i64(at, 0, (int64_t)p->model->n_vocab - 1, &id, p->e)) return false;
    *out = (int32_t)id;
    return true;
}

bool api_token_ids_read(struct api_parse *p, const struct json_at *at, size_t n_min, size_t n_max, const int32_t **ids,
                        uint32_t *n_ids) {
    if (!json_as_array(at, n_min, n_max, p->e)) return false;
    size_t n = json_count(at);
    int32_t *out = api_part_alloc(p, n, sizeof *out);
    if (!out) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_at item = json_item(at, i);
        if (!token_id_read(p, &item, &out[i])) return false;
    }
    *ids = out;
    *n_ids = (uint32_t)n;
    return true;
}

static int id_compare(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The same, sorted, each id once. */
static bool token_set_read(struct api_parse *p, const struct json_at *at, size_t n_min, size_t n_max, int32_t **ids,
                           uint32_t *n_ids) {
    const int32_t *list;
    if (!api_token_ids_read(p, at, n_min, n_max, &list, n_ids)) return false;
    int32_t *set = (int32_t *)list; /* ours: it was allocated just now */
    qsort(set, *n_ids, sizeof *set, id_compare);
    uint32_t n = 0;
    for (uint32_t i = 0; i < *n_ids; i++)
        if (n == 0 || set[n - 1] != set[i]) set[n++] = set[i];
    *ids = set;
    *n_ids = n;
    return true;
}

bool part_model(struct api_parse *p, const struct json_at *at) {
    const char *name;
    size_t n;
    if (!json_as_string(at, MODEL_NAME_BYTES_MAX, &name, &n, p->e)) return false;
    for (size_t i = 0; i < p->model->n_names; i++)
        if (strcmp(p->model->names[i], name) == 0) return true;
    return json_err(at, ERR_NO_MODEL, p->e, "The model '%s' does not exist here.", name);
}

static bool stop_read(struct api_parse *p, const struct json_at *at, struct stop_string *out) {
    const char *text;
    size_t n;
    if (!json_as_string(at, STOP_BYTES_MAX, &text, &n, p->e)) return false;
    if (n == 0) return json_err(at, ERR_BAD_VALUE, p->e, "A stop string must not be empty.");
    out->n = (uint32_t)n;
    out->text = arena_copy(&p->out->arena, text, n);
    out->border = arena_alloc(&p->out->arena, n, sizeof *out->border);
    return out->text && out->border ? true : api_no_memory(p->e);
}

bool part_stop(struct api_parse *p, const struct json_at *at) {
    bool several = json_is_array(at->value);
    if (!several && !json_is_string(at->value))
        return json_err(at, ERR_BAD_TYPE, p->e, "'stop' must be a string or an array of strings.");
    if (several && !json_as_array(at, 0, STOP_STRINGS_MAX, p->e)) return false;
    size_t n = several ? json_count(at) : 1;
    struct stop_string *strings = api_part_alloc(p, n, sizeof *strings);
    if (!strings) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_at item = several ? json_item(at, i) : *at;
        if (!stop_read(p, &item, &strings[i])) return false;
    }
    p->out->stop = (struct stop_set){.strings = strings, .n_strings = (uint32_t)n};
    stop_set_init(&p->out->stop);
    return true;
}

bool part_stop_token_ids(struct api_parse *p, const struct json_at *at) {
    return token_set_read(p, at, 0, STOP_IDS_MAX, &p->out->stop_ids, &p->out->n_stop_ids);
}

bool part_allowed_token_ids(struct api_parse *p, const struct json_at *at) {
    int32_t *ids;
    if (!token_set_read(p, at, 1, ALLOWED_IDS_MAX, &ids, &p->out->sampling.n_allowed)) return false;
    p->out->sampling.allowed = ids;
    return true;
}

/* A decimal without sign or leading zeros, so that no two keys of an object are the same id. */
static bool id_text_read(const char *s, uint32_t n_vocab, int32_t *out) {
    size_t n = strlen(s);
    if (n == 0 || n > 10 || (s[0] == '0' && n > 1)) return false;
    int64_t v = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        v = v * 10 + (s[i] - '0');
    }
    *out = (int32_t)v;
    return v < (int64_t)n_vocab;
}

bool part_logit_bias(struct api_parse *p, const struct json_at *at) {
    if (!json_as_object(at, p->e)) return false;
    size_t n = json_count(at), i = 0;
    if (n > LOGIT_BIAS_MAX)
        return json_err(at, ERR_BAD_VALUE, p->e, "'logit_bias' must have at most %d members.", LOGIT_BIAS_MAX);
    struct logit_bias *bias = api_part_alloc(p, n, sizeof *bias);
    if (!bias) return false;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)at->value, key, value) { /* only reads */
        struct json_at item = {.value = value, .parent = at, .key = key};
        double x;
        if (!id_text_read(key, p->model->n_vocab, &bias[i].id))
            return json_err(&item, ERR_BAD_VALUE, p->e, "Keys of 'logit_bias' must be token ids from 0 to %u.",
                            p->model->n_vocab - 1);
        if (!json_as_double(&item, -100, 100, &x, p->e)) return false;
        bias[i++].bias = (float)x;
    }
    p->out->sampling.bias = bias;
    p->out->sampling.n_bias = (uint32_t)n;
    return true;
}

bool part_seed(struct api_parse *p, const struct json_at *at) {
    int64_t seed;
    if (!json_as_i64(at, INT64_MIN, INT64_MAX, &seed, p->e)) return false;
    p->out->sampling.seed = (uint64_t)seed;
    p->out->has_seed = true;
    return true;
}

bool part_logprobs(struct api_parse *p, const struct json_at *at) {
    if (p->out->endpoint == API_CHAT) return json_as_bool(at, &p->out->chat_logprobs, p->e);
    int64_t n;
    if (!json_as_i64(at, 0, TOP_LOGPROBS_MAX, &n, p->e)) return false;
    p->out->n_logprobs = (int32_t)n;
    return true;
}

bool part_stream_options(struct api_parse *p, const struct json_at *at) {
    static const char *const names[] = {"include_usage", "continuous_usage_stats", "include_obfuscation"};
    struct api_request *r = p->out;
    bool obfuscation = false;
    if (!json_as_object(at, p->e) || !json_only_members(at, names, ARRAY_COUNT(names), p->e)) return false;
    if (!json_opt_bool(at, "include_usage", &r->include_usage, p->e)) return false;
    if (!json_opt_bool(at, "continuous_usage_stats", &r->continuous_usage, p->e)) return false;
    if (!json_opt_bool(at, "include_obfuscation", &obfuscation, p->e)) return false;
    if (obfuscation) return json_err(at, ERR_UNSUPPORTED_FIELD, p->e, "'include_obfuscation' is not supported.");
    return true;
}

bool part_cache_salt(struct api_parse *p, const struct json_at *at) {
    struct api_request *r = p->out;
    if (!json_as_string(at, CACHE_SALT_BYTES_MAX, &r->cache_salt, &r->n_cache_salt, p->e)) return false;
    if (r->n_cache_salt == 0) return json_err(at, ERR_BAD_VALUE, p->e, "'cache_salt' must not be empty.");
    return true;
}

static bool metadata_check(struct api_parse *p, const struct json_at *at) {
    if (!json_as_object(at, p->e)) return false;
    if (json_count(at) > METADATA_PAIRS_MAX)
        return json_err(at, ERR_BAD_VALUE, p->e, "'metadata' must have at most %d members.", METADATA_PAIRS_MAX);
    const char *key, *text;
    json_t *value;
    json_object_foreach((json_t *)at->value, key, value) { /* only reads */
        struct json_at item = {.value = value, .parent = at, .key = key};
        if (strlen(key) > METADATA_KEY_BYTES_MAX)
            return json_err(at, ERR_BAD_VALUE, p->e, "Keys of 'metadata' must have at most %d bytes.",
                            METADATA_KEY_BYTES_MAX);
        if (!json_as_string(&item, METADATA_VALUE_BYTES_MAX, &text, NULL, p->e)) return false;
    }
    return true;
}

bool api_noop_check(struct api_parse *p, const struct json_at *at, enum noop_type type) {
    const char *text;
    bool flag;
    switch (type) {
    case NOOP_STRING:
        return json_as_string(at, SIZE_MAX, &text, NULL, p->e);
    case NOOP_BOOL:
        return json_as_bool(at, &flag, p->e);
    case NOOP_METADATA:
        return metadata_check(p, at);
    }
    return false;
}
