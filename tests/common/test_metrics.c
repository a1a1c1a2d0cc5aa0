/* test_metrics.c - the registry under threads, and (with --dump) a text for test_metrics_text.py to parse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define ROWS                                                                                                           \
    METRIC(COUNTER, requests, "choir_requests_total", "vllm:requests_total", "route,status", NULL, "Requests.")        \
    METRIC(GAUGE, running, "choir_running", "vllm:num_requests_running", NULL, NULL, "Running\nwith \\ odd help.")     \
    METRIC(HISTOGRAM, ttft, "choir_ttft_seconds", NULL, NULL, "0.005,0.01,0.1,1,10", "Time to first token.")           \
    METRIC(HISTOGRAM, size, "choir_size", "vllm:size", "kind", "1,10", "Sizes.")                                       \
    METRIC(COUNTER, untouched, "choir_untouched_total", NULL, NULL, NULL, "Never touched.")                            \
    METRIC(COUNTER, untouched_labels, "choir_untouched_labels_total", NULL, "a", NULL, "Never touched.")

enum {
#define METRIC METRIC_ENUM
    ROWS
#undef METRIC
        METRIC_COUNT
};
static const struct metric_info infos[] = {
#define METRIC METRIC_INFO
    ROWS
#undef METRIC
};

static struct metrics *open_metrics(void) {
    const struct metric_label labels[] = {{"model_name", "a \"quoted\\\" name\n"}};
    return metrics_open(infos, METRIC_COUNT, labels, 1);
}

static void fill(struct metrics *m) {
    metrics_add_labels(m, METRIC_requests, METRIC_VALUES("/v1/chat", "200"), 1);
    metrics_add_labels(m, METRIC_requests, METRIC_VALUES("/v1/chat", "200"), 2.5);
    metrics_add_labels(m, METRIC_requests, METRIC_VALUES("\xff\n\"\\,}", "\xc3\xa9"), 1e20);
    metrics_set(m, METRIC_running, -3);
    metrics_observe(m, METRIC_ttft, 0.005); /* a bound belongs to its bucket */
    metrics_observe(m, METRIC_ttft, 0.0051);
    metrics_observe(m, METRIC_ttft, 11);
    metrics_observe_labels(m, METRIC_size, METRIC_VALUES("x"), 1);
}

static void values_are_kept(void **state) {
    struct metrics *m = open_metrics();
    (void)state;
    fill(m);
    assert_true(metrics_get(m, METRIC_requests, METRIC_VALUES("/v1/chat", "200")) == 3.5);
    assert_true(metrics_get(m, METRIC_requests, METRIC_VALUES("/v1/chat", "404")) == 0);
    assert_true(metrics_get(m, METRIC_running, NULL) == -3);
    metrics_add(m, METRIC_running, 1);
    assert_true(metrics_get(m, METRIC_running, NULL) == -2);
    metrics_close(m);
}

static void label_combinations_are_bounded(void **state) {
    struct metrics *m = open_metrics();
    struct strbuf out = {0};
    (void)state;
    for (int i = 0; i < 5 * METRIC_SERIES_MAX; i++) {
        char route[32];
        snprintf(route, sizeof route, "/%d", i);
        metrics_add_labels(m, METRIC_requests, METRIC_VALUES(route, "404"), 1);
    }
    metrics_render(m, &out);
    size_t lines = 0;
    for (const char *p = out.data; (p = strstr(p, "\nchoir_requests_total{")); p++) lines++;
    assert_int_equal(lines, METRIC_SERIES_MAX + 1);
    assert_true(metrics_get(m, METRIC_requests, METRIC_VALUES("other", "other")) == 4 * METRIC_SERIES_MAX);
    strbuf_free(&out);
    metrics_close(m);
}

enum { THREADS = 8, ROUNDS = 20000 };

static void *hammer(void *arg) {
    struct metrics *m = arg;
    for (int i = 0; i < ROUNDS; i++) {
        char status[8];
        snprintf(status, sizeof status, "%d", i % 50);
        metrics_add_labels(m, METRIC_requests, METRIC_VALUES("/", status), 1);
        metrics_add(m, METRIC_running, i % 2 ? 1 : -1);
        metrics_observe(m, METRIC_ttft, i % 2);
    }
    return NULL;
}

static void no_update_is_lost_between_threads(void **state) {
    struct metrics *m = open_metrics();
    struct strbuf out = {0};
    pthread_t threads[THREADS];
    double sum = 0;
    (void)state;
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, hammer, m);
    for (int i = 0; i < 20; i++) {
        strbuf_clear(&out);
        metrics_render(m, &out); /* at the same time */
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 50; i++) {
        char status[8];
        snprintf(status, sizeof status, "%d", i);
        sum += metrics_get(m, METRIC_requests, METRIC_VALUES("/", status));
    }
    assert_true(sum == THREADS * ROUNDS);
    assert_true(metrics_get(m, METRIC_running, NULL) == 0);
    assert_true(metrics_get(m, METRIC_ttft, NULL) == THREADS * ROUNDS / 2);
    strbuf_free(&out);
    metrics_close(m);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_kept),
        cmocka_unit_test(label_combinations_are_bounded),
        cmocka_unit_test(no_update_is_lost_between_threads),
    };
    if (argc > 1 && strcmp(argv[1], "--dump") == 0) {
        struct metrics *m = open_metrics();
        struct strbuf out = {0};
        fill(m);
        metrics_render(m, &out);
        fwrite(out.data, 1, out.count, stdout);
        strbuf_free(&out);
        metrics_close(m);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
