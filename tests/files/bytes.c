/* bytes.c - see bytes.h. */
#include "tests/files/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

void bytes_free(struct bytes *b) {
    free(b->data);
    *b = (struct bytes){0};
}

void bytes_put(struct bytes *b, const void *p, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->data = realloc(b->data, b->cap);
        assert_non_null(b->data);
    }
    if (p)
        memcpy(b->data + b->n, p, n);
    else
        memset(b->data + b->n, 0, n);
    b->n += n;
}

void put_u32(struct bytes *b, uint32_t v) {
    bytes_put(b, &v, sizeof v);
}
void put_u64(struct bytes *b, uint64_t v) {
    bytes_put(b, &v, sizeof v);
}

void put_str(struct bytes *b, const char *s) {
    put_u64(b, strlen(s));
    bytes_put(b, s, strlen(s));
}

void put_pad(struct bytes *b, size_t alignment) {
    if (b->n % alignment != 0) bytes_put(b, NULL, alignment - b->n % alignment);
}

void put_header(struct bytes *b, uint64_t n_tensors, uint64_t n_keys) {
    bytes_put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

static void key_head(struct bytes *b, const char *key, enum gguf_type type) {
    put_str(b, key);
    put_u32(b, type);
}

void key_u32(struct bytes *b, const char *key, uint32_t v) {
    key_head(b, key, GGUF_U32);
    put_u32(b, v);
}

void key_f32(struct bytes *b, const char *key, float v) {
    key_head(b, key, GGUF_F32);
    bytes_put(b, &v, sizeof v);
}

void key_bool(struct bytes *b, const char *key, uint8_t v) {
    key_head(b, key, GGUF_BOOL);
    bytes_put(b, &v, 1);
}

void key_str(struct bytes *b, const char *key, const char *v) {
    key_head(b, key, GGUF_STR);
    put_str(b, v);
}

void key_array(struct bytes *b, const char *key, uint32_t type, uint64_t count) {
    key_head(b, key, GGUF_ARR);
    put_u32(b, type);
    put_u64(b, count);
}

void key_strings(struct bytes *b, const char *key, const char *const *v, size_t n) {
    key_array(b, key, GGUF_STR, n);
    for (size_t i = 0; i < n; i++) put_str(b, v[i]);
}

void put_tensor(struct bytes *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                uint64_t offset) {
    put_str(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) put_u64(b, ne[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

void put_safetensors(struct bytes *b, const char *header, size_t n_data) {
    put_u64(b, strlen(header));
    bytes_put(b, header, strlen(header));
    bytes_put(b, NULL, n_data);
}

/* ---- Temporary files ---- */

enum { TEMP_MAX = 256 };
static char *temp_paths[TEMP_MAX]; /* folders before the files in them */
static size_t n_temp;

static const char *temp_keep(const char *path) {
    assert_true(n_temp < TEMP_MAX);
    return temp_paths[n_temp++] = strdup(path);
}

const char *temp_folder(void) {
    char path[] = "/tmp/choir-files-XXXXXX";
    assert_non_null(mkdtemp(path));
    return temp_keep(path);
}

const char *temp_file(const char *folder, const char *name, const void *data, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    return temp_keep(path);
}

void temp_remove(void) {
    while (n_temp > 0) {
        remove(temp_paths[--n_temp]);
        free(temp_paths[n_temp]);
    }
}

uint8_t *file_read(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is not there", path);
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(*n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *n, file), *n);
    data[*n] = 0;
    fclose(file);
    return data;
}

const char *default_model(void) {
    const char *path = getenv("CHOIR_TEST_MODEL");
    return path && path[0] ? path : NULL;
}

void check_refused(const char *row, const struct tensor_file *f, const struct err *e, const char *expect) {
    if (f) fail_msg("%s: was not refused", row);
    if (e->code != ERR_LOAD) fail_msg("%s: code %d", row, e->code);
    if (!strstr(e->message, expect)) fail_msg("%s: '%s' does not contain '%s'", row, e->message, expect);
    for (const char *p = e->message; *p; p++) {
        if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e) fail_msg("%s: unprintable byte in the message", row);
    }
}
