/* gguf_int.h - the cursor with which gguf.c and gguf_tensors.c walk through a GGUF file. */
#ifndef CHOIR_MODEL_GGUF_INT_H
#define CHOIR_MODEL_GGUF_INT_H

#include "engine/model/tensor_file_int.h"

#include <string.h>

struct cursor {
    const uint8_t *data;
    size_t n, at;
    const char *file;   /* for messages */
    uint64_t n_strings; /* elements of string arrays so far */
    uint32_t alignment;
    struct err *e;
};

static inline bool cursor_has(const struct cursor *c, uint64_t n) {
    return n <= c->n - c->at;
}

/* memcpy of a little-endian number; `what` names it in the message. */
static inline bool cursor_take(struct cursor *c, void *out, size_t n, const char *what) {
    if (!cursor_has(c, n)) return err_set(c->e, ERR_LOAD, "%s ends inside %s (offset %zu)", c->file, what, c->at);
    memcpy(out, c->data + c->at, n);
    c->at += n;
    return true;
}

/* A string with its length in front, left in the mapping. */
static inline bool cursor_string(struct cursor *c, const uint8_t **s, uint64_t *n) {
    uint64_t length;
    if (c->n - c->at < sizeof length) return false;
    memcpy(&length, c->data + c->at, sizeof length);
    if (length > c->n - c->at - sizeof length) return false;
    *s = c->data + c->at + sizeof length;
    *n = length;
    c->at += sizeof length + length;
    return true;
}

/* The cursor stands behind the key values. Fills f's tensors and n_header. */
bool gguf_read_tensors(struct cursor *c, struct tensor_file *f, uint64_t count);

#endif
