/* options_help.c - the table as text: --help, Markdown, a man page, and the values in force (options.h).
 *
 * All four are written from the same rows, so that none can say what the parser does not do. Stateless.
 */
#include "common/options_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HELP_COLUMNS 88
#define HELP_INDENT 28

/* ---- pieces ---- */

static void add_size(uint64_t v, struct strbuf *out) {
    static const char units[] = "KMGT";
    int unit = -1;
    while (unit < 3 && v >= 1024 && v % 1024 == 0) {
        v /= 1024;
        unit++;
    }
    strbuf_add_u64(out, v);
    if (unit >= 0) strbuf_add_char(out, units[unit]);
}

static void add_time(uint64_t ns, struct strbuf *out) {
    if (ns % 1000000000u == 0) {
        strbuf_printf(out, "%" PRIu64 "s", ns / 1000000000u);
    } else if (ns % 1000000u == 0) {
        strbuf_printf(out, "%" PRIu64 "ms", ns / 1000000u);
    } else {
        strbuf_printf(out, "%" PRIu64 "us", ns / 1000u);
    }
}

static void add_bound(const struct option_row *row, double v, struct strbuf *out) {
    if (row->type == OPTION_TYPE_SIZE) {
        add_size((uint64_t)v, out);
    } else if (row->type == OPTION_TYPE_TIME) {
        add_time((uint64_t)(v * 1e9 + 0.5), out);
    } else {
        strbuf_printf(out, "%.15g", v);
    }
}

static void add_range(const struct option_row *row, struct strbuf *out) {
    if (row->min == 0 && row->max == 0) return;
    strbuf_add_str(out, " from ");
    add_bound(row, row->min, out);
    strbuf_add_str(out, " to ");
    add_bound(row, row->max, out);
}

void options_describe_type(const struct option_row *row, struct strbuf *out) {
    switch (row->type) {
    case OPTION_TYPE_BOOL:
        strbuf_add_str(out, "true or false");
        break;
    case OPTION_TYPE_U32:
    case OPTION_TYPE_U64:
        strbuf_add_str(out, "a whole number");
        break;
    case OPTION_TYPE_FLOAT:
        strbuf_add_str(out, "a number");
        break;
    case OPTION_TYPE_SIZE:
        strbuf_add_str(out, "a size such as 512M or 2G");
        break;
    case OPTION_TYPE_TIME:
        strbuf_add_str(out, "a time such as 250ms, 2s or 5m");
        break;
    case OPTION_TYPE_STRING:
        strbuf_add_str(out, "text");
        break;
    case OPTION_TYPE_PATH:
        strbuf_add_str(out, "a path");
        break;
    case OPTION_TYPE_CHOICE: {
        strbuf_add_str(out, "one of ");
        for (const char *p = row->value_name; *p; p++) {
            if (*p == '|') {
                strbuf_add_str(out, ", ");
            } else {
                strbuf_add_char(out, *p);
            }
        }
        break;
    }
    case OPTION_TYPE_LIST:
    case OPTION_TYPE_SECRET:
        strbuf_add_str(out, "text, and may be given more than once");
        break;
    case OPTION_TYPE_GROUP:
        break;
    }
    add_range(row, out);
}

static void add_list(const struct option_list *list, struct strbuf *out) {
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0) strbuf_add_char(out, ',');
        strbuf_add_str(out, list->items[i]);
    }
}

void options_print_value(const struct option_row *row, const void *fields, struct strbuf *out) {
    const void *field = (const char *)fields + row->offset;
    switch (row->type) {
    case OPTION_TYPE_BOOL:
        strbuf_add_str(out, *(const bool *)field ? "true" : "false");
        break;
    case OPTION_TYPE_U32:
        strbuf_add_u64(out, *(const uint32_t *)field);
        break;
    case OPTION_TYPE_U64:
        strbuf_add_u64(out, *(const uint64_t *)field);
        break;
    case OPTION_TYPE_FLOAT:
        strbuf_printf(out, "%g", *(const double *)field);
        break;
    case OPTION_TYPE_SIZE:
        add_size(*(const uint64_t *)field, out);
        break;
    case OPTION_TYPE_TIME:
        add_time(*(const uint64_t *)field, out);
        break;
    case OPTION_TYPE_STRING:
    case OPTION_TYPE_PATH:
    case OPTION_TYPE_CHOICE: {
        const char *s = *(const char *const *)field;
        strbuf_add_str(out, s ? s : "");
        break;
    }
    case OPTION_TYPE_LIST:
        add_list(field, out);
        break;
    case OPTION_TYPE_SECRET:
        if (((const struct option_list *)field)->count > 0) strbuf_add_str(out, "***");
        break;
    case OPTION_TYPE_GROUP:
        break;
    }
}

