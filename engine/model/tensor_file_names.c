/* tensor_file_names.c - names from a file: made printable for messages, and kept in sets.
 *
 * Invariants
 * 1. Nothing from a file reaches a message or a terminal but printable ASCII.
 * 2. A set costs 4 bytes per slot, at most 4 slots per name, and looks a name up in constant time whatever the
 *    names are, because the hash is seeded per set.
 */
#include "engine/model/tensor_file_int.h"

#include "common/random.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct shown name_shown(struct name name) {
    struct shown out;
    size_t n = 0;
    while (n < name.n && n < sizeof out.text - 4) {
        unsigned char c = (unsigned char)name.s[n];
        out.text[n++] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    memcpy(out.text + n, n < name.n ? "..." : "", n < name.n ? 4 : 1);
    return out;
}

bool load_err(struct err *e, struct name about, const char *fmt, ...) {
    char text[sizeof e->message];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return err_set_param(e, ERR_LOAD, name_shown(about).text, "%s", text);
}

static uint64_t name_hash(const struct name_set *s, struct name name) {
    return XXH3_64bits_withSeed(name.s, name.n, s->seed);
}

/* The slot that holds the name, or the empty one where it would go. */
static uint32_t *name_slot(const struct name_set *s, struct name name) {
    for (uint64_t i = name_hash(s, name);; i++) {
        uint32_t *slot = &s->slots[i & s->mask];
        if (*slot == 0) return slot;
        const struct name *there = &s->names[*slot - 1];
        if (there->n == name.n && memcmp(there->s, name.s, name.n) == 0) return slot;
    }
}

bool name_set_init(struct name_set *s, const struct name *names, size_t count, long *duplicate) {
    size_t n_slots = 16;
    while (n_slots < 2 * count) n_slots *= 2;
    *s = (struct name_set){.names = names, .count = count, .mask = n_slots - 1, .seed = random_u64()};
    *duplicate = NAME_ABSENT;
    s->slots = calloc(n_slots, sizeof *s->slots);
    if (!s->slots) return false;
    for (size_t i = 0; i < count; i++) {
        uint32_t *slot = name_slot(s, names[i]);
        if (*slot == 0) {
            *slot = (uint32_t)i + 1;
        } else if (*duplicate == NAME_ABSENT) {
            *duplicate = (long)i;
        }
    }
    return true;
}

void name_set_free(struct name_set *s) {
    free(s->slots);
    *s = (struct name_set){0};
}

long name_set_find(const struct name_set *s, struct name name) {
    if (!s->slots) return NAME_ABSENT;
    uint32_t slot = *name_slot(s, name);
    return slot == 0 ? NAME_ABSENT : (long)slot - 1;
}
