/* salt.h - which requests may share cached prefixes: those with the same API key and the same cache_salt.
 *
 * Both go through SipHash-2-4 with a key that is drawn at start, so that nobody outside can make two salts meet.
 * Without a key and a salt there is one common domain. Any thread.
 */
#ifndef CHOIR_SERVER_SALT_H
#define CHOIR_SERVER_SALT_H

#include "common/base.h"

struct salt_key {
    uint64_t k[2];
};
void salt_init(struct salt_key *key);
/* key_index: which API key let the request in, -1: none. salt NULL: none given. */
uint64_t salt_of(const struct salt_key *key, int key_index, const char *salt, size_t n_salt);

/* Aumasson, Bernstein: SipHash, a fast short-input PRF (2012). Exposed for its test vector. */
uint64_t siphash24(const uint64_t k[2], const void *bytes, size_t n);

#endif
