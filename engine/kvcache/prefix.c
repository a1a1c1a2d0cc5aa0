/* prefix.c - prefix hits at the start of a sequence, and naming and release as it is computed.
 *
 * A hit of j blocks needs, for each kind, the blocks that the row at position 32 j can see: all for full attention,
 * the last few for a window. The walk goes down the names once and keeps, per kind, the run of parts that are there
 * without a gap; the longest j at which every run is long enough wins.
 *
 * Two sequences may compute the same block at the same time. The first to commit gives it a name; the second then
 * moves to the named one and frees its own. So a user of a named block always uses its parents too, which the order of
 * eviction (pool.c) relies on.
 *
 * Owner: the thread that owns the struct kv.
 */
#include "engine/kvcache/kv_int.h"

/* The longest usable prefix in blocks; *last: the node of its last block. */
static uint32_t prefix_walk(const struct kv *kv, uint64_t salt, const int32_t *tokens, uint32_t n, uint32_t *last) {
    uint32_t best = 0, node = NONE, run[KV_KINDS_MAX] = {0};
    *last = NONE;
    if (!kv->o.prefix_cache || n == 0) return 0;
    uint32_t n_max = (n - 1) / KV_BLOCK_TOKENS;
    if (n_max > kv->o.max_blocks_per_seq) n_max = kv->o.max_blocks_per_seq;
    for (uint32_t j = 1; j <= n_max; j++) {
        struct kv_hash hash;
        node = names_find(kv, node, salt, tokens + (size_t)(j - 1) * KV_BLOCK_TOKENS, &hash);
        if (node == NONE) break;
        bool usable = true;
        for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
            run[k] = kv->nodes[node].parts[k].first_page != NONE ? run[k] + 1 : 0;
            usable = usable && run[k] >= j - first_visible(kv, k, j * KV_BLOCK_TOKENS);
        }
        if (!usable) continue;
        best = j;
        *last = node;
    }
    return best;
}

uint32_t kv_prefix_find(const struct kv *kv, uint64_t salt, const int32_t *tokens, uint32_t n, uint32_t *pages_pinned) {
    uint32_t node, n_blocks = prefix_walk(kv, salt, tokens, n, &node);
    if (!pages_pinned) return n_blocks * KV_BLOCK_TOKENS;
    *pages_pinned = 0;
    for (uint32_t b = n_blocks; b-- > 0; node = kv->nodes[node].parent)
        for (uint32_t k = 0; k < kv->o.n_kinds; k++)
            if (b >= first_visible(kv, k, n_blocks * KV_BLOCK_TOKENS) && kv->nodes[node].parts[k].users == 0)
                *pages_pinned += kv->o.units[k];
    return n_blocks * KV_BLOCK_TOKENS;
}

uint32_t kv_prefix_take(struct kv *kv, int seq, const int32_t *tokens, uint32_t n) {
    struct kv_seq *q = seq_get(kv, seq);
    ASSERT(q->n_blocks == 0);
    uint32_t node, n_blocks = prefix_walk(kv, q->salt, tokens, n, &node);
    uint32_t n_tokens = n_blocks * KV_BLOCK_TOKENS;
    kv->queries_tokens += n;
    kv->hits_tokens += n_tokens;
    if (n_blocks == 0) return 0;
    names_ref(kv, node);
    for (uint32_t k = 0; k < kv->o.n_kinds; k++) q->first_live[k] = first_visible(kv, k, n_tokens);
    for (uint32_t b = n_blocks; b-- > 0; node = kv->nodes[node].parent) {
        *seq_node_at(kv, (uint32_t)seq, b) = node;
        for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
            uint32_t *pages = table_at(kv, (uint32_t)seq, k, b);
            if (b >= q->first_live[k])
                part_ref(kv, node, k, pages);
            else
                for (uint32_t u = 0; u < kv->o.units[k]; u++) pages[u] = KV_PAGE_NONE;
        }
    }
    q->n_blocks = q->n_named = n_blocks;
    q->n_computed = n_tokens;
    return n_tokens;
}

/* Block n_named of the sequence is full and computed: gives it its name, or moves to the pages that have it. */
static void block_name(struct kv *kv, int seq, const int32_t *tokens) {
    struct kv_seq *q = seq_get(kv, seq);
    uint32_t b = q->n_named, parent = b > 0 ? *seq_node_at(kv, (uint32_t)seq, b - 1) : NONE;
    const int32_t *run = tokens + (size_t)b * KV_BLOCK_TOKENS;
    struct kv_hash hash;
    uint32_t node = names_find(kv, parent, q->salt, run, &hash);
    if (node == NONE) node = names_add(kv, parent, q->salt, run, hash);
    if (node == NONE) {
        q->nameless = true;
        return;
    }
    names_ref(kv, node);
    for (uint32_t k = 0; k < kv->o.n_kinds; k++) {
        uint32_t *pages = table_at(kv, (uint32_t)seq, k, b);
        if (kv->nodes[node].parts[k].first_page == NONE) {
            part_attach(kv, node, k, pages);
        } else {
            for (uint32_t u = 0; u < kv->o.units[k]; u++) pool_page_push(kv, pages[u]);
            part_ref(kv, node, k, pages);
        }
    }
    *seq_node_at(kv, (uint32_t)seq, b) = node;
    q->n_named++;
    if (parent != NONE) names_unref(kv, parent);
}

void kv_commit(struct kv *kv, int seq, const int32_t *tokens, uint32_t n_tokens) {
    struct kv_seq *q = seq_get(kv, seq);
    ASSERT(n_tokens >= q->n_computed && blocks_of(n_tokens) <= q->n_blocks);
    q->n_computed = n_tokens;
    if (kv->o.prefix_cache)
        while (!q->nameless && q->n_named < n_tokens / KV_BLOCK_TOKENS) block_name(kv, seq, tokens);
    for (uint32_t k = 0; k < kv->o.n_kinds; k++)
        for (uint32_t end = first_visible(kv, k, n_tokens); q->first_live[k] < end; q->first_live[k]++)
            seq_block_release(kv, seq, k, q->first_live[k]);
}
