/* random.c - the kernel's generator and a comparison in constant time. Stateless; any thread. */
#include "common/random.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

void random_bytes(void *out, size_t n) {
    char *p = out;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0) {
            ASSERT(errno == EINTR);
            continue;
        }
        p += got;
        n -= (size_t)got;
    }
}

uint64_t random_u64(void) {
    uint64_t v;
    random_bytes(&v, sizeof v);
    return v;
}

void random_id(char *out, size_t out_bytes, const char *prefix, size_t n_bytes) {
    static const char hex[] = "0123456789abcdef";
    size_t n_prefix = strlen(prefix);
    unsigned char bytes[32];
    ASSERT(n_bytes <= sizeof bytes && n_prefix + 2 * n_bytes < out_bytes);
    random_bytes(bytes, n_bytes);
    memcpy(out, prefix, n_prefix);
    for (size_t i = 0; i < n_bytes; i++) {
        out[n_prefix + 2 * i] = hex[bytes[i] >> 4];
        out[n_prefix + 2 * i + 1] = hex[bytes[i] & 15];
    }
    out[n_prefix + 2 * n_bytes] = '\0';
}

bool secret_equal(const char *a, size_t n_a, const char *b, size_t n_b) {
    /* volatile: the compiler must not turn the loop into an early exit */
    volatile unsigned char differ = n_a != n_b;
    for (size_t i = 0; i < n_a; i++) {
        unsigned char other = n_b > 0 ? (unsigned char)b[i % n_b] : 0;
        differ = (unsigned char)(differ | ((unsigned char)a[i] ^ other));
    }
    return differ == 0;
}
