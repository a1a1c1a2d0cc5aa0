/* salt.c - SipHash-2-4 over (key index, salt); see salt.h. */
#include "server/salt.h"

#include "common/random.h"
#include "server/limits.h"

#include <string.h>

static uint64_t rotl(uint64_t x, unsigned n) {
    return x << n | x >> (64 - n);
}

static void sip_round(uint64_t v[4]) {
    v[0] += v[1], v[1] = rotl(v[1], 13) ^ v[0], v[0] = rotl(v[0], 32);
    v[2] += v[3], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotl(v[1], 17) ^ v[2], v[2] = rotl(v[2], 32);
}

static uint64_t load_le(const unsigned char *p, size_t n) {
    uint64_t x = 0;
    for (size_t i = 0; i < n; i++) x |= (uint64_t)p[i] << (8 * i);
    return x;
}

static void sip_word(uint64_t v[4], uint64_t m) {
    v[3] ^= m;
    sip_round(v);
    sip_round(v);
    v[0] ^= m;
}

uint64_t siphash24(const uint64_t k[2], const void *bytes, size_t n) {
    /* "somepseudorandomlygeneratedbytes", as the paper has it */
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575, k[1] ^ 0x646f72616e646f6d, k[0] ^ 0x6c7967656e657261,
                     k[1] ^ 0x7465646279746573};
    const unsigned char *p = bytes;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) sip_word(v, load_le(p + i, 8));
    sip_word(v, load_le(p + i, n - i) | (uint64_t)n << 56);
    v[2] ^= 0xff;
    for (int r = 0; r < 4; r++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

void salt_init(struct salt_key *key) {
    random_bytes(key->k, sizeof key->k);
}

uint64_t salt_of(const struct salt_key *key, int key_index, const char *salt, size_t n_salt) {
    unsigned char text[5 + CACHE_SALT_BYTES_MAX];
    ASSERT(n_salt <= CACHE_SALT_BYTES_MAX);
    uint32_t index = (uint32_t)key_index;
    memcpy(text, &index, 4);
    text[4] = salt != NULL;
    if (salt) memcpy(text + 5, salt, n_salt);
    return siphash24(key->k, text, 5 + n_salt);
}
