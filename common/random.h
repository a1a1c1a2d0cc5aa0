/* random.h - secrets and identifiers: bytes of the kernel's generator, and a comparison that does not tell where
 * two secrets differ. Not for sampling (engine/sampling has its own counter-based generator). Any thread.
 */
#ifndef CHOIR_COMMON_RANDOM_H
#define CHOIR_COMMON_RANDOM_H

#include "common/base.h"

void random_bytes(void *out, size_t n); /* getrandom; cannot fail once the kernel is up, aborts otherwise */
uint64_t random_u64(void);
/* prefix + 2 * n_bytes lower-case hex digits + NUL into out (which must hold them). */
void random_id(char *out, size_t out_bytes, const char *prefix, size_t n_bytes);

/* True when both strings are equal; the time depends on the lengths only. */
bool secret_equal(const char *a, size_t n_a, const char *b, size_t n_b);

#endif
