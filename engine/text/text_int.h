/* text_int.h - the tokenizer's data and the steps of an encode, private to engine/text/.
 *
 * An encode runs: utf8_repair -> split at added tokens (matcher `raw`) -> normalize -> split at added tokens
 * (matcher `normalized`) -> pre-tokenize (BPE) -> merge -> ids. Everything here is immutable after opening except
 * `struct encoder`, which lives on the stack of one call.
 */
#ifndef CHOIR_TEXT_INT_H
#define CHOIR_TEXT_INT_H

#include "engine/text/text.h"

enum {
    TEXT_VOCAB_MAX = 1 << 22,
    TEXT_MERGES_MAX = 1 << 23,
    TEXT_PIECE_BYTES_MAX = 4096,    /* of one vocabulary entry: bounds the cost of one look-up */
    TEXT_INPUT_BYTES_MAX = 1 << 29, /* of one encode: positions are 32 bits wide */
    TEXT_EOG_MAX = 64,
};

/* Steps of work done by encodes of this thread (characters classified, bytes hashed, heap levels moved through):
 * what the linear-time tests compare instead of a clock. */
extern _Thread_local uint64_t text_work;

/* ---- UTF-8 ---- */

/* Length of the valid character at s[0..n), or 0; then *n_bad is the length of the maximal invalid subpart
 * (at least 1) and *truncated tells that more bytes could still complete it. */
uint32_t utf8_char_length(const char *s, size_t n, uint32_t *n_bad, bool *truncated);
/* Decodes one character of text known to be valid. */
uint32_t utf8_decode(const char *s, uint32_t *n_bytes);
uint32_t utf8_encode(uint32_t c, char out[4]);

enum char_class { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE };
enum char_class char_class_of(uint32_t c);
bool char_is_space(uint32_t c); /* Unicode White_Space */

/* ---- the vocabulary ---- */

struct token {
    uint32_t offset, n_bytes; /* of its bytes in the arena */
    uint32_t prio;            /* SPM: lower merges first */
    uint8_t kind;             /* enum token_kind */
    bool unreachable;         /* BPE: a plain entry not spelled in byte-level characters: no text becomes it */
};

/* Two name spaces share the index: what merges can make, and names that only whole tokens have. */
enum text_space { SPACE_PIECES, SPACE_NAMES };

struct index_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
};

struct merge_slot {
    uint64_t pair; /* left id << 32 | right id; MERGE_EMPTY: empty */
    uint32_t rank;
    int32_t id;
};
#define MERGE_EMPTY UINT64_MAX

struct matcher; /* finds the longest added token at a position */

/* What tokenizer.json knows of an added token beyond its vocab_entry. */
struct added_flags {
    bool lstrip, rstrip; /* white space beside the token belongs to it */
    bool normalized;     /* looked for after normalization, not before */
};

struct pattern; /* a compiled PCRE2 pre-tokenizer */

struct tokenizer {
    enum tokenizer_kind kind;
    enum pre_tokenizer pre;
    struct token *tokens; /* [n_vocab] */
    uint32_t n_vocab;
    char
        *arena; /* all tokens' bytes as they appear in text: a SentencePiece U+2581 is a space, a byte token one byte */
    size_t n_arena;
    struct index_slot *index; /* [index_mask + 1] */
    uint32_t index_mask;
    struct merge_slot *merges; /* [merge_mask + 1]; BPE */
    uint32_t merge_mask;
    int32_t byte_id[256]; /* SPM: byte tokens; BPE: one-byte pieces */
    uint32_t piece_bytes_max;
    struct matcher *raw, *normalized; /* added tokens to find before and after normalization; NULL: none */
    struct added_flags *added;        /* [n_vocab] or NULL: no flags */
    struct pattern *pattern;          /* NULL: the built-in matcher of `pre`, or none */
    int32_t bos, eos, unk;
    int32_t eog[TEXT_EOG_MAX];
    uint32_t n_eog;
    bool add_bos, add_eos, add_space_prefix, byte_fallback, ignore_merges, normalize_nfc;
    bool has_all_bytes;     /* every byte has a token: nothing is unknown */
    uint8_t pairs[256][32]; /* SPM: bit (a, b): some piece has byte b right after byte a */
};

