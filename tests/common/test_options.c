/* test_options.c - from table to struct: sources and their order, every type's limits, errors that help. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS                                                                                                           \
    OPTION_GROUP("Model", "What is served.")                                                                           \
    OPTION(PATH, model, "model", NULL, 0, 0, "MODEL", "The model file.")                                               \
    OPTION(U32, max_seqs, "max-seqs", "64", 1, 1024, "N", "Sequences at the same time.")                               \
    OPTION(U64, tokens, "queue-tokens", "100000", 1, 1e15, "N", "Tokens that may wait.")                               \
    OPTION(SIZE, memory, "kv-memory", "512M", 1048576, 1e13, "SIZE", "Memory of the KV cache.")                        \
    OPTION(TIME, grace, "grace", "2s", 0.001, 3600, "TIME", "How long to drain.")                                      \
    OPTION(FLOAT, ratio, "ratio", "0.5", -1, 1, "X", "A ratio.")                                                       \
    OPTION(BOOL, prefix_cache, "prefix-cache", "true", 0, 0, NULL, "Reuse prefixes.")                                  \
    OPTION_GROUP("Network", NULL)                                                                                      \
    OPTION(STRING, host, "host", "127.0.0.1", 0, 0, "HOST", "Where to listen.")                                        \
    OPTION(CHOICE, isa, "isa", "auto", 0, 0, "auto|scalar|avx2|avx512", "Instruction set.")                            \
    OPTION(LIST, origins, "cors", NULL, 0, 0, "ORIGIN", "Allowed origin.")                                             \
    OPTION(SECRET, keys, "api-key", NULL, 0, 0, "KEY", "Key of the API.")

struct fields {
#define OPTION_GROUP(title, help)
#define OPTION OPTION_FIELD
    ROWS
#undef OPTION
#undef OPTION_GROUP
};
static const struct option_row rows[] = {
#define OPTION_GROUP OPTION_GROUP_ROW
#define OPTION(...) OPTION_ROW(struct fields, __VA_ARGS__)
    ROWS
#undef OPTION
#undef OPTION_GROUP
};
static const struct options_spec spec = {.program = "choird",
                                         .usage = "choird MODEL [options]",
                                         .summary = "serves a model",
                                         .examples = "  choird model.gguf",
                                         .positional = "model",
                                         .rows = rows,
                                         .n_rows = ARRAY_COUNT(rows)};

struct loaded {
    struct fields f;
    struct options_store store;
    struct err e;
    bool ok;
};

/* Arguments and environment are one string each, parts separated by '\x1f'. */
static struct loaded load(const char *arguments, const char *environment) {
    static char args[8192], env[8192];
    static char *argv[64], *envp[64];
    struct loaded l = {.store = {0}};
    int argc = 0, n_env = 0;
    memset(&l.f, 0xa5, sizeof l.f); /* no field may stay as it was */
    snprintf(args, sizeof args, "%s", arguments);
    snprintf(env, sizeof env, "%s", environment);
    argv[argc++] = "choird";
    for (char *p = strtok(args, "\x1f"); p; p = strtok(NULL, "\x1f")) argv[argc++] = p;
    for (char *p = strtok(env, "\x1f"); p; p = strtok(NULL, "\x1f")) envp[n_env++] = p;
    argv[argc] = envp[n_env] = NULL;
    l.ok = options_load(&spec, &l.f, &l.store, argc, argv, envp, &l.e);
    return l;
}
#define _ "\x1f"

static void defaults_come_from_the_table(void **state) {
    (void)state;
    struct loaded l = load("", "");
    assert_true(l.ok);
    assert_null(l.f.model);
    assert_int_equal(l.f.max_seqs, 64);
    assert_int_equal(l.f.memory, 512u << 20);
    assert_int_equal(l.f.grace, 2000000000u);
    assert_true(l.f.ratio == 0.5);
    assert_true(l.f.prefix_cache);
    assert_string_equal(l.f.host, "127.0.0.1");
    assert_string_equal(l.f.isa, "auto");
    assert_int_equal(l.f.origins.count + l.f.keys.count, 0);
    assert_int_equal(options_source(&spec, &l.store, "host"), OPTION_DEFAULT);
    options_free(&l.store);
}

