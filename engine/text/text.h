/* text.h - tokens <-> text: tokenizers, incremental detokenization, the built-in chat template.
 *
 * Text is handled on the HTTP threads and the server's output thread; the engine thread only asks tokenizer_is_eog.
 * A `struct tokenizer` is immutable after opening and may be shared by all threads. Every function is linear (up to log) in its input and does not recurse on it.
 *
 * Invalid UTF-8 in text: each maximal invalid subpart becomes U+FFFD before tokenizing (the WHATWG rule, what
 * Python's errors="replace" does), so the result is defined and equal on every path.
 */
#ifndef CHOIR_TEXT_H
#define CHOIR_TEXT_H

#include "common/err.h"

struct tokenizer;

enum token_kind { TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };
enum tokenizer_kind {
    TOKENIZER_SPM /* SentencePiece BPE with scores */,
    TOKENIZER_BPE /* byte-level BPE with merges */
};
enum pre_tokenizer { PRE_NONE, PRE_LLAMA3, PRE_QWEN2 };

/* What a tokenizer is made of, as a file gives it. Arrays are copied; strings need not be terminated. */
struct vocab_entry {
    const char *bytes;
    uint32_t n_bytes;
    float score;
    enum token_kind kind;
};
struct merge_entry { /* the text of both sides of a BPE merge, in rank order */
    const char *left, *right;
    uint32_t n_left, n_right;
};
struct tokenizer_spec {
    enum tokenizer_kind kind;
    enum pre_tokenizer pre;
    const char *pre_regex; /* PCRE2 pattern from tokenizer.json, or NULL for the built-in one of `pre` */
    const struct vocab_entry *vocab;
    uint32_t n_vocab;
    const struct merge_entry *merges;
    uint32_t n_merges;
    int32_t bos, eos, unk; /* -1: none */
    const int32_t *eog;    /* tokens that end a generation besides eos */
    uint32_t n_eog;
    bool add_bos, add_eos;
    bool add_space_prefix;
    bool byte_fallback;
    bool ignore_merges; /* Llama 3: a whole pre-token that is in the vocabulary is taken as it is */
    bool normalize_nfc; /* Qwen's normalizer */
};
/* Refuses (ERR_LOAD) what has no defined meaning: equal tokens, empty ones, ids outside, merges of unknown tokens, ...
 */
struct tokenizer *tokenizer_open(const struct tokenizer_spec *spec, struct err *e);
void tokenizer_close(struct tokenizer *t);

/* Opens tokenizer.json (byte-level BPE; + tokenizer_config.json, generation_config.json, config.json where present) of
 * a Hugging Face folder. A construct that is not supported is refused by its name. */
struct tokenizer *tokenizer_open_hf(const char *folder, struct err *e);

uint32_t tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_adds_bos(const struct tokenizer *t);
bool tokenizer_is_eog(const struct tokenizer *t, int32_t id); /* eos, the spec's eog, and the end of a chat turn */
enum token_kind tokenizer_kind_of(const struct tokenizer *t, int32_t id);
/* The id of a token by its exact vocabulary text ("<start_of_turn>"), or -1. */
int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n_bytes);
/* Raw bytes of a token as they appear in text (control tokens: their name when `special`, else nothing). */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, bool special, uint32_t *n_bytes);

enum {
    TOKENIZE_ADD_SPECIAL = 1,  /* BOS/EOS as the model wants them */
    TOKENIZE_PARSE_SPECIAL = 2 /* control tokens written in the text become those tokens (off: they stay text) */
};
/* Appends to *ids (malloc'ed, grown; caller frees, also after an error). At most n_max tokens in the whole list: one
 * more is ERR_CONTEXT_LENGTH. Tokens that are added but not control (Gemma's runs of white space, Qwen's <think>) are
 * found in the text with and without TOKENIZE_PARSE_SPECIAL, as their own tokenizers do. */
bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_bytes, unsigned flags, size_t n_max,
                      int32_t **ids, size_t *n_ids, struct err *e);

/* Incremental detokenizer: holds back bytes that do not yet form whole characters. */
struct detok {
    const struct tokenizer *t;
    bool special;  /* write control tokens too */
    bool at_start; /* SPM: the space prefix of the first token is dropped */
    unsigned char held[8];
    uint32_t n_held;
};
void detok_init(struct detok *d, const struct tokenizer *t, bool special, bool at_start);
/* Text made whole by this token: a malloc'ed, 0-terminated valid UTF-8 string of *n_bytes (may be empty). NULL: no
 * memory. */
char *detok_push(struct detok *d, int32_t id, size_t *n_bytes);
/* What is held at the end, each invalid subpart as U+FFFD. */
char *detok_flush(struct detok *d, size_t *n_bytes);

/* All at once: malloc'ed, 0-terminated. */
char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool special, size_t *n_bytes);

/* ---- Chat: the plain built-in template ----
 * Renders straight to tokens, so that text from a user can never forge a role boundary: markers are added as
 * token ids, contents are tokenized with TOKENIZE_PARSE_SPECIAL off. Knows the turn markers of the families it
 * serves (Gemma, Llama 3, ChatML/Qwen), found by their token names in the vocabulary; without any, "role: text\n".
 * What some models' own templates add unasked (a default system message, a date, empty <think> blocks) is not there.
 * An unknown role is ERR_BAD_VALUE. Appends like tokenizer_encode. */
struct chat_message {
    const char *role; /* "system" | "developer" | "user" | "assistant" | "tool" */
    const char *content;
    size_t n_content;
};
bool chat_encode(const struct tokenizer *t, const struct chat_message *m, size_t n, bool add_generation_prompt,
                 size_t n_max, int32_t **ids, size_t *n_ids, struct err *e);

/* Valid UTF-8 from any bytes; malloc'ed, 0-terminated. */
char *utf8_repair(const char *s, size_t n, size_t *n_out);
bool utf8_valid(const char *s, size_t n);

#endif
