/* hf.c - opens the tokenizer of a Hugging Face folder.
 *
 * tokenizer.json says how text becomes tokens and whether BOS and EOS are added (post_processor, as the tokenizers
 * library applies it). Which tokens end a generation is the union of eos_token_id in generation_config.json and
 * config.json; the one eos is tokenizer_config.json's eos_token, else the first of those. Loading thread.
 *
 * Invariant: texts in the spec point into the documents, which live until tokenizer_open has copied them.
 */
#include "engine/text/hf_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_FILE_BYTES_MAX = 1 << 28 }; /* the largest tokenizer.json known has 33 MB */

/* ---- token ids from the other files ---- */

static bool add_eog(struct hf_build *b, const struct json_at *at) {
    int64_t id;
    if (!json_as_i64(at, 0, (int64_t)b->spec.n_vocab - 1, &id, b->e)) return false;
    for (uint32_t i = 0; i < b->spec.n_eog; i++) {
        if (b->eog[i] == id) return true;
    }
    if (b->spec.n_eog >= TEXT_EOG_MAX / 2) return json_err(at, ERR_LOAD, b->e, "Too many end tokens.");
    b->eog[b->spec.n_eog++] = (int32_t)id;
    return true;
}

static bool read_eos_ids(struct hf_build *b, const struct json_at *doc) {
    struct json_at eos;
    if (!json_member(doc, "eos_token_id", &eos)) return true;
    if (!json_is_array(eos.value)) return add_eog(b, &eos);
    for (size_t i = 0; i < json_count(&eos); i++) {
        struct json_at item = json_item(&eos, i);
        if (!add_eog(b, &item)) return false;
    }
    return true;
}

/* "eos_token": "<name>" or {"content": "<name>"}. */
static bool read_token_name(struct hf_build *b, const struct json_at *doc, const char *key, int32_t *out) {
    struct json_at at;
    const char *name = NULL;
    size_t n = 0;
    if (!json_member(doc, key, &at)) return true;
    if (json_is_object(at.value) ? !json_opt_string(&at, "content", TEXT_PIECE_BYTES_MAX, &name, &n, b->e)
                                 : !json_as_string(&at, TEXT_PIECE_BYTES_MAX, &name, &n, b->e)) {
        return false;
    }
    for (uint32_t id = 0; name && id < b->spec.n_vocab; id++) {
        const struct vocab_entry *v = &b->vocab[id];
        if (v->n_bytes != n || n == 0 || memcmp(v->bytes, name, n) != 0) continue;
        *out = (int32_t)id;
        return true;
    }
    return json_err(&at, ERR_LOAD, b->e, "The token is not in the vocabulary.");
}

static bool read_bos_id(struct hf_build *b, const struct json_at *doc) {
    return b->spec.bos >= 0 || json_opt_i32(doc, "bos_token_id", 0, (int32_t)b->spec.n_vocab - 1, &b->spec.bos, b->e);
}

static bool read_ids(struct hf_build *b, const json_t *const docs[3]) {
    struct json_at names = json_top(docs[0]), generation = json_top(docs[1]), config = json_top(docs[2]);
    int32_t bos = -1, eos = -1;
    if (docs[0] && (!read_token_name(b, &names, "bos_token", &bos) || !read_token_name(b, &names, "eos_token", &eos)))
        return false;
    if (b->spec.bos < 0) b->spec.bos = bos;
    if (b->spec.eos < 0) b->spec.eos = eos;
    if (docs[1] && (!read_eos_ids(b, &generation) || !read_bos_id(b, &generation))) return false;
    if (docs[2] && (!read_eos_ids(b, &config) || !read_bos_id(b, &config))) return false;
    if (b->spec.eos < 0 && b->spec.n_eog > 0) b->spec.eos = b->eog[0];
    b->spec.eog = b->eog;
    return true;
}

/* ---- documents ---- */

static json_t *parse(const struct hf_file *f, const char *name, size_t flags, struct err *e) {
    /* A vocabulary's tree takes about 15 times its text; the files are the operator's, the bound is for accidents. */
    struct json_limits limits = {.amplification = 40};
    struct err inner;
    uint64_t tree_bytes;
    json_error_t at = {0};
    if (!json_prescan(f->bytes, f->n_bytes, &limits, &tree_bytes, &inner)) {
        err_set(e, ERR_LOAD, "%s: %s", name, inner.message);
        return NULL;
    }
    json_t *doc = json_loadb(f->bytes, f->n_bytes, JSON_REJECT_DUPLICATES | flags, &at);
    if (doc && json_is_object(doc)) return doc;
    if (doc)
        err_set(e, ERR_LOAD, "%s is not a JSON object.", name);
    else
        err_set(e, ERR_LOAD, "%s is not valid JSON: %s (line %d, byte %d).", name, at.text, at.line, at.position);
    json_decref(doc);
    return NULL;
}

