/* bytes.h - building model files byte by byte for the tests, right or wrong on purpose. */
#ifndef CHOIR_TESTS_FILES_BYTES_H
#define CHOIR_TESTS_FILES_BYTES_H

#include "engine/model/tensor_file.h"

struct bytes {
    uint8_t *data;
    size_t n, cap;
};
void bytes_free(struct bytes *b);
void bytes_put(struct bytes *b, const void *p, size_t n);
void put_u32(struct bytes *b, uint32_t v);
void put_u64(struct bytes *b, uint64_t v);
void put_str(struct bytes *b, const char *s); /* u64 length and the bytes */
void put_pad(struct bytes *b, size_t alignment);

/* GGUF header and key values. */
void put_header(struct bytes *b, uint64_t n_tensors, uint64_t n_keys);
void key_u32(struct bytes *b, const char *key, uint32_t v);
void key_f32(struct bytes *b, const char *key, float v);
void key_bool(struct bytes *b, const char *key, uint8_t v);
void key_str(struct bytes *b, const char *key, const char *v);
void key_array(struct bytes *b, const char *key, uint32_t type, uint64_t count); /* elements follow */
void key_strings(struct bytes *b, const char *key, const char *const *v, size_t n);
void put_tensor(struct bytes *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset);

/* A safetensors file of this header (N is its length) and n_data bytes. */
void put_safetensors(struct bytes *b, const char *header, size_t n_data);

/* A fresh folder or file under the test's temporary folder; paths live until the process ends. */
const char *temp_folder(void);
const char *temp_file(const char *folder, const char *name, const void *data, size_t n);
void temp_remove(void); /* all of them */

/* The whole file, malloc'ed; fails the test when it is not there. */
uint8_t *file_read(const char *path, size_t *n);

/* The path of the default model, or NULL: environment CHOIR_TEST_MODEL. */
const char *default_model(void);

/* Fails the test, naming `row`, unless opening was refused with ERR_LOAD and a message that contains `expect`. */
void check_refused(const char *row, const struct tensor_file *f, const struct err *e, const char *expect);

#endif
