/* config_int.h - what config.c and its two readers (GGUF keys, config.json) share.
 *
 * A family is a row of data, a dimension of the model is a row of data (its names in both formats and its range);
 * the readers differ only in how a name is looked up.
 */
#ifndef CHOIR_MODEL_CONFIG_INT_H
#define CHOIR_MODEL_CONFIG_INT_H

#include "engine/model/config.h"
#include "engine/model/tensor_file_int.h"

/* The integers of a model, in both formats. */
enum field {
    FIELD_LAYERS,
    FIELD_DIM,
    FIELD_HEADS,
    FIELD_KV_HEADS,
    FIELD_HEAD_DIM,
    FIELD_FF,
    FIELD_VOCAB,
    FIELD_CONTEXT,
    FIELDS
};

struct field_info {
    const char *gguf; /* after "ARCH." */
    const char *hf;
    size_t offset; /* in struct model_config, a uint32_t */
    uint32_t min, max;
};
extern const struct field_info config_fields[FIELDS];

struct family {
    const char *arch;         /* general.architecture */
    const char *model_type;   /* in config.json */
    enum rope_kind gguf_rope; /* GGUF llama has the rows of q and k permuted; config.json is always ROPE_NEOX */
    enum activation activation;
    bool qk_norm;
    bool gemma;      /* post norms, scaled embedding, window layers with their own rope, softcaps, norms that lack +1 */
    bool hf_windows; /* config.json may ask for window layers */
    bool hf_tied;    /* where config.json is silent, as transformers' configuration classes have it */
    uint32_t hf_default[FIELDS]; /* 0: derived (kv heads = heads, head_dim = dim / heads) */
};

/* How one layer kind rotates. */
enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };
struct rope_spec {
    enum rope_scaling scaling;
    double theta;
    double factor;
    double original_len;                      /* llama3, yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;                  /* yarn; 0: from factor (and mscale / mscale_all_dim unless 0) */
    double mscale, mscale_all_dim;
    bool no_truncate;
    const float *divisors; /* rope_freqs.weight [dim / 2], or NULL; unaligned is not possible */
};
/* Checked values -> inv_freq and mscale. dim is even and <= HEAD_DIM_MAX. `key` names the source in errors. */
bool rope_config_fill(struct rope_config *r, const struct rope_spec *spec, uint32_t dim, enum rope_kind kind,
                      const char *key, struct err *e);

uint32_t *config_field(struct model_config *c, enum field field);
/* Range check of one field's value as read; `key` names it. */
bool config_set_field(struct model_config *c, enum field field, int64_t value, const char *key, struct err *e);
/* The same for a real number; NaN fails. */
bool config_check_real(double v, double min, double max, const char *key, struct err *e);
/* After all fields were read: what holds between them. keys[FIELDS]: their names in this file. */
bool config_check_fields(const struct model_config *c, const char *const *keys, struct err *e);

bool config_read_gguf(const struct tensor_file *f, struct model_config *c, struct err *e);
bool config_read_hf(const struct tensor_file *f, struct model_config *c, struct err *e);
const struct family *config_family_of_arch(const char *arch, size_t n);
const struct family *config_family_of_model_type(const char *model_type);
/* What a family fixes whatever the file says. */
void config_set_family(struct model_config *c, const struct family *family);

/* ---- config.json ---- */

struct hf {
    const json_t *config;
    const struct family *family;
    struct err *e;
};
const json_t *hf_member(const json_t *o, const char *key); /* NULL when absent or null */
/* Absent, false, 0, "", {}, [], or 1 where `one` says that 1 is neutral. */
bool hf_is_neutral(const json_t *v, bool one);
/* True: *out was read, or the member is absent and *out untouched. False with *e: another type, or out of range. */
bool hf_opt_integer(const struct hf *s, const json_t *o, const char *key, int64_t *out);
bool hf_opt_real(const struct hf *s, const json_t *o, const char *key, double min, double max, double *out);
bool hf_opt_bool(const struct hf *s, const char *key, bool *out);
bool hf_opt_string(const struct hf *s, const json_t *o, const char *key, const char **out);
bool config_read_hf_rope(const struct hf *s, struct model_config *c);

/* Every tensor of the file has a role in this model, or is one of the few that may be left unread. */
bool tensor_names_check(const struct tensor_file *f, const struct model_config *c, struct err *e);

#endif
