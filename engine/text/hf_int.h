/* hf_int.h - reading a Hugging Face folder's tokenizer, private to hf*.c. */
#ifndef CHOIR_TEXT_HF_INT_H
#define CHOIR_TEXT_HF_INT_H

#include "common/json.h"
#include "engine/text/text_int.h"

/* The files as bytes; only the first must be there, the others are {NULL, 0} where a folder lacks them. */
struct hf_file {
    const char *bytes;
    size_t n_bytes;
};
struct hf_files {
    struct hf_file tokenizer, tokenizer_config, generation_config, config;
};
struct tokenizer *tokenizer_open_hf_files(const struct hf_files *f, struct err *e);

/* A spec under construction. Texts point into the JSON documents. */
struct hf_build {
    struct tokenizer_spec spec;
    struct vocab_entry *vocab; /* [n_vocab_alloc]; ids without a token: kind TOKEN_UNUSED, no bytes */
    struct added_flags *added; /* [n_vocab_alloc] */
    uint32_t n_vocab_alloc;
    struct merge_entry *merges; /* [spec.n_merges] */
    int32_t eog[TEXT_EOG_MAX];
    char *regex; /* of the Split, or NULL */
    struct err *e;
};

/* Each reads one part of tokenizer.json; false with the error, which names what is not supported. */
bool hf_read_vocab(struct hf_build *b, const struct json_at *doc); /* model.vocab and added_tokens */
bool hf_read_merges(struct hf_build *b, const struct json_at *model);
bool hf_read_pipeline(struct hf_build *b, const struct json_at *doc); /* normalizer, pre-tokenizer, options, decoder */
bool hf_read_post_processor(struct hf_build *b, const struct json_at *doc); /* after the vocabulary */

/* An object's "type"; "" without one. */
const char *hf_type(const struct json_at *object);
/* "is not supported" about a value, with a name from the file cut to what is safe to print. */
bool hf_refuse(struct hf_build *b, const struct json_at *at, const char *what, const char *name);

#endif
