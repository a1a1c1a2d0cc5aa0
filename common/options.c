/* options.c - from command line, environment and config file to a struct (options.h).
 *
 * Design: sources are applied from the weakest to the strongest, each through option_value_set, so one parser and one
 * range check serve all, the defaults of the table included (a default that does not parse is our bug). Owner: the main
 * thread, at start. Invariants: 1. a field is written only by options_value.c, after its text was checked.  2. every
 * pointer in the fields points into argv, the table, or a block of the store.  3. sources[row] is the strongest source
 * seen.
 */
#include "common/options_int.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_BYTES_MAX ((size_t)1 << 20)

extern char **environ;

/* ---- memory ---- */

void *options_alloc(struct options_store *store, size_t bytes) {
    if (store->n_blocks == store->cap_blocks) {
        size_t cap = store->cap_blocks ? store->cap_blocks * 2 : 16;
        void **blocks = realloc(store->blocks, cap * sizeof *blocks);
        ASSERT(blocks); /* a few small blocks at start */
        store->blocks = blocks;
        store->cap_blocks = cap;
    }
    void *block = calloc(1, bytes ? bytes : 1);
    ASSERT(block);
    store->blocks[store->n_blocks++] = block;
    return block;
}

char *options_copy(struct options_store *store, const char *s, size_t n) {
    char *copy = options_alloc(store, n + 1);
    memcpy(copy, s, n);
    return copy;
}

void options_free(struct options_store *store) {
    for (size_t i = 0; i < store->n_blocks; i++) free(store->blocks[i]);
    free(store->blocks);
    *store = (struct options_store){0};
}

/* ---- names ---- */

void options_env_name(const struct options_spec *spec, const char *flag, char *out, size_t out_bytes) {
    int n = snprintf(out, out_bytes, "%s%s", spec->env_prefix ? spec->env_prefix : "CHOIR_", flag);
    ASSERT(n > 0 && (size_t)n < out_bytes);
    for (char *p = out; *p; p++) *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

const struct option_row *options_row(const struct options_spec *spec, const char *flag) {
    for (size_t i = 0; i < spec->n_rows; i++)
        if (spec->rows[i].type != OPTION_TYPE_GROUP && strcmp(spec->rows[i].flag, flag) == 0) return &spec->rows[i];
    return NULL;
}

enum option_source options_source(const struct options_spec *spec, const struct options_store *store,
                                  const char *flag) {
    const struct option_row *row = options_row(spec, flag);
    ASSERT(row);
    return store->sources[row - spec->rows];
}

/* Edit distance with neighbours swapped counting as one edit; both shorter than OPTIONS_FLAG_MAX. */
static size_t distance(const char *a, const char *b) {
    size_t rows[3][OPTIONS_FLAG_MAX + 1];
    const size_t n_a = strlen(a), n_b = strlen(b);
    for (size_t j = 0; j <= n_b; j++) rows[0][j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t *now = rows[i % 3], *before = rows[(i + 2) % 3], *before2 = rows[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t best = before[j - 1] + (a[i - 1] != b[j - 1]);
            best = size_min(best, size_min(before[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = size_min(best, before2[j - 2] + 1);
            now[j] = best;
        }
    }
    return rows[n_a % 3][n_b];
}

/* The flag that was probably meant, or NULL. */
static const char *nearest_flag(const struct options_spec *spec, const char *flag) {
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    if (strlen(flag) >= OPTIONS_FLAG_MAX) return NULL;
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type == OPTION_TYPE_GROUP) continue;
        size_t d = distance(flag, row->flag);
        if (strlen(flag) >= 3 && strstr(row->flag, flag)) d = size_min(d, 2);
        if (d < best_distance) {
            best = row->flag;
            best_distance = d;
        }
    }
    return best_distance <= size_max(2, strlen(flag) / 3) ? best : NULL;
}

/* ---- sources, the weakest first ---- */

static void load_defaults(const struct options_spec *spec, void *fields, struct options_store *store) {
    struct err e;
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type == OPTION_TYPE_GROUP) continue;
        ASSERT(strlen(row->flag) < OPTIONS_FLAG_MAX && options_row(spec, row->flag) == row);
        const struct option_place at = {row->flag, OPTION_DEFAULT};
        option_value_clear(row, (char *)fields + row->offset);
        ASSERT(!row->default_text || option_value_set(spec, row, fields, store, row->default_text, &at, &e));
    }
}

static bool unknown(const struct options_spec *spec, const char *place, const char *flag, const char *dashes,
                    struct err *e) {
    const char *near = nearest_flag(spec, flag);
    if (near)
        return err_set(e, ERR_BAD_VALUE, "%s%s%.80s is not an option of %s.\nDid you mean %s%s?", place, dashes, flag,
                       spec->program, dashes, near);
    return err_set(e, ERR_BAD_VALUE, "%s%s%.80s is not an option of %s.\n%s --help lists them all.", place, dashes,
                   flag, spec->program, spec->program);
}

