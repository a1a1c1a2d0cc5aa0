/* fuzz_main.c - runs a libFuzzer-style target without libFuzzer, with the compiler that builds everything else.
 *
 *   TARGET [seed file or folder] ..
 *
 * First every seed is replayed as it is; then mutants of them run for CHOIR_FUZZ_SECONDS (default 3; 0: replay only),
 * drawn from a generator with a fixed seed (CHOIR_FUZZ_SEED, default 1): the same build tries the same inputs in the
 * same order. When the target and what it tests were compiled with -fsanitize-coverage=trace-pc (gcc and clang have
 * it), mutants that reach new places are kept and mutated further.
 *
 * A target defines LLVMFuzzerTestOneInput, and may define fuzz_words: strings ending with NULL that mutations insert.
 * On a crash, a sanitizer report, or an input that takes longer than INPUT_SECONDS_MAX, the input is written to
 * CHOIR_FUZZ_OUT (default ".")/crash-TARGET and the process fails.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { INPUT_MAX = 1 << 17, POOL_MAX = 20000, INPUT_SECONDS_MAX = 20, COVER_BITS = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern const char *const fuzz_words[] __attribute__((weak));
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));
void __sanitizer_cov_trace_pc(void);

struct input {
    uint8_t *data;
    size_t n;
};
static struct input pool[POOL_MAX];
static size_t n_pool;
static struct input current; /* what a crash is about */
static char crash_path[4096];
static uint64_t random_state;

static uint64_t random_next(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static size_t random_below(size_t n) {
    return n == 0 ? 0 : (size_t)(random_next() % n);
}

/* ---- Coverage: a bit per place reached (hash of the return address; the base is taken off because of ASLR) ---- */

static uint8_t cover[COVER_BITS / 8];
static size_t n_cover;

#ifdef __clang__
__attribute__((no_sanitize("coverage")))
#else
__attribute__((no_sanitize_coverage))
#endif
void __sanitizer_cov_trace_pc(void) {
    uint64_t pc = (uint64_t)(uintptr_t)__builtin_return_address(0) - (uint64_t)(uintptr_t)&__sanitizer_cov_trace_pc;
    uint64_t bit = pc * 0x9e3779b97f4a7c15u >> 44;
    uint8_t mask = (uint8_t)(1u << (bit % 8));
    if (!(cover[bit / 8] & mask)) n_cover++;
    cover[bit / 8] |= mask;
}

/* ---- Crashes ---- */

static void crash_save(void) {
    static bool once;
    if (once || !current.data) return;
    once = true;
    int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return;
    ssize_t written = write(fd, current.data, current.n);
    close(fd);
    (void)written;
    fprintf(stderr, "fuzz: the input is in %s\n", crash_path);
}

static void crash_signal(int signal_number) {
    if (signal_number == SIGALRM) fprintf(stderr, "fuzz: an input takes more than %d s\n", INPUT_SECONDS_MAX);
    crash_save();
    signal(signal_number, SIG_DFL);
    raise(signal_number == SIGALRM ? SIGABRT : signal_number);
}

static void crash_watch(const char *program) {
    const char *folder = getenv("CHOIR_FUZZ_OUT"), *name = strrchr(program, '/');
    snprintf(crash_path, sizeof crash_path, "%s/crash-%s", folder ? folder : ".", name ? name + 1 : program);
    signal(SIGALRM, crash_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(crash_save);
    } else {
        signal(SIGSEGV, crash_signal);
    }
    signal(SIGABRT, crash_signal);
}

/* ---- Running ---- */

static void pool_add(const uint8_t *data, size_t n) {
    if (n_pool == POOL_MAX) return;
    uint8_t *copy = malloc(n + 1);
    if (!copy) return;
    memcpy(copy, data, n);
    pool[n_pool++] = (struct input){copy, n};
}

/* A fresh allocation of the exact size, so that a sanitizer sees one byte too many. */
static void run_one(const uint8_t *data, size_t n) {
    uint8_t *copy = malloc(n > 0 ? n : 1);
    if (!copy) return;
    memcpy(copy, data, n);
    current = (struct input){copy, n};
    alarm(INPUT_SECONDS_MAX);
    LLVMFuzzerTestOneInput(copy, n);
    current.data = NULL;
    free(copy);
}

static void replay_file(const char *path) {
    static uint8_t buffer[INPUT_MAX];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        fprintf(stderr, "fuzz: cannot open %s\n", path);
        exit(1);
    }
    size_t n = 0;
    for (ssize_t got; n < sizeof buffer && (got = read(fd, buffer + n, sizeof buffer - n)) > 0;) n += (size_t)got;
    close(fd);
    run_one(buffer, n);
    pool_add(buffer, n);
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void replay(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
        replay_file(path);
        return;
    }
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, by_name);
    for (int i = 0; i < n; i++) {
        char file[4096];
        int length = snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && length < (int)sizeof file) replay_file(file);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
}

/* ---- Mutations of buffer[n], in place; each returns the new length ---- */

