/* doc_tables.c - prints docs/metrics-choird.md and docs/errors.md from the tables that the programs are built from. */
#include "common/err.h"
#include "common/metrics.h"

#include <stdio.h>
#include <string.h>

static const struct metric_info metrics[] = {
#define METRIC METRIC_INFO
#include "server/metrics.def"
#undef METRIC
};

static void print_metrics(void) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    printf("# Metrics of choird\n\n`GET /metrics`, Prometheus text format. Made from `server/metrics.def` by `scripts/docs`.\n"
           "The second name is vLLM's for the same value, so that dashboards made for it work unchanged.\n\n"
           "| name | also as | kind | labels | is |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < ARRAY_COUNT(metrics); i++) {
        const struct metric_info *m = &metrics[i];
        printf("| `%s` | %s%s%s | %s | %s | %s |\n", m->name, m->alias ? "`" : "", m->alias ? m->alias : "", m->alias ? "`" : "",
               kinds[m->kind], m->labels ? m->labels : "", m->help);
    }
}

static void print_errors(void) {
    printf("# Errors\n\nEvery error has OpenAI's shape, `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`, on every path.\n"
           "Made from `common/errors.def` by `scripts/docs`.\n\n| HTTP | type | code | when |\n|--:|---|---|---|\n");
    for (int code = ERR_NONE + 1; code < ERR_COUNT; code++) {
        const struct err_info *e = err_info((enum err_code)code);
        printf("| %d | %s | %s | %s |\n", e->http_status, e->type, e->code ? e->code : "null", e->text);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "metrics")) print_metrics();
    else if (argc == 2 && !strcmp(argv[1], "errors")) print_errors();
    else return fprintf(stderr, "usage: doc_tables metrics|errors\n"), 1;
    return 0;
}
