/* text_test.h - what the tests of engine/text share: fixtures (formats: tests/fixtures/text/make_text.py) and small
 * vocabularies. */
#ifndef TESTS_TEXT_TEXT_TEST_H
#define TESTS_TEXT_TEXT_TEST_H

#include "engine/text/text.h"

#define TEXT_FIXTURES "tests/fixtures/text/"

/* Opens the tokenizer of a GGUF file or of a folder. */
struct tokenizer *text_test_open(const char *path, struct err *e);

/* A file read whole; the test fails where it is missing. Its blocks are read one after the other. */
struct fixture {
    char *bytes;
    size_t n_bytes, at;
};
struct fixture fixture_open(const char *path);
void fixture_close(struct fixture *f);
bool fixture_ends(const struct fixture *f);
uint32_t fixture_u32(struct fixture *f);
uint64_t fixture_u64(struct fixture *f);
const char *fixture_block(struct fixture *f, size_t *n_bytes); /* not terminated */
const int32_t *fixture_ids(struct fixture *f, size_t *n_ids);  /* aligned copy, valid until the next call */

struct ids {
    int32_t *ids;
    size_t n;
};
/* Encodes without a limit; the test fails where that fails. */
struct ids text_encode(const struct tokenizer *t, const char *s, size_t n, unsigned flags);
uint64_t ids_hash(const struct ids *a); /* FNV-1a of the i32s */

/* A SentencePiece vocabulary of `pieces` (score: minus the index) after <unk> 0, <s> 1, </s> 2 and, with
 * byte_fallback, 256 byte tokens. U+2581 is written '~'; a leading '!' makes a piece user-defined. */
struct tokenizer *spm_open(const char *const *pieces, size_t n_pieces, bool byte_fallback, bool space_prefix);
enum { SPM_FIRST_BYTE = 3, SPM_FIRST_PIECE = 3 + 256 };

/* A byte-level vocabulary: the 256 bytes, then the results of the merges ("left right" in byte-level spelling). */
struct bpe_parts {
    struct vocab_entry vocab[1024];
    struct merge_entry merges[512];
    char texts[1024][64];
    struct tokenizer_spec spec;
};
void bpe_parts_init(struct bpe_parts *p, const char *const *merges, size_t n_merges);

#endif
