/* config_json.c - typed reads of the members of config.json.
 *
 * No state; the thread that loads the model.
 */
#include "engine/model/config_int.h"

const json_t *hf_member(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v; /* null is absent */
}

/* null, false, 0, "", {}, [] and 1 where `one` says that 1 is neutral. */
bool hf_is_neutral(const json_t *v, bool one) {
    if (!v || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == (one ? 1.0 : 0.0);
    if (json_is_string(v)) return json_string_length(v) == 0;
    return (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0);
}

bool hf_opt_integer(const struct hf *s, const json_t *o, const char *key, int64_t *out) {
    const json_t *v = hf_member(o, key);
    if (!v) return true;
    if (!json_is_integer(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not an integer", key);
    *out = json_integer_value(v);
    return true;
}

bool hf_opt_real(const struct hf *s, const json_t *o, const char *key, double min, double max, double *out) {
    const json_t *v = hf_member(o, key);
    if (!v) return true;
    if (!json_is_number(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not a number", key);
    *out = json_number_value(v);
    return config_check_real(*out, min, max, key, s->e);
}

bool hf_opt_bool(const struct hf *s, const char *key, bool *out) {
    const json_t *v = hf_member(s->config, key);
    if (!v) return true;
    if (!json_is_boolean(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not true or false", key);
    *out = json_is_true(v);
    return true;
}

bool hf_opt_string(const struct hf *s, const json_t *o, const char *key, const char **out) {
    const json_t *v = hf_member(o, key);
    if (!v) return true;
    if (!json_is_string(v)) return err_set_param(s->e, ERR_LOAD, key, "config.json: '%s' is not a string", key);
    *out = json_string_value(v);
    return true;
}
