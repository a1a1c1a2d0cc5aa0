/* philox.c - Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
 * easy as 1, 2, 3", SC'11, section 4.3). Stateless: the same counter and key give the same words anywhere. */
#include "engine/sampling/sampling.h"

enum { PHILOX_ROUNDS = 10 };

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    const uint32_t mul_a = 0xD2511F53u, mul_b = 0xCD9E8D57u;    /* round multipliers of the paper */
    const uint32_t weyl_a = 0x9E3779B9u, weyl_b = 0xBB67AE85u;  /* key schedule: golden ratio, sqrt(3) - 1 */
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint32_t k[2] = {key[0], key[1]};
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t a = (uint64_t)mul_a * c[0], b = (uint64_t)mul_b * c[2];
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k[0], n2 = (uint32_t)(a >> 32) ^ c[3] ^ k[1];
        c[0] = n0, c[1] = (uint32_t)b, c[2] = n2, c[3] = (uint32_t)a;
        k[0] += weyl_a, k[1] += weyl_b;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}
