/* tensor_file_map.c - mapping a model file, and what happens when somebody cuts it while it is mapped.
 *
 * The kernel raises SIGBUS when a page behind the end of a mapped file is read. guard_* keeps a table of our
 * mappings that a signal handler may read: fixed size, one atomic word per row decides whether the row is valid.
 *
 * Owner: the thread that opens and closes files writes the table; the handler reads it on any thread.
 *
 * Invariants
 * 1. A row's end and message are written before its start, with release order; the handler reads start with
 *    acquire order. A row with start 0 is free. A row is taken by one compare-and-swap (0 -> 1).
 * 2. The handler calls nothing but write, _exit and sigaction.
 * 3. Every mapping is read-only and of the size that fstat reported for the very descriptor that was mapped.
 */
#include "engine/model/tensor_file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GUARD_ROWS = 2 * TENSOR_SHARDS_MAX };

struct guard_row {
    _Atomic uintptr_t start; /* 0: free, 1: being filled. Release by the owner, acquire by the handler. */
    uintptr_t end;
    char message[200];
    size_t n_message;
};
static struct guard_row guard_rows[GUARD_ROWS];
static struct sigaction guard_before; /* written once, before the handler can run */
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;

static void guard_handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (size_t i = 0; i < GUARD_ROWS; i++) {
        struct guard_row *row = &guard_rows[i];
        uintptr_t start = atomic_load_explicit(&row->start, memory_order_acquire);
        if (start <= 1 || at < start || at >= row->end) continue;
        ssize_t written = write(STDERR_FILENO, row->message, row->n_message);
        (void)written;
        _exit(1);
    }
    /* Not ours: the instruction faults again and meets whoever was responsible before. */
    sigaction(signal, &guard_before, NULL);
}

static void guard_install(void) {
    struct sigaction action = {.sa_sigaction = guard_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, NULL, &guard_before);
    sigaction(SIGBUS, &action, NULL);
}

void tensor_file_guard(void) {
    pthread_once(&guard_once, guard_install);
}

static bool guard_add(const struct file_map *m) {
    for (size_t i = 0; i < GUARD_ROWS; i++) {
        struct guard_row *row = &guard_rows[i];
        uintptr_t free_row = 0;
        if (!atomic_compare_exchange_strong(&row->start, &free_row, 1)) continue;
        row->end = (uintptr_t)m->data + m->n;
        int n = snprintf(row->message, sizeof row->message,
                         "choir: the model file '%.120s' was cut or replaced while it was in use\n", m->name);
        row->n_message = size_min((size_t)n, sizeof row->message - 1);
        atomic_store_explicit(&row->start, (uintptr_t)m->data, memory_order_release);
        return true;
    }
    return false;
}

static void guard_remove(const struct file_map *m) {
    for (size_t i = 0; i < GUARD_ROWS; i++) {
        uintptr_t start = (uintptr_t)m->data;
        if (atomic_compare_exchange_strong(&guard_rows[i].start, &start, 0)) return;
    }
}

static bool map_descriptor(struct file_map *m, int fd, struct err *e) {
    if (fstat(fd, &m->st) != 0) return err_set(e, ERR_LOAD, "%s: %s", m->name, strerror(errno));
    if (!S_ISREG(m->st.st_mode)) return err_set(e, ERR_LOAD, "%s is not a regular file", m->name);
    if (m->st.st_size <= 0) return err_set(e, ERR_LOAD, "%s is empty", m->name);
    m->n = (size_t)m->st.st_size;
    void *data = mmap(NULL, m->n, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return err_set(e, ERR_LOAD, "%s cannot be mapped: %s", m->name, strerror(errno));
    m->data = data;
    m->mapped = true;
    if (!guard_add(m)) return err_set(e, ERR_LOAD, "%s: more than %d model files are open", m->name, GUARD_ROWS);
    return true;
}

bool file_map_open(struct file_map *m, const char *path, const char *name, struct err *e) {
    *m = (struct file_map){.name = name};
    tensor_file_guard();
    m->path = strdup(path);
    if (!m->path) return err_set(e, ERR_LOAD, "No memory to open %s", name);
    m->name = m->path + (strlen(path) - strlen(name)); /* name is the tail of path */
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_set(e, ERR_LOAD, "%s cannot be opened: %s", m->name, strerror(errno));
    bool ok = map_descriptor(m, fd, e);
    close(fd);
    return ok;
}

void file_map_close(struct file_map *m) {
    if (m->mapped) {
        guard_remove(m);
        munmap((void *)(uintptr_t)m->data, m->n);
    }
    free(m->path);
    *m = (struct file_map){0};
}

bool file_map_unchanged(const struct file_map *m) {
    if (!m->mapped) return true;
    struct stat now;
    return stat(m->path, &now) == 0 && now.st_dev == m->st.st_dev && now.st_ino == m->st.st_ino &&
           now.st_size == m->st.st_size && now.st_mtim.tv_sec == m->st.st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == m->st.st_mtim.tv_nsec;
}

void file_map_drop(const struct file_map *m, const void *data, size_t n_bytes) {
    if (!m->mapped) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = round_up((uintptr_t)data, page), end = ((uintptr_t)data + n_bytes) / page * page;
    /* Only whole pages of this tensor: the ones it shares with a neighbour stay. */
    if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
}
