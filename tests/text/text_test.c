/* text_test.c - fixtures and small vocabularies of the tests of engine/text. */
#include "tests/text/text_test.h"

#include "engine/model/tensor_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct tokenizer *text_test_open(const char *path, struct err *e) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return tokenizer_open_hf(path, e);
    struct tensor_file *f = tensor_file_open(path, e);
    if (!f) return NULL;
    struct tokenizer *t = tensor_file_tokenizer(f, e);
    tensor_file_close(f);
    return t;
}

/* ---- fixtures ---- */

struct fixture fixture_open(const char *path) {
    struct fixture f = {0};
    FILE *file = fopen(path, "rb");
    if (!file) fprintf(stderr, "%s is missing\n", path);
    ASSERT(file && fseek(file, 0, SEEK_END) == 0);
    f.n_bytes = (size_t)ftell(file);
    rewind(file);
    f.bytes = malloc(f.n_bytes + 1);
    ASSERT(f.bytes && fread(f.bytes, 1, f.n_bytes, file) == f.n_bytes);
    f.bytes[f.n_bytes] = '\0';
    fclose(file);
    return f;
}

void fixture_close(struct fixture *f) {
    free(f->bytes);
}
bool fixture_ends(const struct fixture *f) {
    return f->at == f->n_bytes;
}

static const char *take(struct fixture *f, size_t n) {
    ASSERT(n <= f->n_bytes - f->at);
    f->at += n;
    return f->bytes + f->at - n;
}

uint32_t fixture_u32(struct fixture *f) {
    uint32_t v;
    memcpy(&v, take(f, 4), 4);
    return v;
}

uint64_t fixture_u64(struct fixture *f) {
    uint64_t v;
    memcpy(&v, take(f, 8), 8);
    return v;
}

const char *fixture_block(struct fixture *f, size_t *n_bytes) {
    *n_bytes = fixture_u32(f);
    return take(f, *n_bytes);
}

const int32_t *fixture_ids(struct fixture *f, size_t *n_ids) {
    static int32_t ids[1 << 16];
    *n_ids = fixture_u32(f);
    ASSERT(*n_ids <= ARRAY_COUNT(ids));
    memcpy(ids, take(f, *n_ids * 4), *n_ids * 4);
    return ids;
}

/* ---- encoding ---- */

struct ids text_encode(const struct tokenizer *t, const char *s, size_t n, unsigned flags) {
    struct ids out = {NULL, 0};
    struct err e = {0};
    bool ok = tokenizer_encode(t, s, n, flags, SIZE_MAX, &out.ids, &out.n, &e);
    if (!ok) fprintf(stderr, "%s\n", e.message);
    ASSERT(ok);
    return out;
}

uint64_t ids_hash(const struct ids *a) {
    uint64_t h = 0xcbf29ce484222325u;
    const uint8_t *bytes = (const uint8_t *)a->ids;
    for (size_t i = 0; i < a->n * 4; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

/* ---- small vocabularies ---- */

struct tokenizer *spm_open(const char *const *pieces, size_t n_pieces, bool byte_fallback, bool space_prefix) {
    struct vocab_entry *vocab = calloc(SPM_FIRST_PIECE + n_pieces, sizeof *vocab);
    char(*texts)[64] = calloc(SPM_FIRST_PIECE + n_pieces, sizeof *texts);
    ASSERT(vocab && texts);
    static const char *const first[] = {"<unk>", "<s>", "</s>"};
    uint32_t n = 0;
    for (; n < 3; n++)
        vocab[n] = (struct vocab_entry){first[n], (uint32_t)strlen(first[n]), 0, n ? TOKEN_CONTROL : TOKEN_UNKNOWN};
    for (int b = 0; byte_fallback && b < 256; b++, n++) {
        snprintf(texts[n], sizeof texts[n], "<0x%02X>", (unsigned)b);
        vocab[n] = (struct vocab_entry){texts[n], 6, 0, TOKEN_BYTE};
    }
    for (size_t i = 0; i < n_pieces; i++, n++) {
        bool user = pieces[i][0] == '!';
        char *out = texts[n];
        for (const char *s = pieces[i] + user; *s; s++) {
            if (*s == '~')
                out = stpcpy(out, "\xe2\x96\x81");
            else
                *out++ = *s;
        }
        vocab[n] = (struct vocab_entry){texts[n], (uint32_t)(out - texts[n]), -(float)i,
                                        user ? TOKEN_USER_DEFINED : TOKEN_NORMAL};
    }
    struct tokenizer_spec spec = {.kind = TOKENIZER_SPM,
                                  .vocab = vocab,
                                  .n_vocab = n,
                                  .bos = 1,
                                  .eos = 2,
                                  .unk = 0,
                                  .add_bos = true,
                                  .add_space_prefix = space_prefix,
                                  .byte_fallback = byte_fallback};
    struct err e = {0};
    struct tokenizer *t = tokenizer_open(&spec, &e);
    if (!t) fprintf(stderr, "%s\n", e.message);
    ASSERT(t);
    free(vocab);
    free(texts);
    return t;
}

void bpe_parts_init(struct bpe_parts *p, const char *const *merges, size_t n_merges) {
    memset(p, 0, sizeof *p);
    uint32_t n = 0;
    for (unsigned b = 0; b < 256;
         b++, n++) { /* GPT-2's spelling, written out anew: printable, or 256 + a running number */
        static unsigned n_other;
        if (b == 0) n_other = 0;
        bool printable = (b > 32 && b < 127) || (b > 160 && b != 173);
        unsigned c = printable ? b : 256 + n_other++;
        if (c < 128)
            snprintf(p->texts[n], sizeof p->texts[n], "%c", c);
        else
            snprintf(p->texts[n], sizeof p->texts[n], "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
    }
    for (size_t i = 0; i < n_merges; i++, n++) {
        const char *space = strchr(merges[i], ' ');
        uint32_t n_left = (uint32_t)(space - merges[i]);
        p->merges[i] = (struct merge_entry){merges[i], space + 1, n_left, (uint32_t)strlen(space + 1)};
        snprintf(p->texts[n], sizeof p->texts[n], "%.*s%s", (int)n_left, merges[i], space + 1);
    }
    for (uint32_t i = 0; i < n; i++)
        p->vocab[i] = (struct vocab_entry){p->texts[i], (uint32_t)strlen(p->texts[i]), 0, TOKEN_NORMAL};
    p->spec = (struct tokenizer_spec){.kind = TOKENIZER_BPE,
                                      .vocab = p->vocab,
                                      .n_vocab = n,
                                      .merges = p->merges,
                                      .n_merges = (uint32_t)n_merges,
                                      .bos = -1,
                                      .eos = -1,
                                      .unk = -1};
}
