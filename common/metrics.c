/* metrics.c - the registry and its text form (metrics.h).
 *
 * Design: a metric owns a list of series, one per combination of label values, newest first. The list only grows,
 * so readers walk it without a lock. Values are doubles kept as bits in 64-bit atomics; adding is a compare-and-swap.
 * A histogram's series keeps one cell per bucket (not cumulative), and the sum; the count is the sum of its cells,
 * so that _count always equals the +Inf bucket of the same scrape.
 * Threads: any. `grow` of a metric guards only the insertion of a series.
 * Invariants: 1. a published series never moves and never changes its labels.  2. its head pointer is stored with
 * release and read with acquire, after the series is complete.  3. n_series <= METRIC_SERIES_MAX + 1 ("other").
 */
#include "common/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CELL_VALUE 0 /* of counters and gauges; the sum of a histogram, whose buckets follow */

struct series {
    struct series *next;
    char *values[METRIC_LABELS_MAX];
    _Atomic uint64_t cells[]; /* doubles as bits; relaxed: each is a number of its own */
};

struct metric {
    const struct metric_info *info;
    size_t n_labels, n_buckets;
    char *label_names; /* cut into n_labels strings */
    const char *labels[METRIC_LABELS_MAX];
    double buckets[METRIC_BUCKETS_MAX];
    char *bucket_texts; /* as they stand in the table: "0.005" is not to become 0.0050000000000000001 */
    const char *bucket_text[METRIC_BUCKETS_MAX];
    struct series *_Atomic head; /* released by series_insert, acquired by every walk */
    pthread_mutex_t grow;        /* guards n_series and the insertion */
    size_t n_series;
};

struct metrics {
    struct metric *all; /* [n] */
    size_t n;
    struct strbuf constant_labels; /* `model_name="x"`, escaped, or empty */
};

/* ---- the table ---- */

static bool name_ok(const char *name) {
    if (!name[0] || (name[0] >= '0' && name[0] <= '9')) return false;
    for (const char *p = name; *p; p++) {
        const bool letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_' || *p == ':';
        if (!letter && !(*p >= '0' && *p <= '9')) return false;
    }
    return true;
}

/* Cuts `list` at its commas in place; returns the number of parts. */
static size_t split(char *list, const char **parts, size_t parts_max) {
    size_t n = 0;
    for (char *p = list; p;) {
        char *comma = strchr(p, ',');
        if (comma) *comma = '\0';
        ASSERT(n < parts_max && *p);
        parts[n++] = p;
        p = comma ? comma + 1 : NULL;
    }
    return n;
}

static void *alloc_zeroed(size_t n, size_t bytes) {
    void *p = calloc(n, bytes);
    ASSERT(p); /* at start, and later at most METRIC_SERIES_MAX small ones */
    return p;
}

static char *copy_string(const char *s) {
    char *copy = strdup(s);
    ASSERT(copy);
    return copy;
}

static void metric_init(struct metric *m, const struct metric_info *info) {
    m->info = info;
    ASSERT(name_ok(info->name) && (!info->alias || name_ok(info->alias)) && info->help);
    if (info->labels) {
        m->label_names = copy_string(info->labels);
        m->n_labels = split(m->label_names, m->labels, METRIC_LABELS_MAX);
        for (size_t i = 0; i < m->n_labels; i++) ASSERT(name_ok(m->labels[i]) && strcmp(m->labels[i], "le") != 0);
    }
    if (info->kind == METRIC_KIND_HISTOGRAM) {
        ASSERT(info->buckets);
        m->bucket_texts = copy_string(info->buckets);
        m->n_buckets = split(m->bucket_texts, m->bucket_text, METRIC_BUCKETS_MAX);
        for (size_t i = 0; i < m->n_buckets; i++) {
            char *end;
            m->buckets[i] = strtod(m->bucket_text[i], &end);
            ASSERT(*end == '\0' && (i == 0 || m->buckets[i] > m->buckets[i - 1]));
        }
    } else {
        ASSERT(!info->buckets);
    }
    pthread_mutex_init(&m->grow, NULL);
}

static void names_check(const struct metrics *m) {
    for (size_t i = 0; i < m->n; i++) {
        const struct metric_info *a = m->all[i].info;
        ASSERT(!a->alias || strcmp(a->alias, a->name) != 0);
        for (size_t j = i + 1; j < m->n; j++) {
            const struct metric_info *b = m->all[j].info;
            ASSERT(strcmp(a->name, b->name) != 0);
            ASSERT(!a->alias || (strcmp(a->alias, b->name) != 0 && (!b->alias || strcmp(a->alias, b->alias) != 0)));
            ASSERT(!b->alias || strcmp(a->name, b->alias) != 0);
        }
    }
}