static char *config_file(const char *text) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/choir-options-%d.conf", (int)getpid());
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void flag_beats_environment_beats_file_beats_default(void **state) {
    char args[256];
    (void)state;
    const char *path =
        config_file("# comment\n\nmax-seqs = 10\nhost = file  # why\nisa=avx2\n cors = http://a\ncors=http://b\n"
                    "api-key = \"with # and space \"\n");
    snprintf(args, sizeof args, "--config" _ "%s" _ "--max-seqs" _ "30" _ "--cors=http://z", path);
    struct loaded l = load(args, "CHOIR_MAX_SEQS=20" _ "CHOIR_HOST=environment" _ "CHOIR_CORS=http://m,http://n");
    if (!l.ok) fail_msg("%s", l.e.message);
    assert_int_equal(l.f.max_seqs, 30);
    assert_string_equal(l.f.host, "environment");
    assert_string_equal(l.f.isa, "avx2");
    assert_int_equal(l.f.origins.count, 1); /* a stronger source replaces a list */
    assert_string_equal(l.f.origins.items[0], "http://z");
    assert_string_equal(l.f.keys.items[0], "with # and space ");
    assert_int_equal(options_source(&spec, &l.store, "max-seqs"), OPTION_FLAG);
    assert_int_equal(options_source(&spec, &l.store, "host"), OPTION_ENVIRONMENT);
    assert_int_equal(options_source(&spec, &l.store, "isa"), OPTION_CONFIG);
    options_free(&l.store);
    snprintf(args, sizeof args, "CHOIR_CONFIG=%s", path);
    l = load("", args);
    assert_true(l.ok);
    assert_int_equal(l.f.max_seqs, 10);
    assert_int_equal(l.f.origins.count, 2);
    assert_string_equal(l.f.origins.items[1], "http://b");
    options_free(&l.store);
    l = load("", "CHOIR_CORS=http://m,http://n" _ "CHOIR_HOST=");
    assert_int_equal(l.f.origins.count, 2);
    assert_string_equal(l.f.host, "127.0.0.1"); /* set to nothing is not set */
    options_free(&l.store);
    unlink(path);
}

static void forms_of_flags(void **state) {
    (void)state;
    struct loaded l = load("model.gguf" _ "--max-seqs=7" _ "--no-prefix-cache" _ "--api-key" _ "a" _ "--api-key=b,c" _
                           "--ratio" _ "-0.25",
                           "");
    if (!l.ok) fail_msg("%s", l.e.message);
    assert_string_equal(l.f.model, "model.gguf");
    assert_int_equal(l.f.max_seqs, 7);
    assert_false(l.f.prefix_cache);
    assert_int_equal(l.f.keys.count, 2);
    assert_string_equal(l.f.keys.items[1], "b,c");
    assert_true(l.f.ratio == -0.25);
    options_free(&l.store);
    l = load("--prefix-cache=off" _ "--max-seqs" _ "1" _ "--max-seqs" _ "2" _ "--" _ "--odd-name", "");
    assert_true(l.ok && !l.f.prefix_cache);
    assert_int_equal(l.f.max_seqs, 2);
    assert_string_equal(l.f.model, "--odd-name");
    options_free(&l.store);
}

