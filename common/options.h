/* options.h - one table row per option: struct field, flag, environment variable, config line, check, help, docs.
 *
 * A program declares its options once, in PROGRAM/options.def:
 *
 *     OPTION_GROUP("Batching", "What one step of the engine works on.")
 *     OPTION(U32, max_seqs, "max-seqs", "64", 1, 1024, "N", "Sequences that run at the same time.")
 *
 * that is: type, field, flag, default text (read by the same parser; NULL: unset), least, most, value name, help.
 * The environment name (CHOIR_MAX_SEQS) and the config line (max-seqs = 64) follow from the flag. From it:
 *
 *     struct server_options {                            static const struct option_row rows[] = {
 *     #define OPTION_GROUP(title, help)                  #define OPTION_GROUP OPTION_GROUP_ROW
 *     #define OPTION OPTION_FIELD                        #define OPTION(...) OPTION_ROW(struct server_options, \
 *     #include "server/options.def"                                                     __VA_ARGS__)
 *     #undef OPTION                                      #include "server/options.def"
 *     #undef OPTION_GROUP                                #undef OPTION
 *     };                                                 #undef OPTION_GROUP
 *                                                        };
 *
 * Types and their fields (least and most are doubles, in the field's unit, of TIME in seconds; 0, 0: no limits):
 *     BOOL   bool          --flag, --no-flag, --flag=true|false|on|off|yes|no|1|0
 *     U32    uint32_t      U64 uint64_t      FLOAT double
 *     SIZE   uint64_t      bytes: 512, 64K, 512M, 2G, 1.5G (K = 1024)
 *     TIME   uint64_t      nanoseconds: 250ms, 2s, 5m, 1h; a bare number is seconds
 *     STRING const char *  PATH const char * (NULL when unset without a default)
 *     CHOICE const char *  one of the names in the value column: "auto|scalar|avx2"; points to one of them
 *     LIST   struct option_list, repeatable; in the environment the items are separated by commas
 *     SECRET struct option_list, as LIST, but never printed
 *
 * Precedence: flag, environment, config file (--config FILE, CHOIR_CONFIG), default. --help, --help-markdown,
 * --help-man, --version and --config exist in every program and have no row. An environment variable that is set to
 * nothing counts as unset. A config file has one `name = value` per line; `#` begins a comment, "..." keeps spaces.
 * Called once at start, from the main thread.
 */
#ifndef CHOIR_COMMON_OPTIONS_H
#define CHOIR_COMMON_OPTIONS_H

#include "common/err.h"
#include "common/strbuf.h"

struct option_list {
    const char **items;
    size_t count;
};

enum option_type {
    OPTION_TYPE_GROUP,
    OPTION_TYPE_BOOL,
    OPTION_TYPE_U32,
    OPTION_TYPE_U64,
    OPTION_TYPE_FLOAT,
    OPTION_TYPE_SIZE,
    OPTION_TYPE_TIME,
    OPTION_TYPE_STRING,
    OPTION_TYPE_PATH,
    OPTION_TYPE_CHOICE,
    OPTION_TYPE_LIST,
    OPTION_TYPE_SECRET,
};

struct option_row {
    enum option_type type;
    size_t offset;
    const char *flag; /* of a group: its title */
    const char *default_text;
    double min, max;
    const char *value_name;
    const char *help;
};

#define OPTION_C_TYPE_BOOL bool
#define OPTION_C_TYPE_U32 uint32_t
#define OPTION_C_TYPE_U64 uint64_t
#define OPTION_C_TYPE_FLOAT double
#define OPTION_C_TYPE_SIZE uint64_t
#define OPTION_C_TYPE_TIME uint64_t
#define OPTION_C_TYPE_STRING const char *
#define OPTION_C_TYPE_PATH const char *
#define OPTION_C_TYPE_CHOICE const char *
#define OPTION_C_TYPE_LIST struct option_list
#define OPTION_C_TYPE_SECRET struct option_list

#define OPTION_FIELD(type, field, flag, def, min, max, value, help) OPTION_C_TYPE_##type field;
#define OPTION_ROW(owner, type, field, flag, def, min, max, value, help)                                               \
    {OPTION_TYPE_##type, offsetof(owner, field), flag, def, min, max, value, help},
#define OPTION_GROUP_ROW(title, help) {OPTION_TYPE_GROUP, 0, title, NULL, 0, 0, NULL, help},

struct options_spec {
    const char *program;     /* "choird" */
    const char *usage;       /* "choird MODEL [options]" */
    const char *summary;     /* one line */
    const char *description; /* paragraphs for --help, or NULL */
    const char *examples;    /* "choird model.gguf\n    serve ...\n", or NULL */
    const char *positional;  /* flag that an argument without dashes sets ("model"), or NULL */
    const char *env_prefix;  /* NULL: "CHOIR_" */
    const struct option_row *rows;
    size_t n_rows;
};

/* Where a value came from, the weakest first. */
enum option_source { OPTION_DEFAULT, OPTION_CONFIG, OPTION_ENVIRONMENT, OPTION_FLAG };

/* Owns the memory that the fields point to, and remembers sources. Zero-initialise. */
struct options_store {
    void **blocks;
    size_t n_blocks, cap_blocks;
    enum option_source *sources; /* [n_rows] */
};

enum options_outcome {
    OPTIONS_RUN,   /* fields are filled: go on */
    OPTIONS_DONE,  /* --help, --version and the like were printed: exit 0 */
    OPTIONS_WRONG, /* cause and hint were printed to stderr: exit 1 */
};

/* For main(): fills *fields (the program's options struct), prints what there is to print. */
enum options_outcome options_parse(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                                   char *const *argv);
/* The same without printing: false with *e (message: cause, a line break, hint). --help and the like are not known. */
bool options_load(const struct options_spec *spec, void *fields, struct options_store *store, int argc,
                  char *const *argv, char *const *envp, struct err *e);
void options_free(struct options_store *store);

/* Of the row with this flag; ASSERTs that there is one. */
enum option_source options_source(const struct options_spec *spec, const struct options_store *store, const char *flag);

void options_help(const struct options_spec *spec, struct strbuf *out);          /* for a terminal */
void options_help_markdown(const struct options_spec *spec, struct strbuf *out); /* docs/options-PROGRAM.md */
void options_help_man(const struct options_spec *spec, struct strbuf *out);      /* man page source, section 1 */
/* Every option with its value and source, one per line, secrets as "***": for the start-up log. */
void options_dump(const struct options_spec *spec, const void *fields, const struct options_store *store,
                  struct strbuf *out);

#endif