static void add_label(struct strbuf *b, const char *name, const char *value) {
    if (b->count > 0) strbuf_add_char(b, ',');
    strbuf_add_str(b, name);
    strbuf_add_str(b, "=\"");
    for (size_t i = 0, n = strlen(value); i < n;) {
        bool valid;
        const size_t length = utf8_length(value + i, n - i, &valid);
        if (!valid) {
            strbuf_add_str(b, "\xef\xbf\xbd");
        } else if (value[i] == '\n') {
            strbuf_add_str(b, "\\n");
        } else {
            if (value[i] == '"' || value[i] == '\\') strbuf_add_char(b, '\\');
            strbuf_add(b, value + i, length);
        }
        i += length;
    }
    strbuf_add_char(b, '"');
}

struct metrics *metrics_open(const struct metric_info *infos, size_t n_infos, const struct metric_label *labels,
                             size_t n_labels) {
    struct metrics *m = alloc_zeroed(1, sizeof *m);
    m->all = alloc_zeroed(n_infos ? n_infos : 1, sizeof *m->all);
    m->n = n_infos;
    for (size_t i = 0; i < n_infos; i++) metric_init(&m->all[i], &infos[i]);
    names_check(m);
    for (size_t i = 0; i < n_labels; i++) {
        ASSERT(name_ok(labels[i].name));
        add_label(&m->constant_labels, labels[i].name, labels[i].value);
    }
    return m;
}

void metrics_close(struct metrics *m) {
    if (!m) return;
    for (size_t i = 0; i < m->n; i++) {
        struct metric *metric = &m->all[i];
        struct series *next;
        for (struct series *s = atomic_load(&metric->head); s; s = next) {
            next = s->next;
            for (size_t k = 0; k < metric->n_labels; k++) free(s->values[k]);
            free(s);
        }
        free(metric->label_names);
        free(metric->bucket_texts);
        pthread_mutex_destroy(&metric->grow);
    }
    strbuf_free(&m->constant_labels);
    free(m->all);
    free(m);
}

/* ---- series ---- */

static size_t cells_count(const struct metric *m) {
    return m->info->kind == METRIC_KIND_HISTOGRAM ? m->n_buckets + 2 : 1;
}

static struct series *series_find(struct metric *m, const char *const *values) {
    for (struct series *s = atomic_load_explicit(&m->head, memory_order_acquire); s; s = s->next) {
        size_t i = 0;
        while (i < m->n_labels && strcmp(s->values[i], values[i]) == 0) i++;
        if (i == m->n_labels) return s;
    }
    return NULL;
}

static struct series *series_insert(struct metric *m, const char *const *values) {
    static const char *const others[METRIC_LABELS_MAX] = {"other", "other", "other", "other"};
    pthread_mutex_lock(&m->grow);
    if (m->n_series >= METRIC_SERIES_MAX) values = others;
    struct series *s = series_find(m, values); /* another thread may have been first */
    if (!s) {
        s = alloc_zeroed(1, sizeof *s + cells_count(m) * sizeof s->cells[0]);
        for (size_t i = 0; i < m->n_labels; i++) s->values[i] = copy_string(values[i]);
        s->next = atomic_load_explicit(&m->head, memory_order_relaxed);
        atomic_store_explicit(&m->head, s, memory_order_release);
        m->n_series++;
    }
    pthread_mutex_unlock(&m->grow);
    return s;
}

static struct metric *metric_at(struct metrics *m, size_t id, const char *const *values) {
    ASSERT(id < m->n && (m->all[id].n_labels == 0 || values));
    return &m->all[id];
}

static struct series *series_at(struct metric *m, const char *const *values) {
    struct series *s = series_find(m, values);
    return s ? s : series_insert(m, values);
}

