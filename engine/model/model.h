/* model.h - a decoder: weights in the kernels' layout and the layer loop over one step's rows.
 *
 * The loop has no family names in it: what differs between families is data (config.h). One caller thread; the
 * backend parallelises inside each operation. The model file is closed once its weights are repacked.
 *
 * KV memory: model_kv_plan says how layers map to pages; the caller (engine.c) decides how many pages, the model
 * allocates the slab. Page tables come with every batch.
 */
#ifndef CHOIR_MODEL_H
#define CHOIR_MODEL_H

#include "engine/model/config.h"
#include "engine/tensorpar/tp.h"

struct model_options {
    const char *path;
    struct kernels *kernels; /* outlives the model */
    struct tp *tp;           /* likewise */
    enum dtype kv_type;
    uint32_t n_tokens_max;   /* rows of a step */
    uint32_t n_seqs_max;     /* sequences of a step */
    uint32_t n_logit_rows_max;
    void (*on_progress)(void *arg, const char *stage, double fraction); /* may be NULL */
    void *progress_arg;
};

/* How layers share pages. Kinds are numbered densely: a model with one kind of layer has n_kinds 1. */
struct model_kv_plan {
    uint32_t n_kinds;
    uint32_t units[LAYER_KINDS];  /* pages per block */
    uint32_t window[LAYER_KINDS]; /* 0: full attention */
    uint32_t layers_per_page;
    size_t page_bytes;
};

struct model_batch_seq {
    uint32_t row0, n_rows, pos0;
    const uint32_t *table[LAYER_KINDS]; /* by kind: entry [block * units + unit] is a page */
};

struct model_batch {
    uint32_t n_tokens, n_seqs;
    const int32_t *ids;        /* [n_tokens] */
    const uint32_t *positions; /* [n_tokens] */
    const struct model_batch_seq *seqs;
};

struct model;
struct tokenizer;

/* Loads config, tokenizer (caller closes it) and weights. */
struct model *model_open(const struct model_options *o, struct tokenizer **tokenizer, struct err *e);
void model_close(struct model *m);

const struct model_config *model_config_of(const struct model *m);
const struct model_kv_plan *model_kv_plan(const struct model *m);
size_t model_weight_bytes(const struct model *m);
size_t model_work_bytes(const struct model *m);
uint64_t model_n_params(const struct model *m);
const uint8_t *model_file_hash(const struct model *m); /* [16] */

bool model_kv_alloc(struct model *m, uint32_t n_pages, struct err *e);

/* Runs the layers over the batch's rows; writes K and V of all of them. */
void model_forward(struct model *m, const struct model_batch *b);
/* Logits [n_rows][n_vocab] of rows of the last forward; n_rows <= n_logit_rows_max. Valid until the next call. */
const float *model_logits(struct model *m, const uint32_t *rows, uint32_t n_rows);

#endif
