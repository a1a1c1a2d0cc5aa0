/* options_value.c - one text into one field: parsing, units, ranges (options.h).
 *
 * Nothing is taken that is not wholly of its type: no sign where none makes sense, no hexadecimal, no infinity, no
 * trailing text. A failure says what the option does take.
 */
#include "common/options_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LIST_ITEMS_MAX 1024

static bool fail(const struct option_place *at, const struct option_row *row, const char *text, const char *problem,
                 struct err *e) {
    struct strbuf takes = {0};
    options_describe_type(row, &takes);
    err_set(e, ERR_BAD_VALUE, "%s: '%.100s' %s.\nIt takes %s.", at->name,
            row->type == OPTION_TYPE_SECRET ? "***" : text, problem, strbuf_cstr(&takes));
    strbuf_free(&takes);
    return false;
}

static bool parse_bool(const char *text, bool *out) {
    static const char *const yes[] = {"true", "1", "on", "yes"}, *const no[] = {"false", "0", "off", "no"};
    for (size_t i = 0; i < ARRAY_COUNT(yes); i++) {
        if (strcasecmp(text, yes[i]) != 0 && strcasecmp(text, no[i]) != 0) continue;
        *out = strcasecmp(text, yes[i]) == 0;
        return true;
    }
    return false;
}

static bool parse_u64(const char *text, uint64_t *out) {
    uint64_t v = 0;
    if (!*text) return false;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || v > (UINT64_MAX - 9) / 10) return false;
        v = v * 10 + (uint64_t)(*p - '0');
    }
    *out = v;
    return true;
}

/* A plain decimal number (no sign unless `sign`, no hex, inf or nan) up to *end. */
static bool parse_decimal(const char *text, bool sign, double *out, const char **end) {
    const char *p = text;
    if (sign && (*p == '-' || *p == '+')) p++;
    if (!(*p >= '0' && *p <= '9') && !(*p == '.' && p[1] >= '0' && p[1] <= '9')) return false;
    if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X')) return false;
    char *stop;
    *out = strtod(text, &stop);
    *end = stop;
    return isfinite(*out);
}

struct unit {
    const char *name;
    double factor;
};

/* number + unit; `plain` is the factor without a unit. */
static bool parse_with_unit(const char *text, const struct unit *units, size_t n_units, double plain, double *out) {
    const char *end;
    double v;
    if (!parse_decimal(text, false, &v, &end)) return false;
    while (*end == ' ') end++;
    double factor = plain;
    if (*end) {
        size_t i = 0;
        while (i < n_units && strcasecmp(end, units[i].name) != 0) i++;
        if (i == n_units) return false;
        factor = units[i].factor;
    }
    *out = v * factor;
    return *out < 9007199254740992.0; /* 2^53: beyond it doubles skip whole numbers */
}

static const struct unit size_units[] = {{"b", 1},
                                         {"k", 1024},
                                         {"kb", 1024},
                                         {"kib", 1024},
                                         {"m", 1048576},
                                         {"mb", 1048576},
                                         {"mib", 1048576},
                                         {"g", 1073741824},
                                         {"gb", 1073741824},
                                         {"gib", 1073741824},
                                         {"t", 1099511627776},
                                         {"tb", 1099511627776},
                                         {"tib", 1099511627776}};
static const struct unit time_units[] = {{"us", 1e3}, {"ms", 1e6},   {"s", 1e9},
                                         {"m", 60e9}, {"h", 3600e9}, {"d", 86400e9}};

static bool in_range(const struct option_row *row, double v) {
    return (row->min == 0 && row->max == 0) || (v >= row->min && v <= row->max);
}

static bool set_number(const struct option_row *row, void *field, const char *text, const struct option_place *at,
                       struct err *e) {
    uint64_t whole = 0;
    double v = 0;
    const char *end = "";
    bool ok;
    switch (row->type) {
    case OPTION_TYPE_SIZE:
        ok = parse_with_unit(text, size_units, ARRAY_COUNT(size_units), 1, &v);
        whole = ok ? (uint64_t)v : 0;
        break;
    case OPTION_TYPE_TIME:
        ok = parse_with_unit(text, time_units, ARRAY_COUNT(time_units), 1e9, &v);
        whole = ok ? (uint64_t)(v + 0.5) : 0;
        v /= 1e9;
        break;
    case OPTION_TYPE_FLOAT:
        ok = parse_decimal(text, true, &v, &end) && !*end;
        break;
    default:
        ok = parse_u64(text, &whole) && (row->type == OPTION_TYPE_U64 || whole <= UINT32_MAX);
        v = (double)whole;
        break;
    }
    if (!ok) return fail(at, row, text, "is not a value of that kind", e);
    if (!in_range(row, v)) return fail(at, row, text, "is out of range", e);
    if (row->type == OPTION_TYPE_FLOAT) {
        *(double *)field = v;
    } else if (row->type == OPTION_TYPE_U32) {
        *(uint32_t *)field = (uint32_t)whole;
    } else {
        *(uint64_t *)field = whole;
    }
    return true;
}

