/* fuzz_gguf.c - any bytes as a GGUF file: opened, hashed, every value read, configured, tokenized. */
#include "engine/model/config.h"
#include "engine/text/text.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned sink; /* so that the reads happen */

/* Reads a value in every way; of an array its first elements and some of the others. */
static void read_key(const struct tensor_file *f, const char *key) {
    uint32_t u;
    float x;
    bool b;
    const char *s;
    size_t n;
    int64_t i;
    struct gguf_array a;
    gguf_get_u32(f, key, &u);
    gguf_get_f32(f, key, &x);
    gguf_get_bool(f, key, &b);
    gguf_get_str(f, key, &s, &n);
    if (!gguf_get_array(f, key, &a)) return;
    for (uint64_t k = 0; k < a.count; k += k < 40 ? 1 : a.count / 3) {
        gguf_array_f32(&a, k, &x);
        gguf_array_i64(&a, k, &i);
        if (gguf_array_str(&a, k, &s, &n) && n > 0) sink += (unsigned)s[0] + (unsigned)s[n - 1];
    }
}

static void read_tensors(const struct tensor_file *f, const struct model_config *c) {
    struct err e;
    for (int role = 0; role < TENSOR_ROLES; role++) {
        const struct tensor *t = model_tensor(f, c, (enum tensor_role)role, 0, c->dim, 0, &e);
        if (!t) t = model_tensor(f, c, (enum tensor_role)role, 0, c->n_vocab, c->dim, &e);
        if (t)
            ASSERT(t->n_bytes ==
                   dtype_row_bytes(t->type, t->shape[t->n_dims - 1]) * (t->n_dims == 1 ? 1 : t->shape[0]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    static struct model_config c;
    struct tensor_file *f = tensor_file_open_memory(data, size, NULL, 0, &e);
    if (!f) {
        ASSERT(e.code == ERR_LOAD && e.message[0] != '\0');
        return 0;
    }
    uint8_t hash[16];
    tensor_file_hash(f, hash);
    for (size_t i = 0; i < gguf_key_count(f); i++) {
        size_t n;
        char key[256];
        const char *s = gguf_key_at(f, i, &n);
        if (n >= sizeof key) continue;
        memcpy(key, s, n);
        key[n] = '\0';
        read_key(f, key);
    }
    if (model_config_read(f, &c, &e)) read_tensors(f, &c);
    struct tokenizer *t = tensor_file_tokenizer(f, &e);
    if (t) tokenizer_close(t);
    tensor_file_close(f);
    return 0;
}

const char *const fuzz_words[] = {"GGUF",
                                  "general.architecture",
                                  "general.alignment",
                                  "llama",
                                  "gemma3",
                                  "qwen3",
                                  "gpt2",
                                  "tokenizer.ggml.tokens",
                                  "tokenizer.ggml.scores",
                                  "token_embd.weight",
                                  "<0x0A>",
                                  NULL};
