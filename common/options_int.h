/* options_int.h - what options.c, options_value.c and options_help.c share. */
#ifndef CHOIR_COMMON_OPTIONS_INT_H
#define CHOIR_COMMON_OPTIONS_INT_H

#include "common/options.h"

#define OPTIONS_FLAG_MAX 64

/* CHOIR_MAX_SEQS for max-seqs. */
void options_env_name(const struct options_spec *spec, const char *flag, char *out, size_t out_bytes);
const struct option_row *options_row(const struct options_spec *spec, const char *flag); /* or NULL */
/* "a whole number from 1 to 1024": what a row takes, for help and error hints. */
void options_describe_type(const struct option_row *row, struct strbuf *out);
void options_print_value(const struct option_row *row, const void *fields, struct strbuf *out);

/* ---- options_value.c ---- */

/* Where a text comes from, for messages: "--max-seqs", "CHOIR_MAX_SEQS", "choir.conf:12: max-seqs". */
struct option_place {
    const char *name;
    enum option_source source;
};

bool option_value_set(const struct options_spec *spec, const struct option_row *row, void *fields,
                      struct options_store *store, const char *text, const struct option_place *at, struct err *e);
void option_value_clear(const struct option_row *row, void *field); /* without a default: empty, false or 0 */

/* ---- options.c ---- */

void *options_alloc(struct options_store *store, size_t bytes);
char *options_copy(struct options_store *store, const char *s, size_t n);

#endif
