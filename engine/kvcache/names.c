/* names.c - the index of nodes: from (parent, salt, tokens) to the node of that name.
 *
 * A hash table with chaining by index. The hash only finds candidates; equality is decided on salt, parent node and
 * tokens. Since a parent is compared as a node, and a node that has children is never forgotten, equal names mean
 * equal histories by induction, whatever the hash function does.
 *
 * Owner: the thread that owns the struct kv.
 *
 * Invariants
 *  1. A live node is in exactly the bucket of its hash; its parent, if any, is live and has the same salt.
 *  2. refs of a node = its live children + the sequences whose last named block it is.
 *  3. A live node has a part, or refs > 0. (names_drop_unused runs wherever either may end.)
 *  4. No two live nodes have the same parent, salt and tokens.
 */
#include "engine/kvcache/kv_int.h"

#include <string.h>
#include <xxhash.h>

void names_init(struct kv *kv) {
    for (uint32_t i = 0; i <= kv->bucket_mask; i++) kv->buckets[i] = NONE;
    for (uint32_t i = 0; i < kv->n_nodes; i++) kv->nodes[i].next = i + 1 < kv->n_nodes ? i + 1 : NONE;
    kv->unused_node = 0;
}

static struct kv_hash xxh3(const uint64_t key[2], const void *data, size_t n_bytes) {
    XXH128_hash_t h = XXH3_128bits_withSeed(data, n_bytes, key[0]);
    return (struct kv_hash){h.low64, h.high64};
}

struct kv_hash names_hash(const struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens) {
    struct {
        uint64_t key, salt;
        struct kv_hash parent;
        int32_t tokens[KV_BLOCK_TOKENS];
    } in = {kv->o.hash_key[1], salt, {0, 0}, {0}};
    if (parent != NONE) in.parent = kv->nodes[parent].hash;
    memcpy(in.tokens, tokens, sizeof in.tokens);
    return (kv->o.hash ? kv->o.hash : xxh3)(kv->o.hash_key, &in, sizeof in);
}

uint32_t names_find(const struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens, struct kv_hash *hash) {
    *hash = names_hash(kv, parent, salt, tokens);
    for (uint32_t i = kv->buckets[hash->lo & kv->bucket_mask]; i != NONE; i = kv->nodes[i].next) {
        const struct node *n = &kv->nodes[i];
        if (n->hash.lo == hash->lo && n->hash.hi == hash->hi && n->parent == parent && n->salt == salt &&
            memcmp(n->tokens, tokens, sizeof n->tokens) == 0)
            return i;
    }
    return NONE;
}

uint32_t names_add(struct kv *kv, uint32_t parent, uint64_t salt, const int32_t *tokens, struct kv_hash hash) {
    /* Names without parts can fill the index when only a window kind exists; eviction ends their descendants. */
    while (kv->unused_node == NONE && pool_evict(kv)) {
    }
    uint32_t id = kv->unused_node;
    if (id == NONE) return NONE;
    struct node *n = &kv->nodes[id];
    kv->unused_node = n->next;
    uint32_t *bucket = &kv->buckets[hash.lo & kv->bucket_mask];
    *n = (struct node){.hash = hash, .salt = salt, .parent = parent, .next = *bucket, .live = true};
    *bucket = id;
    for (uint32_t k = 0; k < KV_KINDS_MAX; k++) n->parts[k].first_page = NONE;
    memcpy(n->tokens, tokens, sizeof n->tokens);
    if (parent != NONE) names_ref(kv, parent);
    return id;
}

void names_ref(struct kv *kv, uint32_t node) {
    kv->nodes[node].refs++;
}

static void names_remove(struct kv *kv, uint32_t id) {
    struct node *n = &kv->nodes[id];
    uint32_t *link = &kv->buckets[n->hash.lo & kv->bucket_mask];
    while (*link != id) link = &kv->nodes[*link].next;
    *link = n->next;
    n->live = false;
    n->next = kv->unused_node;
    kv->unused_node = id;
}

void names_drop_unused(struct kv *kv, uint32_t node) {
    while (node != NONE) {
        struct node *n = &kv->nodes[node];
        if (n->refs > 0) return;
        for (uint32_t k = 0; k < kv->o.n_kinds; k++)
            if (n->parts[k].first_page != NONE) return;
        uint32_t parent = n->parent;
        names_remove(kv, node);
        if (parent != NONE) kv->nodes[parent].refs--;
        node = parent;
    }
}

void names_unref(struct kv *kv, uint32_t node) {
    ASSERT(kv->nodes[node].refs > 0);
    kv->nodes[node].refs--;
    names_drop_unused(kv, node);
}

void names_event(const struct kv *kv, uint32_t node, int kind) {
    if (!kv->on_event) return;
    const struct node *n = &kv->nodes[node];
    struct kv_event ev = {.hash = n->hash.lo, .salt = n->salt, .tokens = n->tokens};
    ev.kind = kind;
    if (n->parent != NONE) ev.parent = kv->nodes[n->parent].hash.lo;
    kv->on_event(kv->event_arg, &ev);
}
