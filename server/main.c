/* main.c - choird: options, then server_run. */
#include "server/server.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    static struct server s; /* large, and lives as long as the process */
    struct options_store store = {0};
    switch (options_parse(&server_options_spec, &s.options, &store, argc, argv)) {
    case OPTIONS_DONE:
        return 0;
    case OPTIONS_WRONG:
        return 1;
    case OPTIONS_RUN:
        break;
    }
    struct err e;
    int status = 1;
    atomic_store(&s.load_stage, "loading");
    if (server_configure(&s, &e)) {
        stats_open(&s);
        status = server_run(&s);
        stats_close(&s);
    } else {
        fprintf(stderr, "choird: %s\n", e.message);
    }
    free(s.api_key_text);
    options_free(&store);
    return status;
}
