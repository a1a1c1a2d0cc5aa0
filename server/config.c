/* config.c - from options to what the engine and the HTTP server take. Called once, before other threads start. */
#include "server/server.h"

#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option_row rows[] = {
#define OPTION_GROUP OPTION_GROUP_ROW
#define OPTION(...) OPTION_ROW(struct server_options, __VA_ARGS__)
#include "server/options.def"
#undef OPTION
#undef OPTION_GROUP
};

const struct options_spec server_options_spec = {
    .program = "choird",
    .usage = "choird MODEL [options]",
    .summary = "serves one language model over an OpenAI-compatible HTTP API",
    .description =
        "Loads MODEL and answers /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, "
        "/health, /ready, /metrics and /version. SIGTERM lets running requests finish; a second one does not.",
    .examples = "choird model.gguf\n"
                "    serve on 127.0.0.1:8000\n"
                "choird model.gguf --host 0.0.0.0 --port 9000 --api-key SECRET --kv-memory 4G\n"
                "    serve to a network, with a key\n",
    .positional = "model",
    .rows = rows,
    .n_rows = ARRAY_COUNT(rows),
};

/* "/models/Gemma-3.Q4_K_M.gguf" -> "Gemma-3.Q4_K_M": a name that tells nothing about this machine's folders. */
static void name_from_path(const char *path, char *out, size_t out_bytes) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    if (n - begin > 5 && strncmp(path + n - 5, ".gguf", 5) == 0) n -= 5;
    size_t count = size_min(n - begin, out_bytes - 1);
    memcpy(out, path + begin, count);
    out[count] = '\0';
}

static bool names_configure(struct server *s, struct err *e) {
    const struct option_list *names = &s->options.served_model_name;
    if (names->count > MODEL_ALIASES_MAX)
        return err_set(e, ERR_LOAD, "At most %d names can be given with --served-model-name.", MODEL_ALIASES_MAX);
    for (size_t i = 0; i < names->count; i++) {
        size_t n = strlen(names->items[i]);
        if (n == 0 || n > MODEL_NAME_BYTES_MAX)
            return err_set(e, ERR_LOAD, "A --served-model-name must have 1 to %d bytes.", MODEL_NAME_BYTES_MAX);
        s->names[i] = names->items[i];
    }
    s->model.n_names = names->count;
    if (names->count == 0) {
        name_from_path(s->options.model, s->name_default, sizeof s->name_default);
        s->names[0] = s->name_default;
        s->model.n_names = 1;
    }
    s->model.names = s->names;
    return true;
}

static bool key_add(struct server *s, const char *key, struct err *e) {
    size_t n = strlen(key);
    if (n == 0 || n > API_KEY_BYTES_MAX)
        return err_set(e, ERR_LOAD, "An API key must have 1 to %d bytes.", API_KEY_BYTES_MAX);
    for (size_t i = 0; i < n; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return err_set(e, ERR_LOAD, "An API key has a byte that is not visible ASCII; headers cannot carry it.");
    if (s->n_api_keys == API_KEYS_MAX) return err_set(e, ERR_LOAD, "At most %d API keys can be given.", API_KEYS_MAX);
    s->api_keys[s->n_api_keys++] = key;
    return true;
}

static char *file_read(const char *path, struct err *e) {
    enum { FILE_BYTES_MAX = API_KEYS_MAX * (API_KEY_BYTES_MAX + 64) };
    FILE *f = fopen(path, "re");
    char *text = calloc(1, FILE_BYTES_MAX + 1);
    size_t n = f && text ? fread(text, 1, FILE_BYTES_MAX + 1, f) : 0;
    bool ok = f && text && !ferror(f) && n <= FILE_BYTES_MAX;
    if (f) fclose(f);
    if (ok) return text;
    free(text);
    err_set(e, ERR_LOAD, "The file of --api-key-file cannot be read, or is larger than %d bytes.", FILE_BYTES_MAX);
    return NULL;
}

static bool keys_configure(struct server *s, struct err *e) {
    for (size_t i = 0; i < s->options.api_key.count; i++)
        if (!key_add(s, s->options.api_key.items[i], e)) return false;
    if (!s->options.api_key_file) return true;
    s->api_key_text = file_read(s->options.api_key_file, e);
    if (!s->api_key_text) return false;
    char *rest = s->api_key_text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        size_t n = strlen(line);
        while (n > 0 && (line[n - 1] == '\r' || line[n - 1] == ' ' || line[n - 1] == '\t')) line[--n] = '\0';
        if (n > 0 && line[0] != '#' && !key_add(s, line, e)) return false;
    }
    if (s->n_api_keys == 0) return err_set(e, ERR_LOAD, "The file of --api-key-file has no key.");
    return true;
}

bool server_configure(struct server *s, struct err *e) {
    enum log_level level = LOG_INFO;
    log_level_parse(s->options.log_level, &level);
    log_open(&(struct log_options){.level = level, .json = strcmp(s->options.log_format, "json") == 0, .color = true});
    if (!s->options.model) return err_set(e, ERR_LOAD, "No model was given.\nTry: choird MODEL.gguf");
    salt_init(&s->salt);
    return names_configure(s, e) && keys_configure(s, e);
}

static enum dtype kv_type(const char *name) {
    if (strcmp(name, "f32") == 0) return DT_F32;
    if (strcmp(name, "bf16") == 0) return DT_BF16;
    if (strcmp(name, "int8") == 0) return DT_I8;
    return DT_F16;
}

void server_engine_options(const struct server *s, struct engine_options *o) {
    const struct server_options *so = &s->options;
    *o = (struct engine_options){
        .model_path = so->model,
        .n_threads = so->threads,
        .isa = so->isa,
        .kv_memory_bytes = so->kv_memory,
        .kv_type = kv_type(so->kv_type),
        .max_batch_tokens = so->max_batch_tokens,
        .max_seqs = so->max_seqs,
        .max_model_len = so->max_model_len,
        .queue_max_requests = so->queue_requests,
        .queue_max_tokens = so->queue_tokens,
        .prefix_cache = so->prefix_cache,
        .on_progress = progress_step,
        .progress_arg = (void *)s,
    };
}

void server_http_options(struct server *s, struct http_server_options *o) {
    const struct server_options *so = &s->options;
    *o = (struct http_server_options){
        .host = so->host,
        .port = (uint16_t)so->port,
        .n_threads = so->http_threads,
        .connections_max = so->max_connections,
        .body_bytes_max = so->max_body,
        .body_bytes_total_max = so->max_body > 32ull << 20 ? 8 * so->max_body : 0,
        .stream_buffer_bytes_max = STREAM_BACKLOG_BYTES_MAX,
        .api_keys = s->api_keys,
        .n_api_keys = s->n_api_keys,
        .cors_origins = so->cors_origin.items,
        .n_cors_origins = so->cors_origin.count,
        .allowed_hosts = so->allowed_host.items,
        .n_allowed_hosts = so->allowed_host.count,
        .server_name = "choird",
        .routes = server_routes,
        .n_routes = server_n_routes,
        .arg = s,
        .on_done = stats_http_done,
    };
}
