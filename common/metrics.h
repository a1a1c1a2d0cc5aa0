/* metrics.h - counters, gauges and histograms, declared once per program, written in Prometheus' text form.
 *
 * A program declares its metrics in PROGRAM/metrics.def:
 *
 *     METRIC(COUNTER, requests, "choir_http_requests_total", NULL, "route,status", NULL, "Requests answered.")
 *     METRIC(GAUGE, running, "choir_requests_running", "vllm:num_requests_running", NULL, NULL, "In the batch.")
 *     METRIC(HISTOGRAM, ttft, "choir_ttft_seconds", NULL, NULL, "0.001,0.01,0.1,1,10", "Time to first token.")
 *
 * that is: kind, id, name, alias (a second name for the same values, or NULL), label names separated by commas
 * (or NULL), bucket upper bounds (histograms; +Inf is added), help. From it:
 *
 *     enum {
 *     #define METRIC METRIC_ENUM                            static const struct metric_info infos[] = {
 *     #include "server/metrics.def"                         #define METRIC METRIC_INFO
 *     #undef METRIC                                         #include "server/metrics.def"
 *     METRIC_COUNT };                                       #undef METRIC
 *                                                           };
 * and METRIC_requests, METRIC_running, METRIC_ttft are the ids.
 *
 * Any thread. Updates are atomic adds without a lock; the first use of a label combination takes the metric's lock
 * once. A metric keeps at most METRIC_SERIES_MAX label combinations; further ones are counted together under
 * "other", so that outside input cannot grow the registry without bound.
 */
#ifndef CHOIR_COMMON_METRICS_H
#define CHOIR_COMMON_METRICS_H

#include "common/err.h"
#include "common/strbuf.h"

#define METRIC_SERIES_MAX 512
#define METRIC_LABELS_MAX 4
#define METRIC_BUCKETS_MAX 40
#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

enum metric_kind { METRIC_KIND_COUNTER, METRIC_KIND_GAUGE, METRIC_KIND_HISTOGRAM };

struct metric_info {
    enum metric_kind kind;
    const char *name;
    const char *alias;
    const char *labels;
    const char *buckets;
    const char *help;
};
#define METRIC_ENUM(kind, id, name, alias, labels, buckets, help) METRIC_##id,
#define METRIC_INFO(kind, id, name, alias, labels, buckets, help)                                                      \
    {METRIC_KIND_##kind, name, alias, labels, buckets, help},

/* A label on every line of the output, such as model_name. */
struct metric_label {
    const char *name, *value;
};

struct metrics;
/* infos must live on; labels are copied. ASSERTs that the table is well formed (names, buckets ascending, no name
 * twice). */
struct metrics *metrics_open(const struct metric_info *infos, size_t n_infos, const struct metric_label *labels,
                             size_t n_labels);
void metrics_close(struct metrics *m);

/* Metrics without labels. add: counters (v >= 0) and gauges. set: gauges, and counters that mirror a total kept
 * elsewhere. observe: histograms. */
void metrics_add(struct metrics *m, size_t id, double v);
void metrics_set(struct metrics *m, size_t id, double v);
void metrics_observe(struct metrics *m, size_t id, double v);

/* With labels: one value per label name, in order. */
void metrics_add_labels(struct metrics *m, size_t id, const char *const *values, double v);
void metrics_set_labels(struct metrics *m, size_t id, const char *const *values, double v);
void metrics_observe_labels(struct metrics *m, size_t id, const char *const *values, double v);
#define METRIC_VALUES(...) ((const char *const[]){__VA_ARGS__})

/* The text exposition. A scrape sees each series' own numbers consistent (_bucket, _count), not all at one instant. */
void metrics_render(struct metrics *m, struct strbuf *out);

/* For tests and status pages: current value of a series (sum for a histogram); 0 when never touched. */
double metrics_get(struct metrics *m, size_t id, const char *const *values);

#endif
