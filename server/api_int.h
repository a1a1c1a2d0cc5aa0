/* api_int.h - between api_parse.c (the table) and api_input.c, api_parts.c (the fields with their own
 * parsers). */
#ifndef CHOIR_SERVER_API_INT_H
#define CHOIR_SERVER_API_INT_H

#include "server/api.h"

/* One request being parsed. */
struct api_parse {
    struct api_request *out;
    const struct api_model *model;
    struct err *e;
};

/* From the request's arena, zeroed; NULL: p->e says so. */
void *api_part_alloc(struct api_parse *p, size_t count, size_t bytes);
/* An array of ids of the vocabulary; *ids in the arena. */
bool api_token_ids_read(struct api_parse *p, const struct json_at *at, size_t n_min, size_t n_max, const int32_t **ids,
                        uint32_t *n_ids);

enum noop_type { NOOP_STRING, NOOP_BOOL, NOOP_METADATA };
bool api_noop_check(struct api_parse *p, const struct json_at *at, enum noop_type type);

/* "No memory": the one error of a request that is not its own. */
bool api_no_memory(struct err *e);

#define INT(...)
#define REAL(...)
#define BOOL(...)
#define NOOP(...)
#define REFUSED(...)
#define PART(name, where, parser, help) bool parser(struct api_parse *p, const struct json_at *at);
#include "server/api_fields.def"
#undef INT
#undef REAL
#undef BOOL
#undef NOOP
#undef REFUSED
#undef PART

#endif