/* "--max-seqs N", "--[no-]prefix-cache" */
static void add_usage_of(const struct option_row *row, struct strbuf *out) {
    if (row->type == OPTION_TYPE_BOOL) {
        strbuf_printf(out, "--[no-]%s", row->flag);
    } else {
        strbuf_printf(out, "--%s %s", row->flag, row->value_name ? row->value_name : "VALUE");
    }
}

/* "Default: 64, from 1 to 1024. Environment: CHOIR_MAX_SEQS." */
static void add_facts(const struct options_spec *spec, const struct option_row *row, struct strbuf *out) {
    char env[2 * OPTIONS_FLAG_MAX];
    options_env_name(spec, row->flag, env, sizeof env);
    strbuf_printf(out, "Default: %s", row->default_text && row->default_text[0] ? row->default_text : "none");
    if (row->min != 0 || row->max != 0) {
        strbuf_add_char(out, ',');
        add_range(row, out);
    }
    if (row->type == OPTION_TYPE_LIST || row->type == OPTION_TYPE_SECRET) strbuf_add_str(out, "; repeatable");
    strbuf_printf(out, ". Environment: %s.", env);
}

/* ---- terminal ---- */

/* Appends words of `text` wrapped at HELP_COLUMNS, each line indented; the cursor stands at `column`. */
static void add_wrapped(struct strbuf *out, const char *text, size_t indent, size_t column) {
    bool first = true;
    while (*text) {
        const size_t n = strcspn(text, " ");
        if (!first && column + 1 + n > HELP_COLUMNS) {
            strbuf_printf(out, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        if (!first) strbuf_add_char(out, ' ');
        strbuf_add(out, text, n);
        column += n + !first;
        first = false;
        text += n;
        while (*text == ' ') text++;
    }
    strbuf_add_char(out, '\n');
}

static void add_entry(struct strbuf *out, const char *usage, const char *help) {
    strbuf_printf(out, "  %s", usage);
    const size_t column = 2 + strlen(usage);
    if (column + 2 > HELP_INDENT) {
        strbuf_printf(out, "\n%*s", HELP_INDENT, "");
    } else {
        strbuf_printf(out, "%*s", (int)(HELP_INDENT - column), "");
    }
    add_wrapped(out, help, HELP_INDENT, HELP_INDENT);
}

static void add_row_help(const struct options_spec *spec, const struct option_row *row, struct strbuf *out) {
    struct strbuf usage = {0}, text = {0};
    add_usage_of(row, &usage);
    strbuf_printf(&text, "%s ", row->help);
    add_facts(spec, row, &text);
    add_entry(out, strbuf_cstr(&usage), strbuf_cstr(&text));
    strbuf_free(&usage);
    strbuf_free(&text);
}

static void add_text(struct strbuf *out, const char *text) {
    while (*text) {
        const size_t n = strcspn(text, "\n");
        strbuf_printf(out, "%.*s\n", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

void options_help(const struct options_spec *spec, struct strbuf *out) {
    strbuf_printf(out, "%s - %s\n\nUsage: %s\n", spec->program, spec->summary, spec->usage);
    if (spec->description) {
        strbuf_add_char(out, '\n');
        add_text(out, spec->description);
    }
    if (spec->examples) {
        strbuf_add_str(out, "\nExamples:\n");
        add_text(out, spec->examples);
    }
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type == OPTION_TYPE_GROUP) {
            strbuf_printf(out, "\n%s%s%s\n", row->flag, row->help ? ": " : "", row->help ? row->help : "");
        } else {
            add_row_help(spec, row, out);
        }
    }
    strbuf_add_str(out, "\nGeneral\n");
    add_entry(out, "--config FILE",
              "Read options from FILE, one 'name = value' a line; '#' begins a comment. Flags "
              "and environment variables are stronger than the file.");
    add_entry(out, "--help, --version",
              "Print this text, or the version. --help-markdown and --help-man print the "
              "same as a page of documentation.");
}

/* ---- documentation ---- */

static void add_markdown_cell(struct strbuf *out, const char *s) {
    for (; *s; s++) {
        if (*s == '|' || *s == '<') strbuf_add_char(out, '\\');
        strbuf_add_char(out, *s);
    }
}

static void add_markdown_row(const struct options_spec *spec, const struct option_row *row, struct strbuf *out) {
    char env[2 * OPTIONS_FLAG_MAX];
    struct strbuf usage = {0}, type = {0};
    options_env_name(spec, row->flag, env, sizeof env);
    add_usage_of(row, &usage);
    options_describe_type(row, &type);
    strbuf_add_str(out, "| `");
    add_markdown_cell(out, strbuf_cstr(&usage));
    strbuf_printf(out, "` | `%s` | ", env);
    if (row->default_text && row->default_text[0]) {
        strbuf_printf(out, "`%s`", row->default_text);
    } else {
        strbuf_add_str(out, "none");
    }
    strbuf_add_str(out, " | ");
    add_markdown_cell(out, row->help);
    strbuf_add_str(out, " Takes ");
    add_markdown_cell(out, strbuf_cstr(&type));
    strbuf_add_str(out, ". |\n");
    strbuf_free(&usage);
    strbuf_free(&type);
}

void options_help_markdown(const struct options_spec *spec, struct strbuf *out) {
    strbuf_printf(out, "# %s\n\n%s\n\nUsage: `%s`\n", spec->program, spec->summary, spec->usage);
    if (spec->description) strbuf_printf(out, "\n%s\n", spec->description);
    if (spec->examples) strbuf_printf(out, "\n```sh\n%s\n```\n", spec->examples);
    strbuf_add_str(out, "\nEvery option can be a flag, an environment variable or a line `name = value` of the file "
                        "that `--config` names (the flag without its dashes). A flag is stronger than the environment, "
                        "the environment than the file.\n");
    bool table = false;
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type == OPTION_TYPE_GROUP) {
            strbuf_printf(out, "\n## %s\n", row->flag);
            if (row->help) strbuf_printf(out, "\n%s\n", row->help);
            table = false;
            continue;
        }
        if (!table) strbuf_add_str(out, "\n| flag | environment | default | meaning |\n|---|---|---|---|\n");
        table = true;
        add_markdown_row(spec, row, out);
    }
}

/* roff: backslashes and dashes are escaped, and no line may begin with a control character. */
static void add_roff(struct strbuf *out, const char *s) {
    bool line_begin = true;
    for (; *s; s++) {
        if (line_begin && (*s == '.' || *s == '\'')) strbuf_add_str(out, "\\&");
        if (*s == '\\') {
            strbuf_add_str(out, "\\e");
        } else if (*s == '-') {
            strbuf_add_str(out, "\\-");
        } else {
            strbuf_add_char(out, *s);
        }
        line_begin = *s == '\n';
    }
    strbuf_add_char(out, '\n');
}

static void add_roff_row(const struct options_spec *spec, const struct option_row *row, struct strbuf *out) {
    struct strbuf text = {0};
    strbuf_add_str(out, ".TP\n.B ");
    add_usage_of(row, &text);
    add_roff(out, strbuf_cstr(&text));
    add_roff(out, row->help);
    strbuf_clear(&text);
    add_facts(spec, row, &text);
    add_roff(out, strbuf_cstr(&text));
    strbuf_free(&text);
}

void options_help_man(const struct options_spec *spec, struct strbuf *out) {
    strbuf_printf(out, ".TH %s 1 \"\" \"Choir %s\"\n.SH NAME\n", spec->program, CHOIR_VERSION);
    strbuf_printf(out, "%s \\- ", spec->program);
    add_roff(out, spec->summary);
    strbuf_add_str(out, ".SH SYNOPSIS\n");
    add_roff(out, spec->usage);
    if (spec->description) {
        strbuf_add_str(out, ".SH DESCRIPTION\n");
        add_roff(out, spec->description);
    }
    strbuf_add_str(out, ".SH OPTIONS\n");
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type != OPTION_TYPE_GROUP) {
            add_roff_row(spec, row, out);
            continue;
        }
        strbuf_add_str(out, ".SS ");
        add_roff(out, row->flag);
        if (row->help) add_roff(out, row->help);
    }
    strbuf_add_str(out, ".TP\n.B \\-\\-config FILE\nRead options from FILE, one name = value a line.\n");
    if (spec->examples) {
        strbuf_add_str(out, ".SH EXAMPLES\n.nf\n");
        add_roff(out, spec->examples);
        strbuf_add_str(out, ".fi\n");
    }
}

void options_dump(const struct options_spec *spec, const void *fields, const struct options_store *store,
                  struct strbuf *out) {
    static const char *const sources[] = {"default", "config file", "environment", "flag"};
    for (size_t i = 0; i < spec->n_rows; i++) {
        const struct option_row *row = &spec->rows[i];
        if (row->type == OPTION_TYPE_GROUP) continue;
        strbuf_printf(out, "%s = ", row->flag);
        options_print_value(row, fields, out);
        strbuf_printf(out, "  # %s\n", sources[store->sources[i]]);
    }
}