static void values_with_units(void **state) {
    static const struct {
        const char *text;
        uint64_t bytes, ns;
    } cases[] = {
        {"1048576", 1048576, 0},       {"2G", (uint64_t)2 << 30, 0}, {"1.5g", 3u << 29, 0},   {"64 MiB", 64u << 20, 0},
        {"3TB", (uint64_t)3 << 40, 0}, {"250ms", 0, 250000000},      {"1.5s", 0, 1500000000}, {"2m", 0, 120000000000},
        {"1h", 0, 3600000000000},      {"10", 0, 10000000000},       {"1500us", 0, 1500000},
    };
    char args[64];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        snprintf(args, sizeof args, "--%s=%s", cases[i].bytes ? "kv-memory" : "grace", cases[i].text);
        struct loaded l = load(args, "");
        if (!l.ok) fail_msg("%s", l.e.message);
        assert_true(cases[i].bytes ? l.f.memory == cases[i].bytes : l.f.grace == cases[i].ns);
        options_free(&l.store);
    }
}

static void assert_fails(const char *args, const char *env, const char *expected) {
    struct loaded l = load(args, env);
    if (l.ok) fail_msg("'%s' was accepted", args);
    if (!strstr(l.e.message, expected)) fail_msg("'%s': '%s' lacks '%s'", args, l.e.message, expected);
    assert_non_null(strchr(l.e.message, '\n')); /* cause, line break, hint */
    options_free(&l.store);
}

static void wrong_values_are_refused_with_a_hint(void **state) {
    static const char *const numbers[] = {"",
                                          "-1",
                                          "+1",
                                          "1.0",
                                          "0x10",
                                          "1e3",
                                          " 1",
                                          "1 ",
                                          "abc",
                                          "0",
                                          "1025",
                                          "4294967360",
                                          "99999999999999999999",
                                          "\xc2\xb2",
                                          "1_000"};
    static const char *const sizes[] = {"", "-1M", "1Q", "M", "1MM", "nan", "inf", "1e30G", "100", "0x1G", "1..5G"};
    static const char *const times[] = {"", "-1s", "1x", "s", "0", "2h", "nan", "0.1us"};
    static const char *const ratios[] = {"", "nan", "inf", "-inf", "1.5", "0x1p-1", "1,5", "."};
    char args[128];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        snprintf(args, sizeof args, "--max-seqs=%s", numbers[i]);
        assert_fails(args, "", "a whole number from 1 to 1024");
    }
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        snprintf(args, sizeof args, "--kv-memory=%s", sizes[i]);
        assert_fails(args, "", "a size such as 512M or 2G from 1M to");
    }
    for (size_t i = 0; i < ARRAY_COUNT(times); i++) {
        snprintf(args, sizeof args, "--grace=%s", times[i]);
        assert_fails(args, "", "a time such as 250ms, 2s or 5m from 1ms to 3600s");
    }
    for (size_t i = 0; i < ARRAY_COUNT(ratios); i++) {
        snprintf(args, sizeof args, "--ratio=%s", ratios[i]);
        assert_fails(args, "", "a number from -1 to 1");
    }
    assert_fails("--isa=sse", "", "one of auto, scalar, avx2, avx512");
    assert_fails("--isa=auto|scalar", "", "one of auto");
    assert_fails("--prefix-cache=maybe", "", "true or false");
    assert_fails("", "CHOIR_MAX_SEQS=many", "CHOIR_MAX_SEQS: 'many'");
}

static void unknown_names_suggest_the_nearest(void **state) {
    (void)state;
    assert_fails("--max-seq=1", "", "Did you mean --max-seqs?");
    assert_fails("--max-sesq" _ "1", "", "Did you mean --max-seqs?");
    assert_fails("--memory=1G", "", "Did you mean --kv-memory?");
    assert_fails("--hsot=x", "", "Did you mean --host?");
    assert_fails("--no-prefix-cahce", "", "is not an option");
    assert_fails("--no-max-seqs", "", "is not an option");
    assert_fails("--frobnicate", "", "--help lists them all");
}