static double cell_get(_Atomic uint64_t *cell) {
    uint64_t bits = atomic_load_explicit(cell, memory_order_relaxed);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static void cell_set(_Atomic uint64_t *cell, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    atomic_store_explicit(cell, bits, memory_order_relaxed);
}

static void cell_add(_Atomic uint64_t *cell, double v) {
    uint64_t before = atomic_load_explicit(cell, memory_order_relaxed), after;
    double sum;
    do {
        memcpy(&sum, &before, sizeof sum);
        sum += v;
        memcpy(&after, &sum, sizeof after);
    } while (!atomic_compare_exchange_weak_explicit(cell, &before, after, memory_order_relaxed, memory_order_relaxed));
}

void metrics_add_labels(struct metrics *m, size_t id, const char *const *values, double v) {
    struct metric *metric = metric_at(m, id, values);
    ASSERT(metric->info->kind == METRIC_KIND_GAUGE || (metric->info->kind == METRIC_KIND_COUNTER && v >= 0));
    cell_add(&series_at(metric, values)->cells[CELL_VALUE], v);
}

void metrics_set_labels(struct metrics *m, size_t id, const char *const *values, double v) {
    struct metric *metric = metric_at(m, id, values);
    ASSERT(metric->info->kind != METRIC_KIND_HISTOGRAM);
    cell_set(&series_at(metric, values)->cells[CELL_VALUE], v);
}

void metrics_observe_labels(struct metrics *m, size_t id, const char *const *values, double v) {
    struct metric *metric = metric_at(m, id, values);
    ASSERT(metric->info->kind == METRIC_KIND_HISTOGRAM);
    struct series *s = series_at(metric, values);
    size_t bucket = 0;
    while (bucket < metric->n_buckets && !(v <= metric->buckets[bucket])) bucket++;
    cell_add(&s->cells[1 + bucket], 1);
    cell_add(&s->cells[CELL_VALUE], v);
}

void metrics_add(struct metrics *m, size_t id, double v) {
    metrics_add_labels(m, id, NULL, v);
}

void metrics_set(struct metrics *m, size_t id, double v) {
    metrics_set_labels(m, id, NULL, v);
}

void metrics_observe(struct metrics *m, size_t id, double v) {
    metrics_observe_labels(m, id, NULL, v);
}

double metrics_get(struct metrics *m, size_t id, const char *const *values) {
    struct metric *metric = metric_at(m, id, values);
    struct series *s = series_find(metric, values);
    return s ? cell_get(&s->cells[CELL_VALUE]) : 0;
}

/* ---- the text form ---- */

static void add_value(struct strbuf *out, double v) {
    if (v != v) {
        strbuf_add_str(out, "NaN");
    } else if (v - v != 0) {
        strbuf_add_str(out, v > 0 ? "+Inf" : "-Inf");
    } else if (v >= 0 && v < 9007199254740992.0 && v == (double)(uint64_t)v) {
        strbuf_add_u64(out, (uint64_t)v);
    } else {
        strbuf_add_double(out, v);
    }
    strbuf_add_char(out, '\n');
}

/* name + suffix {labels, le} value */
static void add_sample(struct strbuf *out, const char *name, const char *suffix, const struct strbuf *labels,
                       const char *le, double v) {
    strbuf_add_str(out, name);
    strbuf_add_str(out, suffix);
    if (labels->count > 0 || le) {
        strbuf_add_char(out, '{');
        strbuf_add(out, strbuf_cstr(labels), labels->count);
        if (le) strbuf_printf(out, "%sle=\"%s\"", labels->count > 0 ? "," : "", le);
        strbuf_add_char(out, '}');
    }
    strbuf_add_char(out, ' ');
    add_value(out, v);
}

static void render_series(const struct metrics *m, const struct metric *metric, struct series *s, const char *name,
                          struct strbuf *labels, struct strbuf *out) {
    strbuf_clear(labels);
    strbuf_add(labels, strbuf_cstr(&m->constant_labels), m->constant_labels.count);
    for (size_t i = 0; i < metric->n_labels; i++) add_label(labels, metric->labels[i], s->values[i]);
    if (metric->info->kind != METRIC_KIND_HISTOGRAM) {
        add_sample(out, name, "", labels, NULL, cell_get(&s->cells[CELL_VALUE]));
        return;
    }
    double count = 0;
    for (size_t i = 0; i <= metric->n_buckets; i++) {
        count += cell_get(&s->cells[1 + i]);
        add_sample(out, name, "_bucket", labels, i < metric->n_buckets ? metric->bucket_text[i] : "+Inf", count);
    }
    add_sample(out, name, "_sum", labels, NULL, cell_get(&s->cells[CELL_VALUE]));
    add_sample(out, name, "_count", labels, NULL, count);
}

static void add_help(struct strbuf *out, const char *help) {
    for (const char *p = help; *p; p++) {
        if (*p == '\\') {
            strbuf_add_str(out, "\\\\");
        } else if (*p == '\n') {
            strbuf_add_str(out, "\\n");
        } else {
            strbuf_add_char(out, *p);
        }
    }
}

static void render_metric(const struct metrics *m, struct metric *metric, const char *name, struct strbuf *labels,
                          struct strbuf *out) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    strbuf_printf(out, "# HELP %s ", name);
    add_help(out, metric->info->help);
    strbuf_printf(out, "\n# TYPE %s %s\n", name, kinds[metric->info->kind]);
    for (struct series *s = atomic_load_explicit(&metric->head, memory_order_acquire); s; s = s->next)
        render_series(m, metric, s, name, labels, out);
}

void metrics_render(struct metrics *m, struct strbuf *out) {
    struct strbuf labels = {0};
    for (size_t i = 0; i < m->n; i++) {
        struct metric *metric = &m->all[i];
        if (metric->n_labels == 0) series_at(metric, NULL); /* shown as 0 before its first use */
        render_metric(m, metric, metric->info->name, &labels, out);
        if (metric->info->alias) render_metric(m, metric, metric->info->alias, &labels, out);
    }
    strbuf_free(&labels);
}
