/* fuzz_safetensors.c - any bytes as a folder: config.json up to the first NUL, then one safetensors file. */
#include "engine/model/config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    static struct model_config c;
    const uint8_t *end = memchr(data, '\0', size);
    size_t n_config = end ? (size_t)(end - data) : size;
    size_t n_file = end ? size - n_config - 1 : 0;
    struct tensor_file *f = tensor_file_open_memory(end ? end + 1 : data, n_file, (const char *)data, n_config, &e);
    if (!f) {
        ASSERT(e.code == ERR_LOAD && e.message[0] != '\0');
        return 0;
    }
    uint8_t hash[16];
    uint64_t total = 0;
    tensor_file_hash(f, hash);
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const struct tensor *t = tensor_file_at(f, i);
        total += t->n_bytes;
        ASSERT(tensor_file_find(f, t->name) == t);
    }
    ASSERT(total <= n_file); /* no byte belongs to two tensors */
    if (model_config_read(f, &c, &e)) {
        for (int role = 0; role < TENSOR_ROLES; role++) model_tensor(f, &c, (enum tensor_role)role, 0, c.dim, 0, &e);
    }
    tensor_file_close(f);
    return 0;
}

const char *const fuzz_words[] = {"\"dtype\"",        "\"shape\"",       "\"data_offsets\"",   "\"F32\"",
                                  "\"BF16\"",         "\"I64\"",         "\"__metadata__\"",   "\"rope_parameters\"",
                                  "\"rope_scaling\"", "\"layer_types\"", "\"sliding_window\"", "\"llama3\"",
                                  "\"yarn\"",         "\"gemma3_text\"", "\"qwen3\"",          NULL};
