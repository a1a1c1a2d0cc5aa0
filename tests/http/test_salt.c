/* test_salt.c - cache domains: SipHash-2-4 against its paper, and which requests fall into one domain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "server/salt.h"

/* Aumasson and Bernstein, appendix A: key 00 01 .. 0f, message 00 01 .. 0e. */
static void siphash_of_the_paper(void **state) {
    (void)state;
    unsigned char message[15];
    for (unsigned char i = 0; i < sizeof message; i++) message[i] = i;
    const uint64_t key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    assert_true(siphash24(key, message, sizeof message) == 0xa129ca6149be45e5);
}

static void domains(void **state) {
    (void)state;
    struct salt_key k;
    salt_init(&k);
    assert_true(salt_of(&k, 0, "x", 1) == salt_of(&k, 0, "x", 1));
    assert_true(salt_of(&k, 0, "x", 1) != salt_of(&k, 1, "x", 1));
    assert_true(salt_of(&k, 0, "x", 1) != salt_of(&k, 0, "y", 1));
    assert_true(salt_of(&k, -1, NULL, 0) != salt_of(&k, 0, NULL, 0));
    assert_true(salt_of(&k, 0, NULL, 0) != salt_of(&k, 0, "x", 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(siphash_of_the_paper), cmocka_unit_test(domains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