static bool build(struct hf_build *b, const json_t *const docs[4]) {
    struct json_at doc = json_top(docs[0]), model;
    if (!hf_read_pipeline(b, &doc) || !hf_read_vocab(b, &doc) || !hf_read_post_processor(b, &doc)) return false;
    return json_require(&doc, "model", &model, b->e) && hf_read_merges(b, &model) && read_ids(b, docs + 1);
}

struct tokenizer *tokenizer_open_hf_files(const struct hf_files *f, struct err *e) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                        "config.json"};
    const struct hf_file *files[] = {&f->tokenizer, &f->tokenizer_config, &f->generation_config, &f->config};
    struct hf_build b = {.spec = {.kind = TOKENIZER_BPE, .bos = -1, .eos = -1, .unk = -1}, .e = e};
    json_t *docs[4] = {NULL};
    struct tokenizer *t = NULL;
    bool ok = true;
    for (int i = 0; ok && i < 4; i++) {
        /* tokenizer_config.json commonly has a model_max_length of 10^30; only its texts are read. */
        size_t flags = i == 1 ? JSON_DECODE_INT_AS_REAL : 0;
        if (i == 0 || files[i]->bytes) ok = (docs[i] = parse(files[i], names[i], flags, e)) != NULL;
    }
    if (ok) {
        ok = build(&b, (const json_t *const *)docs);
        e->code = ok ? e->code : ERR_LOAD; /* whatever the JSON helpers call it: the model cannot be loaded */
    }
    if (ok) t = tokenizer_open_with(&b.spec, b.added, e);
    for (int i = 0; i < 4; i++) json_decref(docs[i]);
    free(b.vocab);
    free(b.added);
    free(b.merges);
    free(b.regex);
    return t;
}

/* ---- files ---- */

/* Reads a file of the folder; a missing one is {NULL, 0} unless it is required. */
static bool read_file(const char *folder, const char *name, bool required, struct hf_file *out, struct err *e) {
    char path[4096];
    *out = (struct hf_file){NULL, 0};
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return err_set(e, ERR_LOAD, "The model's path is too long.");
    FILE *file = fopen(path, "rb");
    if (!file) {
        if (errno == ENOENT && !required) return true;
        return err_set(e, ERR_LOAD, "%s: %s.", name, strerror(errno));
    }
    size_t n = 0, n_alloc = 1 << 16;
    char *bytes = malloc(n_alloc);
    while (bytes && n_alloc <= JSON_FILE_BYTES_MAX) {
        n += fread(bytes + n, 1, n_alloc - n, file);
        if (n < n_alloc) break;
        n_alloc *= 2;
        char *more = realloc(bytes, n_alloc);
        if (!more) free(bytes);
        bytes = more;
    }
    bool ok = bytes && n < n_alloc && !ferror(file);
    fclose(file);
    if (!ok) {
        free(bytes);
        return err_set(e, ERR_LOAD, "%s cannot be read or is over %d MB.", name, JSON_FILE_BYTES_MAX >> 20);
    }
    *out = (struct hf_file){bytes, n};
    return true;
}

struct tokenizer *tokenizer_open_hf(const char *folder, struct err *e) {
    struct hf_files f = {0};
    bool ok = read_file(folder, "tokenizer.json", true, &f.tokenizer, e) &&
              read_file(folder, "tokenizer_config.json", false, &f.tokenizer_config, e) &&
              read_file(folder, "generation_config.json", false, &f.generation_config, e) &&
              read_file(folder, "config.json", false, &f.config, e);
    struct tokenizer *t = ok ? tokenizer_open_hf_files(&f, e) : NULL;
    free((char *)(uintptr_t)f.tokenizer.bytes);
    free((char *)(uintptr_t)f.tokenizer_config.bytes);
    free((char *)(uintptr_t)f.generation_config.bytes);
    free((char *)(uintptr_t)f.config.bytes);
    return t;
}
