/* test_http_check.c - the strict head check on blocks as the HTTP library leaves them, without a network.
 *
 * The other half is test_http_vectors.py, where the blocks come from the library itself. Here a stand-in for it cuts
 * heads the way it does; what is checked is that any byte changed in a good head to a NUL, CR, LF or control is
 * refused, and that the fields that decide framing are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http_cut.h"

static bool passes(const char *raw, size_t n, struct http_facts *facts) {
    static struct cut c;
    struct err e;
    return cut_head(&c, raw, n) && http_head_check(&c.head, facts, &e);
}

static const char good[] = "POST /a?x=1&y HTTP/1.1\r\nHost: h:80\r\nX-Y: a b\r\nContent-Length: 12\r\nEmpty:\r\n\r\n";

static void good_head_passes(void **state) {
    struct http_facts facts;
    (void)state;
    assert_true(passes(good, sizeof good - 1, &facts));
    assert_int_equal(facts.content_length, 12);
    assert_false(facts.chunked || facts.http_1_0 || facts.expects_continue);
    assert_string_equal(facts.host, "h:80");
}

static void any_control_byte_anywhere_is_refused(void **state) {
    static const char bytes[] = {0, 1, '\n', '\r', '\v', 0x1f, 0x7f};
    char raw[sizeof good];
    struct http_facts facts;
    (void)state;
    for (size_t i = 0; i + 1 < sizeof good; i++) {
        for (size_t k = 0; k < sizeof bytes; k++) {
            if (good[i] == bytes[k] || good[i] == '\n' || good[i] == '\r') continue;
            memcpy(raw, good, sizeof good);
            raw[i] = bytes[k];
            if (passes(raw, sizeof good - 1, &facts)) fail_msg("byte %d at %zu passed", bytes[k], i);
        }
    }
}

static void any_line_end_but_crlf_is_refused(void **state) {
    char raw[sizeof good];
    struct http_facts facts;
    (void)state;
    for (size_t i = 0; i + 1 < sizeof good; i++) { /* each CR taken out: a bare LF */
        if (good[i] != '\r') continue;
        memcpy(raw, good, i);
        memcpy(raw + i, good + i + 1, sizeof good - i - 1);
        if (passes(raw, sizeof good - 2, &facts)) fail_msg("bare LF at %zu passed", i);
    }
}

static void inserted_nul_anywhere_is_refused(void **state) {
    char raw[sizeof good + 1];
    struct http_facts facts;
    (void)state;
    for (size_t i = 0; i < sizeof good - 2; i++) { /* up to before the last LF */
        memcpy(raw, good, i);
        raw[i] = '\0';
        memcpy(raw + i + 1, good + i, sizeof good - i);
        if (passes(raw, sizeof good, &facts)) fail_msg("NUL at %zu passed", i);
    }
}

static void framing_fields(void **state) {
    struct http_facts facts;
    (void)state;
    static const char *const refused[] = {
        "Content-Length: 5\r\ncontent-length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked, chunked",
        "Content-Length: 1234567890123456",
        "Content-Length: 1 2",
        "Content-Length: ",
        "Transfer-Encoding: chunked\t",
        "Expect: 100-continue\r\nExpect: 100-continue",
        "Host: again",
    };
    static const char *const accepted[] = {"Content-Length: 123456789012345", "TRANSFER-ENCODING: Chunked",
                                           "Expect: 100-Continue"};
    char raw[512];
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        snprintf(raw, sizeof raw, "POST / HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n", refused[i]);
        if (passes(raw, strlen(raw), &facts)) fail_msg("'%s' passed", refused[i]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(accepted); i++) {
        snprintf(raw, sizeof raw, "POST / HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n", accepted[i]);
        if (!passes(raw, strlen(raw), &facts)) fail_msg("'%s' was refused", accepted[i]);
    }
    snprintf(raw, sizeof raw, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_false(passes(raw, strlen(raw), &facts));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_head_passes),
        cmocka_unit_test(any_control_byte_anywhere_is_refused),
        cmocka_unit_test(any_line_end_but_crlf_is_refused),
        cmocka_unit_test(inserted_nul_anywhere_is_refused),
        cmocka_unit_test(framing_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
