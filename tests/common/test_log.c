/* test_log.c - log lines: one per event whatever is in the values, readable by a JSON parser, limited in number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int saved_stderr;
static char captured[1 << 20];

static void capture_begin(void) {
    char path[] = "/tmp/choir-log-XXXXXX";
    const int fd = mkstemp(path);
    unlink(path);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
}

static const char *capture_end(void) {
    const off_t n = lseek(STDERR_FILENO, 0, SEEK_END);
    assert_true(n >= 0 && (size_t)n < sizeof captured);
    assert_int_equal(pread(STDERR_FILENO, captured, (size_t)n, 0), n);
    captured[n] = '\0';
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    return captured;
}

static size_t count_lines(const char *text) {
    size_t n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static const char *const nasty[] = {"a\nERROR http: forged",
                                    "\r\n\r\n",
                                    "x=\"y\" z=1",
                                    "\x1b[31mred\x1b[0m",
                                    "\xff\xfe",
                                    "\xc2\x9b",
                                    "",
                                    "back\\slash",
                                    "{\"level\":\"ERROR\"}",
                                    "\xe2\x82\xac"};

static void values_cannot_forge_lines_in_text(void **state) {
    (void)state;
    log_open(&(struct log_options){.level = LOG_INFO});
    for (size_t i = 0; i < ARRAY_COUNT(nasty); i++) {
        capture_begin();
        log_info("http", nasty[i], "message", LOG_STR("key", nasty[i]), LOG_U64("n", 7), LOG_STR("none", NULL));
        const char *line = capture_end();
        assert_int_equal(count_lines(line), 1);
        for (const char *p = line; p[1]; p++) assert_true((unsigned char)*p >= ' ' && *p != 0x7f);
        assert_non_null(strstr(line, " INFO "));
        assert_non_null(strstr(line, " n=7 none=null\n"));
        assert_null(strstr(line, " ERROR http: forged"));
    }
}

static void json_lines_parse_and_keep_the_values(void **state) {
    (void)state;
    log_open(&(struct log_options){.level = LOG_INFO, .json = true});
    for (size_t i = 0; i < ARRAY_COUNT(nasty); i++) {
        capture_begin();
        log_info("http", "req-1", "message", LOG_STR("key", nasty[i]), LOG_I64("n", -7), LOG_F64("f", 0.5),
                 LOG_BOOL("b", true));
        const char *line = capture_end();
        assert_int_equal(count_lines(line), 1);
        json_t *doc = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(doc);
        const char *value = json_string_value(json_object_get(doc, "key"));
        if (strcmp(nasty[i], "\xff\xfe") != 0) assert_string_equal(value, nasty[i]); /* no UTF-8 comes back replaced */
        assert_string_equal(json_string_value(json_object_get(doc, "request_id")), "req-1");
        assert_int_equal(json_integer_value(json_object_get(doc, "n")), -7);
        assert_true(json_is_true(json_object_get(doc, "b")));
        json_decref(doc);
    }
    log_open(&(struct log_options){.level = LOG_INFO});
}

static void long_lines_stay_whole(void **state) {
    static char big[100000];
    (void)state;
    memset(big, 'x', sizeof big - 1);
    for (int json = 0; json < 2; json++) {
        log_open(&(struct log_options){.level = LOG_INFO, .json = json});
        capture_begin();
        log_info("s", NULL, "m", LOG_STR("a", big), LOG_STR("b", big), LOG_STR("c", big), LOG_STR("d", big),
                 LOG_STR("e", big), LOG_U64("z", 1));
        const char *line = capture_end();
        assert_int_equal(count_lines(line), 1);
        assert_true(strlen(line) <= 4096);
        if (json) {
            json_t *doc = json_loads(line, 0, NULL);
            assert_non_null(doc);
            json_decref(doc);
        }
    }
    log_open(&(struct log_options){.level = LOG_INFO});
}

