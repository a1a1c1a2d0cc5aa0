/* test_random.c - identifiers and the comparison of secrets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/random.h"

#include <string.h>

static void secrets_are_equal_only_when_they_are(void **state) {
    static const char *const keys[] = {"", "a", "b", "ab", "aa", "aaa", "abab", "key", "kez", "ley", "key\x01"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        for (size_t j = 0; j < ARRAY_COUNT(keys); j++)
            assert_int_equal(secret_equal(keys[i], strlen(keys[i]), keys[j], strlen(keys[j])), i == j);
}

static void ids_have_their_form_and_differ(void **state) {
    char ids[200][40];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        random_id(ids[i], sizeof ids[i], "req-", 16);
        assert_int_equal(strlen(ids[i]), 4 + 32);
        assert_memory_equal(ids[i], "req-", 4);
        assert_int_equal(strspn(ids[i] + 4, "0123456789abcdef"), 32);
        for (size_t j = 0; j < i; j++) assert_string_not_equal(ids[i], ids[j]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(secrets_are_equal_only_when_they_are),
        cmocka_unit_test(ids_have_their_form_and_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