static void wrong_command_lines(void **state) {
    (void)state;
    assert_fails("--max-seqs", "", "--max-seqs needs a value");
    assert_fails("--max-seqs" _ "--host=x", "", "--max-seqs needs a value");
    assert_fails("--config", "", "--config needs a value");
    assert_fails("a.gguf" _ "b.gguf", "", "'b.gguf' is one too many");
    assert_fails("-x", "", "-x is not an option");
    assert_fails("--config=/nonexistent/x", "", "cannot be opened");
}

static void wrong_config_lines_are_named(void **state) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"max-seqs 5\n", ":1: the line is not 'name = value'"},
        {"\n\nmaxseqs = 5\n", ":3: maxseqs is not an option"},
        {"max-seqs = x\n", ":1: max-seqs: 'x'"},
        {"host = \"a\n", ":1: the quoted value of host does not end"},
        {"host = a\nmax-seqs = 1\nhost = b\n", ":3: host is set a second time"},
        {"[section]\n", ":1: the line is not"},
    };
    char args[128];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *path = config_file(cases[i].text);
        snprintf(args, sizeof args, "--config=%s", path);
        assert_fails(args, "", cases[i].expected);
        unlink(path);
    }
}

static void secrets_are_never_printed(void **state) {
    struct strbuf out = {0};
    (void)state;
    struct loaded l = load("--api-key=hunter2" _ "--host=h", "");
    options_dump(&spec, &l.f, &l.store, &out);
    assert_null(strstr(out.data, "hunter2"));
    assert_non_null(strstr(out.data, "api-key = ***  # flag\n"));
    assert_non_null(strstr(out.data, "host = h  # flag\n"));
    assert_non_null(strstr(out.data, "kv-memory = 512M  # default\n"));
    options_free(&l.store);
    strbuf_free(&out);
}

static void an_empty_secret_is_refused(void **state) {
    (void)state;
    assert_fails("--api-key=", "", "is empty");
}

/* Each help form names every flag, environment variable and default of the table. */
static void help_says_all_that_the_table_says(void **state) {
    void (*const forms[])(const struct options_spec *, struct strbuf *) = {options_help, options_help_markdown};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(forms); i++) {
        struct strbuf out = {0};
        forms[i](&spec, &out);
        for (size_t k = 0; k < ARRAY_COUNT(rows); k++) {
            assert_non_null(strstr(out.data, rows[k].flag));
            if (rows[k].default_text) assert_non_null(strstr(out.data, rows[k].default_text));
        }
        assert_non_null(strstr(out.data, "CHOIR_KV_MEMORY"));
        assert_non_null(strstr(out.data, "choird MODEL [options]"));
        assert_non_null(strstr(out.data, "choird model.gguf"));
        strbuf_free(&out);
    }
    struct strbuf out = {0};
    options_help(&spec, &out);
    for (char *line = strtok(out.data, "\n"); line; line = strtok(NULL, "\n")) assert_true(strlen(line) <= 100);
    strbuf_free(&out);
    options_help_man(&spec, &out);
    assert_memory_equal(out.data, ".TH choird 1", 12);
    assert_non_null(strstr(out.data, "\\-\\-max\\-seqs N"));
    strbuf_free(&out);
}

static void nothing_wrong_with_double_dash(void **state) {
    (void)state;
    struct loaded l = load("--", "");
    assert_true(l.ok);
    options_free(&l.store);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_come_from_the_table),
        cmocka_unit_test(flag_beats_environment_beats_file_beats_default),
        cmocka_unit_test(forms_of_flags),
        cmocka_unit_test(values_with_units),
        cmocka_unit_test(wrong_values_are_refused_with_a_hint),
        cmocka_unit_test(unknown_names_suggest_the_nearest),
        cmocka_unit_test(wrong_command_lines),
        cmocka_unit_test(wrong_config_lines_are_named),
        cmocka_unit_test(secrets_are_never_printed),
        cmocka_unit_test(an_empty_secret_is_refused),
        cmocka_unit_test(help_says_all_that_the_table_says),
        cmocka_unit_test(nothing_wrong_with_double_dash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