static char *trim(char *s) {
    while (*s == ' ' || *s == '\t') s++;
    size_t n = strlen(s);
    while (n > 0 && isspace((unsigned char)s[n - 1])) s[--n] = '\0';
    return s;
}

/* The value of a config line in place: quotes taken off, comment cut. False: a quote does not end. */
static bool config_value(char **value) {
    char *s = trim(*value);
    if (*s == '"') {
        char *end = strchr(s + 1, '"');
        if (!end) return false;
        char *rest = trim(end + 1);
        if (*rest && *rest != '#') return false;
        *end = '\0';
        s++;
    } else {
        for (char *p = s; *p; p++) {
            if (*p != '#' || (p > s && p[-1] != ' ' && p[-1] != '\t')) continue;
            *p = '\0';
            break;
        }
        s = trim(s);
    }
    *value = s;
    return true;
}

static bool config_line(const struct options_spec *spec, void *fields, struct options_store *store, const char *path,
                        size_t number, char *line, bool *seen, struct err *e) {
    char place[400];
    char *name = trim(line);
    if (!*name || *name == '#') return true;
    char *equals = strchr(name, '=');
    snprintf(place, sizeof place, "%.200s:%zu: ", path, number);
    if (!equals) return err_set(e, ERR_BAD_VALUE, "%sthe line is not 'name = value'.\nFor example: port = 8000", place);
    *equals = '\0';
    char *value = equals + 1;
    name = trim(name);
    const struct option_row *row = options_row(spec, name);
    if (!row) return unknown(spec, place, name, "", e);
    if (!config_value(&value))
        return err_set(e, ERR_BAD_VALUE, "%sthe quoted value of %s does not end.\nClose it with a quotation mark.",
                       place, name);
    const bool is_list = row->type == OPTION_TYPE_LIST || row->type == OPTION_TYPE_SECRET;
    if (seen[row - spec->rows] && !is_list)
        return err_set(e, ERR_BAD_VALUE, "%s%s is set a second time.\nKeep one of the two lines.", place, name);
    seen[row - spec->rows] = true;
    strncat(place, row->flag, sizeof place - strlen(place) - 1);
    const struct option_place at = {place, OPTION_CONFIG};
    return option_value_set(spec, row, fields, store, value, &at, e);
}

static bool config_read(const char *path, struct strbuf *out, struct err *e) {
    FILE *f = fopen(path, "re");
    if (!f)
        return err_set(e, ERR_BAD_VALUE,
                       "The config file '%.300s' cannot be opened: %s.\nGive an existing file with "
                       "--config.",
                       path, strerror(errno));
    char block[4096];
    size_t n;
    while ((n = fread(block, 1, sizeof block, f)) > 0 && out->count <= CONFIG_BYTES_MAX) strbuf_add(out, block, n);
    const bool bad = ferror(f) || out->failed || out->count > CONFIG_BYTES_MAX;
    fclose(f);
    if (bad)
        return err_set(e, ERR_BAD_VALUE,
                       "The config file '%.300s' cannot be read, or is larger than 1 MiB.\nGive a "
                       "text file of 'name = value' lines.",
                       path);
    return true;
}

static bool load_config(const struct options_spec *spec, void *fields, struct options_store *store, const char *path,
                        struct err *e) {
    struct strbuf text = {0};
    bool ok = config_read(path, &text, e);
    bool *seen = options_alloc(store, spec->n_rows * sizeof *seen);
    size_t number = 0;
    for (char *line = text.data, *next; ok && line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        ok = config_line(spec, fields, store, path, ++number, line, seen, e);
    }
    strbuf_free(&text);
    return ok;
}

static const char *env_get(char *const *envp, const char *name) {
    const size_t n = strlen(name);
    for (; envp && *envp; envp++)
        if (strncmp(*envp, name, n) == 0 && (*envp)[n] == '=' && (*envp)[n + 1]) return *envp + n + 1;
    return NULL;
}

static bool load_environment(const struct options_spec *spec, void *fields, struct options_store *store,
                             char *const *envp, struct err *e) {
    char name[2 * OPTIONS_FLAG_MAX];
    for (size_t i = 0; i < spec->n_rows; i++) {
        if (spec->rows[i].type == OPTION_TYPE_GROUP) continue;
        options_env_name(spec, spec->rows[i].flag, name, sizeof name);
        const char *text = env_get(envp, name);
        const struct option_place at = {name, OPTION_ENVIRONMENT};
        if (text && !option_value_set(spec, &spec->rows[i], fields, store, text, &at, e)) return false;
    }
    return true;
}

