/* test_mapping.c - a model file that is cut, replaced or dropped while it is mapped (reliability.md, row 46). */
#include "tests/files/bytes.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { N_ELEMENTS = 1 << 18 };

static const char *big_file(void) {
    struct bytes b = {0};
    uint64_t ne[] = {N_ELEMENTS};
    put_header(&b, 1, 0);
    put_tensor(&b, "weights", 1, ne, 0, 0);
    put_pad(&b, 32);
    bytes_put(&b, NULL, 4 * N_ELEMENTS);
    memset(b.data + b.n - 4 * N_ELEMENTS, 0x11, 4 * N_ELEMENTS);
    const char *path = temp_file(temp_folder(), "victim.gguf", b.data, b.n);
    bytes_free(&b);
    return path;
}

/* Runs fn in a child with its stderr in a pipe; returns wait's status. */
static int run_child(void (*fn)(const char *path), const char *path, char *text, size_t n_text) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        fn(path);
        _exit(77);
    }
    close(ends[1]);
    ssize_t n = 0;
    for (ssize_t got; (got = read(ends[0], text + n, n_text - 1 - (size_t)n)) > 0;) n += got;
    text[n] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void touch_after_cut(const char *path) {
    struct err e;
    struct tensor_file *f = tensor_file_open(path, &e);
    if (!f || truncate(path, 4096) != 0) _exit(78);
    volatile const uint8_t *last = (const uint8_t *)tensor_file_at(f, 0)->data + 4 * N_ELEMENTS - 1;
    (void)*last;
}

static void a_file_cut_while_in_use_ends_with_a_message(void **state) {
    (void)state;
    char text[4096];
    int status = run_child(touch_after_cut, big_file(), text, sizeof text);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_non_null(strstr(text, "victim.gguf"));
    assert_non_null(strstr(text, "was cut or replaced while it was in use"));
    temp_remove();
}

static void touch_of_another_mapping(const char *path) {
    struct err e;
    signal(SIGBUS, SIG_DFL); /* a sanitizer's own handler would report instead */
    struct tensor_file *f = tensor_file_open(path, &e);
    int fd = open(path, O_RDWR);
    if (!f || fd < 0) _exit(78);
    volatile uint8_t *other = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 1 << 20);
    if (truncate(path, 100) != 0) _exit(78);
    (void)*other;
}

static void a_fault_elsewhere_keeps_its_meaning(void **state) {
    (void)state;
    char text[4096];
    int status = run_child(touch_of_another_mapping, big_file(), text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
    assert_null(strstr(text, "victim.gguf"));
    temp_remove();
}

static void changes_of_the_file_are_noticed(void **state) {
    (void)state;
    enum { GROWN, TOUCHED, REPLACED, REMOVED, CHANGES };
    for (int change = 0; change < CHANGES; change++) {
        const char *path = big_file();
        struct err e;
        struct stat st;
        struct tensor_file *f = tensor_file_open(path, &e);
        assert_non_null(f);
        assert_true(tensor_file_unchanged(f));
        assert_int_equal(stat(path, &st), 0);
        if (change == GROWN) assert_int_equal(truncate(path, st.st_size + 1), 0);
        if (change == TOUCHED) {
            struct timespec times[2] = {st.st_atim, {st.st_mtim.tv_sec + 1, st.st_mtim.tv_nsec}};
            assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        }
        if (change == REPLACED) {
            char other[600];
            snprintf(other, sizeof other, "%s.new", path);
            size_t n;
            uint8_t *data = file_read(path, &n);
            FILE *file = fopen(other, "wb");
            assert_true(file && fwrite(data, 1, n, file) == n && fclose(file) == 0);
            assert_int_equal(rename(other, path), 0);
            free(data);
        }
        if (change == REMOVED) assert_int_equal(unlink(path), 0);
        assert_false(tensor_file_unchanged(f));
        tensor_file_close(f);
    }
    temp_remove();
}

static size_t resident_pages(const void *data) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const char *start = (const char *)((uintptr_t)data / page * page);
    FILE *map = fopen("/proc/self/smaps", "r");
    char line[512];
    unsigned long from, to, kib, rss = 0;
    bool here = false;
    assert_non_null(map);
    while (fgets(line, sizeof line, map)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = (unsigned long)(uintptr_t)start >= from && (unsigned long)(uintptr_t)start < to;
        if (here && sscanf(line, "Rss: %lu kB", &kib) == 1) rss = kib;
    }
    fclose(map);
    return rss * 1024 / page;
}

static void a_dropped_tensor_leaves_memory_and_can_be_read_again(void **state) {
    (void)state;
    struct err e;
    struct tensor_file *f = tensor_file_open(big_file(), &e);
    assert_non_null(f);
    const struct tensor *t = tensor_file_at(f, 0);
    const uint8_t *data = t->data;
    unsigned sum = 0;
    for (size_t i = 0; i < t->n_bytes; i += 1024) sum += data[i];
    size_t before = resident_pages(t->data);
    tensor_file_drop(f, t);
    size_t after = resident_pages(t->data);
    assert_true(before >= 256);
    assert_true(after < 16);
    for (size_t i = 0; i < t->n_bytes; i += 1024) sum -= data[i];
    assert_int_equal(sum, 0);
    tensor_file_close(f);
    temp_remove();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_cut_while_in_use_ends_with_a_message),
        cmocka_unit_test(a_fault_elsewhere_keeps_its_meaning),
        cmocka_unit_test(changes_of_the_file_are_noticed),
        cmocka_unit_test(a_dropped_tensor_leaves_memory_and_can_be_read_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
