/* err.h - how a failure travels: a code from errors.def and a detail in the caller's `struct err`.
 *
 * Functions that can fail on account of a file, a request or a person return bool (true: done) or a
 * pointer (NULL: failed), and take `struct err *` last, which is never NULL and is written on failure only.
 */
#ifndef CHOIR_COMMON_ERR_H
#define CHOIR_COMMON_ERR_H

#include "common/base.h"

enum err_code {
    ERR_NONE,
#define ERR(name, status, type, code, text) ERR_##name,
#include "common/errors.def"
#undef ERR
    ERR_COUNT
};

struct err {
    enum err_code code;
    char param[128];   /* field path in the request, or "" */
    char message[640]; /* for the person who sent it; never pointers, local paths or other people's text */
};

struct err_info {
    const char *name;
    int http_status;
    const char *type;
    const char *code; /* or NULL */
    const char *text;
};
const struct err_info *err_info(enum err_code code);

/* Both write *e and return false, so that `return err_set(...)` reads well. param may be NULL. */
bool err_set(struct err *e, enum err_code code, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool err_set_param(struct err *e, enum err_code code, const char *param, const char *fmt, ...) PRINTF_LIKE(4, 5);

#endif