static void levels(void **state) {
    enum log_level level;
    (void)state;
    assert_true(log_level_parse("WARN", &level) && level == LOG_WARN);
    assert_true(log_level_parse("off", &level) && level == LOG_OFF);
    assert_false(log_level_parse("loud", &level));
    log_open(&(struct log_options){.level = LOG_WARN});
    capture_begin();
    log_debug("s", NULL, "no");
    log_info("s", NULL, "no");
    log_warn("s", NULL, "yes");
    log_error("s", NULL, "yes");
    assert_int_equal(count_lines(capture_end()), 2);
    log_open(&(struct log_options){.level = LOG_OFF});
    capture_begin();
    log_error("s", NULL, "no");
    assert_int_equal(count_lines(capture_end()), 0);
    log_open(&(struct log_options){.level = LOG_INFO});
}

/* A storm is cut to a burst per second, and what was held back is reported with the next line of its kind. */
static void storms_are_limited_and_counted(void **state) {
    (void)state;
    capture_begin();
    for (int i = 0; i < 100000; i++) log_warn("s", NULL, "storm", LOG_I64("i", i));
    const struct timespec second = {.tv_sec = 1, .tv_nsec = 100000000};
    nanosleep(&second, NULL);
    log_warn("s", NULL, "storm");
    const char *lines = capture_end();
    assert_true(count_lines(lines) >= LOG_BURST);
    assert_true(count_lines(lines) < 100 * LOG_BURST);
    assert_non_null(strstr(lines, "suppressed="));
}

static void *writer(void *arg) {
    for (int i = 0; i < 500; i++)
        log_info("thread", arg, "a line of some length", LOG_STR("text", "0123456789abcdefghijklmnopqrstuvwxyz"),
                 LOG_I64("i", i));
    return NULL;
}

static void lines_of_threads_do_not_mix(void **state) {
    pthread_t threads[4];
    (void)state;
    capture_begin();
    /* O_APPEND, as when stderr is redirected with >> or is a pipe: a write is placed as a whole */
    fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, writer, "abcd");
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    char *lines = (char *)capture_end();
    size_t n = 0;
    for (char *line = strtok(lines, "\n"); line; line = strtok(NULL, "\n"), n++) {
        assert_non_null(
            strstr(line, " INFO  thread abcd: a line of some length text=0123456789abcdefghijklmnopqrstuvwxyz i="));
        assert_true(strlen(line) < 140);
    }
    assert_int_equal(n, 2000);
}

/* Row 72: a log that cannot be written is no reason to stop; errno survives. */
static void closed_log_does_no_harm(void **state) {
    const uint64_t dropped = log_dropped_count();
    (void)state;
    capture_begin();
    const int keep = dup(STDERR_FILENO);
    close(STDERR_FILENO);
    errno = 1234;
    log_info("s", NULL, "nobody reads this");
    assert_int_equal(errno, 1234);
    dup2(keep, STDERR_FILENO);
    close(keep);
    capture_end();
    assert_int_equal(log_dropped_count(), dropped + 1);
}

/* A reader that has stopped: the pipe fills up, and the writer must go on (the alarm ends a test that hangs). */
static void full_pipe_blocks_nobody(void **state) {
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    const uint64_t dropped = log_dropped_count();
    const int keep = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    alarm(60);
    for (int i = 0; i < 10000; i++) log_info("s", NULL, "nobody reads this either");
    alarm(0);
    dup2(keep, STDERR_FILENO);
    close(keep);
    close(ends[1]);
    size_t n_lines = 0;
    bool whole = true;
    for (ssize_t n; (n = read(ends[0], captured, sizeof captured - 1)) > 0;) {
        captured[n] = '\0';
        whole = captured[n - 1] == '\n';
        n_lines += count_lines(captured);
    }
    close(ends[0]);
    assert_true(whole && n_lines > 0);
    assert_int_equal(n_lines + (log_dropped_count() - dropped), 10000); /* each line was written or counted */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_cannot_forge_lines_in_text),
        cmocka_unit_test(json_lines_parse_and_keep_the_values),
        cmocka_unit_test(long_lines_stay_whole),
        cmocka_unit_test(levels),
        cmocka_unit_test(storms_are_limited_and_counted),
        cmocka_unit_test(lines_of_threads_do_not_mix),
        cmocka_unit_test(closed_log_does_no_harm),
        cmocka_unit_test(full_pipe_blocks_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