/* tokenizer_open with the flags that only tokenizer.json has; added: [n_vocab] or NULL. */
struct tokenizer *tokenizer_open_with(const struct tokenizer_spec *spec, const struct added_flags *added,
                                      struct err *e);

enum text_space token_space(const struct tokenizer *t, enum token_kind kind);
bool vocab_index_build(struct tokenizer *t, struct err *e);
/* The token with these bytes, or -1. */
int32_t vocab_find(const struct tokenizer *t, enum text_space space, const char *s, size_t n);
/* "<0x41>" -> 0x41; -1 for anything else. */
int byte_token_value(const char *s, size_t n);
/* Copies, with each U+2581 (SentencePiece's space) as a space; n bytes suffice. */
uint32_t copy_spaced(const char *s, size_t n, char *out);
bool bpe_merges_build(struct tokenizer *t, const struct tokenizer_spec *spec, struct err *e);

/* Byte-level BPE writes bytes as printable characters (GPT-2's table). False where s has a character outside it. */
bool byte_level_decode(const char *s, size_t n, char *out, uint32_t *n_out);

/* ---- matcher ---- */

struct matcher *matcher_open(const struct tokenizer *t, const int32_t *ids, size_t n_ids, struct err *e);
void matcher_close(struct matcher *m);
/* Longest token at s, or -1. Control tokens only with `control`. */
int32_t matcher_longest(const struct matcher *m, const struct tokenizer *t, const char *s, size_t n, bool control,
                        uint32_t *n_bytes);

/* ---- one encode ---- */

struct symbol {
    uint32_t start, n_bytes; /* of the text being merged; 0 bytes: merged away */
    int32_t prev, next;
    int32_t id; /* BPE */
};
struct candidate {
    uint64_t key;     /* priority << 32 | left symbol: lowest first */
    uint32_t n_bytes; /* of both symbols when it was found: tells whether it still holds */
    int32_t id;
};

struct encoder {
    const struct tokenizer *t;
    bool control; /* find control tokens in the text */
    size_t n_max;
    int32_t **ids;
    size_t *n_ids;
    size_t n_ids_alloc;
    struct err *e;
    struct symbol *symbols;
    size_t n_symbols_alloc;
    struct candidate *heap;
    size_t n_heap, n_heap_alloc;
    void *match_data;   /* PCRE2's */
    bool after_control; /* SPM: the next text gets the space prefix */
};

bool encoder_emit(struct encoder *c, int32_t id);
bool encoder_no_memory(struct encoder *c);

/* Merges text[0..n) and emits it. SPM: valid UTF-8, spaces as they are. BPE: one pre-token. */
bool spm_encode_text(struct encoder *c, const char *text, size_t n);
bool bpe_encode_word(struct encoder *c, const char *text, size_t n);

/* The merge loop over c->symbols[0..n): calls `find` for each new neighbour pair. */
typedef bool merge_find(const struct tokenizer *t, const char *text, const struct symbol *left,
                        const struct symbol *right, uint32_t *prio, int32_t *id);
bool merge_symbols(struct encoder *c, const char *text, size_t n, merge_find *find);
bool encoder_reserve_symbols(struct encoder *c, size_t n);

/* ---- pre-tokenizing ---- */

/* End of the pre-token at text[at]; `at` < n. */
size_t pretoken_end(enum pre_tokenizer pre, const char *text, size_t n, size_t at);

struct pattern *pattern_open(const char *regex, struct err *e);
void pattern_close(struct pattern *p);
bool pattern_encode(struct encoder *c, const struct pattern *p, const char *text, size_t n);

/* NFC of valid UTF-8: malloc'ed, or NULL without memory. Linear (n log n in runs of combining marks). */
char *nfc_normalize(const char *s, size_t n, size_t *n_out);
/* True where s surely is in NFC already. */
bool nfc_is_trivial(const char *s, size_t n);

#endif
