/* err.c - the table behind err.h, and the two ways to fill a struct err. */
#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>

static const struct err_info infos[ERR_COUNT] = {
    [ERR_NONE] = {"NONE", 200, "", NULL, ""},
#define ERR(name, status, type, code, text) [ERR_##name] = {#name, status, type, code, text},
#include "common/errors.def"
#undef ERR
};

const struct err_info *err_info(enum err_code code) {
    ASSERT(code < ERR_COUNT);
    return &infos[code];
}

static void err_fill(struct err *e, enum err_code code, const char *param, const char *fmt, va_list args) {
    e->code = code;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    vsnprintf(e->message, sizeof e->message, fmt, args);
}

bool err_set(struct err *e, enum err_code code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    err_fill(e, code, NULL, fmt, args);
    va_end(args);
    return false;
}

bool err_set_param(struct err *e, enum err_code code, const char *param, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    err_fill(e, code, param, fmt, args);
    va_end(args);
    return false;
}