static uint8_t buffer[INPUT_MAX];

static size_t put(size_t n, size_t at, const void *bytes, size_t count, bool insert) {
    if (at > n) at = n;
    if (insert) {
        if (n + count > INPUT_MAX) return n;
        memmove(buffer + at + count, buffer + at, n - at);
        memcpy(buffer + at, bytes, count);
        return n + count;
    }
    if (count > n - at) count = n - at;
    memcpy(buffer + at, bytes, count);
    return n;
}

static size_t mutate_number(size_t n) {
    static const uint64_t edges[] = {0,          1,          2,          3,         4,          7,         8,
                                     16,         31,         32,         63,        64,         127,       128,
                                     255,        256,        65535,      65536,     1u << 20,   INT32_MAX, 1u << 31,
                                     UINT32_MAX, 1ull << 32, 1ull << 60, INT64_MAX, 1ull << 63, UINT64_MAX};
    uint64_t v = edges[random_below(sizeof edges / sizeof edges[0])];
    if (random_below(4) == 0) v = (uint64_t)0 - v;
    return put(n, random_below(n + 1), &v, (size_t)1 << random_below(4), random_below(8) == 0);
}

/* Adds a little to a number that is there: off-by-one of lengths and counts. */
static size_t mutate_near(size_t n) {
    size_t width = (size_t)1 << random_below(4), at = random_below(n);
    uint64_t v = 0;
    if (width > n - at) return n;
    memcpy(&v, buffer + at, width);
    v += random_below(9) - 4;
    return put(n, at, &v, width, false);
}

static size_t mutate_word(size_t n) {
    static const char *const digits[] = {
        "0",   "-1",   "1",  "9",  "2147483648", "4294967296", "9223372036854775807", "18446744073709551616", "1e400",
        "0.5", "null", "[]", "{}", "\"\"",       NULL};
    const char *const *words = fuzz_words && random_below(2) ? fuzz_words : digits;
    size_t count = 0;
    while (words[count]) count++;
    const char *word = words[random_below(count)];
    return put(n, random_below(n + 1), word, strlen(word), random_below(4) != 0);
}

static size_t mutate_chunk(size_t n) {
    size_t from = random_below(n), count = 1 + random_below(n - from < 256 ? n - from : 256);
    static uint8_t chunk[256];
    switch (random_below(4)) {
    case 0: /* cut out */
        memmove(buffer + from, buffer + from + count, n - from - count);
        return n - count;
    case 1: /* cut the end off */
        return from;
    case 2: /* of another input */ {
        const struct input *other = &pool[random_below(n_pool)];
        if (other->n == 0) return n;
        from = random_below(other->n);
        count = 1 + random_below(other->n - from < sizeof chunk ? other->n - from : sizeof chunk);
        memcpy(chunk, other->data + from, count);
        break;
    }
    default:
        memcpy(chunk, buffer + from, count > sizeof chunk ? sizeof chunk : count);
    }
    return put(n, random_below(n + 1), chunk, count, random_below(2) == 0);
}

static size_t mutate(size_t n) {
    for (size_t left = 1 + random_below(1u << random_below(4)); left > 0; left--) {
        if (n == 0) {
            n = mutate_number(0);
            continue;
        }
        switch (random_below(6)) {
        case 0:
            buffer[random_below(n)] ^= (uint8_t)(1u << random_below(8));
            break;
        case 1:
            buffer[random_below(n)] = (uint8_t)random_next();
            break;
        case 2:
            n = mutate_number(n);
            break;
        case 3:
            n = mutate_near(n);
            break;
        case 4:
            n = mutate_word(n);
            break;
        default:
            n = mutate_chunk(n);
            break;
        }
    }
    return n;
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    const char *seconds = getenv("CHOIR_FUZZ_SECONDS"), *seed = getenv("CHOIR_FUZZ_SEED");
    crash_watch(argv[0]);
    random_state = seed ? strtoull(seed, NULL, 10) : 1;
    for (int i = 1; i < argc; i++) replay(argv[i]);
    uint64_t n_replayed = n_pool, n_mutants = 0;
    if (n_pool == 0) {
        run_one(NULL, 0);
        pool_add((const uint8_t *)"", 0);
    }
    double end = seconds_now() + (seconds ? strtod(seconds, NULL) : 3.0);
    while (seconds_now() < end) {
        for (int burst = 0; burst < 64; burst++, n_mutants++) {
            const struct input *from = &pool[random_below(n_pool)];
            memcpy(buffer, from->data, from->n);
            size_t n = mutate(from->n), before = n_cover;
            run_one(buffer, n);
            if (n_cover > before) pool_add(buffer, n);
        }
    }
    alarm(0);
    printf("fuzz: %" PRIu64 " seeds replayed, %" PRIu64 " mutants run (%" PRIu64
           " executions), %zu inputs kept, %zu places reached\n",
           n_replayed, n_mutants, n_replayed + n_mutants, n_pool, n_cover);
    for (size_t i = 0; i < n_pool; i++) free(pool[i].data);
    return 0;
}
