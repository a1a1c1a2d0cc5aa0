/* matcher.c - finds added tokens (control and user-defined) in text: a trie over their bytes.
 *
 * Built once at opening, then read by any thread. A node's children are a linked list; the first byte goes through
 * a table, so that text without a token's first byte costs one look-up a character.
 *
 * Invariant: a match ends at the end of a token's text, and token texts are valid UTF-8 (checked at opening), so in
 * valid text a match begins and ends between characters.
 */
#include "engine/text/text_int.h"

#include <stdlib.h>

struct node {
    int32_t child, sibling; /* -1: none */
    int32_t id;             /* of the token that ends here, or -1 */
    uint8_t byte;
};

struct matcher {
    int32_t first[256];
    struct node *nodes;
    uint32_t n_nodes;
};

static int32_t node_find(const struct matcher *m, int32_t node, uint8_t byte) {
    while (node >= 0 && m->nodes[node].byte != byte) node = m->nodes[node].sibling;
    return node;
}

static void insert(struct matcher *m, const char *s, uint32_t n, int32_t id) {
    int32_t *list = &m->first[(uint8_t)s[0]], node = -1;
    for (uint32_t i = 0; i < n; i++) {
        node = node_find(m, *list, (uint8_t)s[i]);
        if (node < 0) {
            node = (int32_t)m->n_nodes++;
            m->nodes[node] = (struct node){.child = -1, .sibling = *list, .id = -1, .byte = (uint8_t)s[i]};
            *list = node;
        }
        list = &m->nodes[node].child;
    }
    m->nodes[node].id = id;
}

struct matcher *matcher_open(const struct tokenizer *t, const int32_t *ids, size_t n_ids, struct err *e) {
    struct matcher *m = malloc(sizeof *m);
    size_t n_nodes = 0;
    for (size_t i = 0; i < n_ids; i++) n_nodes += t->tokens[ids[i]].n_bytes;
    struct node *nodes = n_nodes <= INT32_MAX ? malloc(n_nodes * sizeof *nodes) : NULL;
    if (!m || !nodes) {
        free(m);
        free(nodes);
        err_set(e, ERR_LOAD, "No memory for the tokenizer's added tokens.");
        return NULL;
    }
    m->nodes = nodes;
    m->n_nodes = 0;
    for (int b = 0; b < 256; b++) m->first[b] = -1;
    for (size_t i = 0; i < n_ids; i++) {
        const struct token *k = &t->tokens[ids[i]];
        insert(m, t->arena + k->offset, k->n_bytes, ids[i]);
    }
    return m;
}

void matcher_close(struct matcher *m) {
    if (!m) return;
    free(m->nodes);
    free(m);
}

int32_t matcher_longest(const struct matcher *m, const struct tokenizer *t, const char *s, size_t n, bool control,
                        uint32_t *n_bytes) {
    int32_t found = -1, node = m->first[(uint8_t)s[0]];
    for (uint32_t i = 0; node >= 0;) {
        const struct node *at = &m->nodes[node];
        if (at->id >= 0 && (control || t->tokens[at->id].kind == TOKEN_USER_DEFINED)) {
            found = at->id;
            *n_bytes = i + 1;
        }
        if (++i == n) break;
        node = node_find(m, at->child, (uint8_t)s[i]);
        text_work++;
    }
    return found;
}
