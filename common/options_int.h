/* options_int.h - what options.c and options_help.c share. */
#ifndef CHOIR_COMMON_OPTIONS_INT_H
#define CHOIR_COMMON_OPTIONS_INT_H

#include "common/options.h"

/* CHOIR_MAX_SEQS for max-seqs. */
void options_env_name(const struct options_spec *spec, const char *flag, char *out, size_t out_bytes);
const struct option_row *options_row(const struct options_spec *spec, const char *flag); /* or NULL */
/* "a whole number from 1 to 1024": what a row takes, for help and error hints. */
void options_describe_type(const struct option_row *row, struct strbuf *out);
void options_print_value(const struct option_row *row, const void *fields, struct strbuf *out);

#define OPTIONS_FLAG_MAX 64

#endif
