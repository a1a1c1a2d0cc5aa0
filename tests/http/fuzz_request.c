/* fuzz_request.c - request bodies of every endpoint through api_parse: no crash, no leak, no slow input. */
#include <stddef.h>
#include <stdint.h>

#include "server/api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What mutations insert: every field's name, and the values that fields are picky about. */
#define FIELD_WORD(name, ...) "\"" #name "\":",
#define INT FIELD_WORD
#define REAL FIELD_WORD
#define BOOL FIELD_WORD
#define PART FIELD_WORD
#define NOOP FIELD_WORD
#define REFUSED FIELD_WORD
extern const char *const fuzz_words[];
const char *const fuzz_words[] = {
#include "server/api_fields.def"
    "null",
    "true",
    "[]",
    "{}",
    "[[1,2],\"a\"]",
    "-1",
    "1e308",
    "9223372036854775807",
    "{\"role\":\"user\",\"content\":\"x\"}",
    "{\"type\":\"text\",\"text\":\"x\"}",
    ",",
    NULL};

/* The first byte chooses the endpoint, the rest is the body. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"model", "alias"};
    static const struct api_model model = {.names = names, .n_names = 2, .n_vocab = 1000};
    if (size == 0) return 0;
    struct api_request r;
    struct err e;
    enum api_endpoint endpoint = (enum api_endpoint)(1u << (data[0] & 3));
    if (api_parse(&r, endpoint, &model, (const char *)data + 1, size - 1, &e)) {
        api_request_drop_doc(&r);
        api_request_free(&r);
    } else {
        ASSERT(e.code != ERR_NONE && e.message[0]);
    }
    return 0;
}