/* One flag that begins at argv[*i]; takes the next argument as its value where needed. */
static bool load_flag(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                      char *const *argv, int *i, struct err *e) {
    char flag[OPTIONS_FLAG_MAX], name[OPTIONS_FLAG_MAX + 2];
    const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
    const size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
    const char *text = equals ? equals + 1 : NULL;
    if (n == 0 || n >= sizeof flag) return unknown(spec, "", arg, "--", e);
    memcpy(flag, arg, n);
    flag[n] = '\0';
    const bool is_config = strcmp(flag, "config") == 0;
    const struct option_row *row = options_row(spec, flag);
    if (!row && strncmp(flag, "no-", 3) == 0 && !text) {
        row = options_row(spec, flag + 3);
        text = "false";
        if (row && row->type != OPTION_TYPE_BOOL) row = NULL;
    }
    if (!row && !is_config) return unknown(spec, "", flag, "--", e);
    if (!text && row && row->type == OPTION_TYPE_BOOL) text = "true";
    if (!text && (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0)) {
        struct strbuf takes = {0};
        if (row) options_describe_type(row, &takes);
        err_set(e, ERR_BAD_VALUE, "--%s needs a value.\nIt takes %s.", flag, row ? strbuf_cstr(&takes) : "a file");
        strbuf_free(&takes);
        return false;
    }
    if (!text) text = argv[++*i];
    if (is_config) return true; /* read before */
    snprintf(name, sizeof name, "--%s", flag);
    const struct option_place at = {name, OPTION_FLAG};
    return option_value_set(spec, row, fields, store, text, &at, e);
}

static bool load_flags(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                       char *const *argv, struct err *e) {
    bool positional_seen = false, only_positional = false;
    for (int i = 1; i < argc; i++) {
        if (!only_positional && strcmp(argv[i], "--") == 0) {
            only_positional = true;
        } else if (!only_positional && strncmp(argv[i], "--", 2) == 0) {
            if (!load_flag(spec, fields, store, argc, argv, &i, e)) return false;
        } else if (!only_positional && argv[i][0] == '-' && argv[i][1]) {
            return err_set(e, ERR_BAD_VALUE,
                           "%.80s is not an option of %s.\nOptions begin with two dashes; %s --help "
                           "lists them all.",
                           argv[i], spec->program, spec->program);
        } else {
            if (!spec->positional || positional_seen)
                return err_set(e, ERR_BAD_VALUE, "The argument '%.200s' is one too many.\nUsage: %s", argv[i],
                               spec->usage);
            positional_seen = true;
            const struct option_row *row = options_row(spec, spec->positional);
            ASSERT(row);
            const struct option_place at = {row->value_name, OPTION_FLAG};
            if (!option_value_set(spec, row, fields, store, argv[i], &at, e)) return false;
        }
    }
    return true;
}

static const char *config_path(const struct options_spec *spec, int argc, char *const *argv, char *const *envp) {
    char name[2 * OPTIONS_FLAG_MAX];
    for (int i = argc - 1; i > 0; i--) {
        if (strncmp(argv[i], "--config=", 9) == 0) return argv[i] + 9;
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc) return argv[i + 1];
    }
    options_env_name(spec, "config", name, sizeof name);
    return env_get(envp, name);
}

bool options_load(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                  char *const *argv, char *const *envp, struct err *e) {
    store->sources = options_alloc(store, spec->n_rows * sizeof *store->sources);
    load_defaults(spec, fields, store);
    const char *path = config_path(spec, argc, argv, envp);
    return (!path || load_config(spec, fields, store, path, e)) && load_environment(spec, fields, store, envp, e) &&
           load_flags(spec, fields, store, argc, argv, e);
}

static bool print_and_free(struct strbuf *text) {
    fwrite(strbuf_cstr(text), 1, text->count, stdout);
    fflush(stdout);
    strbuf_free(text);
    return true;
}

/* --help and its kin, wherever they stand before a "--". */
static bool print_info(const struct options_spec *spec, int argc, char *const *argv) {
    struct strbuf text = {0};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            options_help(spec, &text);
        } else if (strcmp(arg, "--help-markdown") == 0) {
            options_help_markdown(spec, &text);
        } else if (strcmp(arg, "--help-man") == 0) {
            options_help_man(spec, &text);
        } else if (strcmp(arg, "--version") == 0 || strcmp(arg, "-V") == 0) {
            strbuf_printf(&text, "%s %s\n", spec->program, CHOIR_VERSION);
        } else {
            continue;
        }
        return print_and_free(&text);
    }
    return false;
}

enum options_outcome options_parse(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                                   char *const *argv) {
    struct err e;
    if (print_info(spec, argc, argv)) return OPTIONS_DONE;
    if (options_load(spec, fields, store, argc, argv, environ, &e)) return OPTIONS_RUN;
    fprintf(stderr, "%s: %s\n", spec->program, e.message);
    return OPTIONS_WRONG;
}