static bool set_choice(const struct option_row *row, void *field, const char *text, struct options_store *store,
                       const struct option_place *at, struct err *e) {
    for (const char *p = row->value_name; p;) {
        const char *bar = strchr(p, '|');
        size_t n = bar ? (size_t)(bar - p) : strlen(p);
        if (strlen(text) == n && strncasecmp(p, text, n) == 0) {
            *(const char **)field = options_copy(store, p, n);
            return true;
        }
        p = bar ? bar + 1 : NULL;
    }
    return fail(at, row, text, "is not one of the names", e);
}

static bool list_add(const struct option_row *row, struct option_list *list, const char *item, size_t n,
                     struct options_store *store, const struct option_place *at, struct err *e) {
    if (n == 0) return true;
    if (list->count >= LIST_ITEMS_MAX) return fail(at, row, item, "is one item too many", e);
    const char **items = options_alloc(store, (list->count + 1) * sizeof *items);
    if (list->count > 0) memcpy(items, list->items, list->count * sizeof *items);
    items[list->count++] = options_copy(store, item, n);
    list->items = items;
    return true;
}

static bool set_list(const struct option_row *row, struct option_list *list, const char *text, bool fresh,
                     struct options_store *store, const struct option_place *at, struct err *e) {
    if (fresh) *list = (struct option_list){0};
    if (at->source != OPTION_ENVIRONMENT && at->source != OPTION_DEFAULT)
        return list_add(row, list, text, strlen(text), store, at, e);
    for (const char *p = text; p;) {
        const char *comma = strchr(p, ',');
        if (!list_add(row, list, p, comma ? (size_t)(comma - p) : strlen(p), store, at, e)) return false;
        p = comma ? comma + 1 : NULL;
    }
    return true;
}

bool option_value_set(const struct options_spec *spec, const struct option_row *row, void *fields,
                      struct options_store *store, const char *text, const struct option_place *at, struct err *e) {
    void *field = (char *)fields + row->offset;
    enum option_source *source = &store->sources[row - spec->rows];
    bool ok = true;
    switch (row->type) {
    case OPTION_TYPE_BOOL:
        ok = parse_bool(text, field) || fail(at, row, text, "is neither true nor false", e);
        break;
    case OPTION_TYPE_U32:
    case OPTION_TYPE_U64:
    case OPTION_TYPE_FLOAT:
    case OPTION_TYPE_SIZE:
    case OPTION_TYPE_TIME:
        ok = set_number(row, field, text, at, e);
        break;
    case OPTION_TYPE_STRING:
    case OPTION_TYPE_PATH:
        *(const char **)field = options_copy(store, text, strlen(text));
        break;
    case OPTION_TYPE_CHOICE:
        ok = set_choice(row, field, text, store, at, e);
        break;
    case OPTION_TYPE_SECRET:
        if (text[0] == '\0' && at->source != OPTION_DEFAULT) { /* of an unset variable: the door must not stand open */
            ok = fail(at, row, text, "is empty; give a value or leave it out", e);
            break;
        }
        ok = set_list(row, field, text, at->source > *source, store, at, e);
        break;
    case OPTION_TYPE_LIST:
        ok = set_list(row, field, text, at->source > *source, store, at, e);
        break;
    case OPTION_TYPE_GROUP:
        break;
    }
    if (ok) *source = at->source;
    return ok;
}

void option_value_clear(const struct option_row *row, void *field) {
    switch (row->type) {
    case OPTION_TYPE_BOOL:
        *(bool *)field = false;
        break;
    case OPTION_TYPE_U32:
        *(uint32_t *)field = 0;
        break;
    case OPTION_TYPE_U64:
    case OPTION_TYPE_SIZE:
    case OPTION_TYPE_TIME:
        *(uint64_t *)field = 0;
        break;
    case OPTION_TYPE_FLOAT:
        *(double *)field = 0;
        break;
    case OPTION_TYPE_STRING:
    case OPTION_TYPE_PATH:
    case OPTION_TYPE_CHOICE:
        *(const char **)field = NULL;
        break;
    case OPTION_TYPE_LIST:
    case OPTION_TYPE_SECRET:
        *(struct option_list *)field = (struct option_list){0};
        break;
    case OPTION_TYPE_GROUP:
        break;
    }
}
