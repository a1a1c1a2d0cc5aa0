/* fuzz_tokenizer_json.c - any bytes as tokenizer.json: refused with a message, or a tokenizer that works. */
#include "engine/text/hf_int.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

const char *const fuzz_words[] = {"\"ByteLevel\"",
                                  "\"Split\"",
                                  "\"Sequence\"",
                                  "\"NFC\"",
                                  "\"TemplateProcessing\"",
                                  "\"BPE\"",
                                  "null",
                                  "true",
                                  "false",
                                  "[]",
                                  "{}",
                                  "\"lstrip\":true",
                                  "\"rstrip\":true",
                                  "\"normalized\":true",
                                  "\"special\":true",
                                  "\"id\":",
                                  "-1",
                                  "4194304",
                                  "\"ids\":[258]",
                                  "\\\\p{L}+",
                                  "\\\\s",
                                  "(?i:",
                                  "(a+)+",
                                  "\\u0000",
                                  "\\u0120",
                                  "\"the\":257",
                                  "[\"t\",\"h\"]",
                                  NULL};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        " the <|im_start|>  <left> cafe\xcc\x81 123'll\r\n\n \xf0\x9f\x98\x80 aaaaaaaaaaaaaaaaaaaaaaaa <|eot_id|>";
    static const char config[] = "{\"eos_token_id\":[258,259],\"bos_token_id\":258}";
    struct hf_files f = {.tokenizer = {(const char *)data, size}, .config = {config, sizeof config - 1}};
    struct err e = {0};
    struct tokenizer *t = tokenizer_open_hf_files(&f, &e);
    if (!t) {
        ASSERT(e.code == ERR_LOAD && e.message[0] != '\0');
        return 0;
    }
    for (unsigned flags = 0; flags < 4; flags++) {
        int32_t *ids = NULL;
        size_t n_ids = 0, n;
        ASSERT(tokenizer_encode(t, text, sizeof text, flags, SIZE_MAX, &ids, &n_ids, &e));
        for (size_t i = 0; i < n_ids; i++) ASSERT(ids[i] >= 0 && (uint32_t)ids[i] < tokenizer_n_vocab(t));
        char *back = tokenizer_decode(t, ids, n_ids, true, &n);
        ASSERT(back && utf8_valid(back, n));
        free(back);
        free(ids);
    }
    tokenizer_close(t);
    return 0;
}
