/* test_kvcache.c - paged KV memory: accounts, prefix hits, isolation, windows, eviction, events, the integrity walk. */
#include "engine/kvcache/kv_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* The test of refused sizes asks for more than there is. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}

enum { N_MAX = 1024 };

static struct kv_options options(uint32_t n_pages, uint32_t window) {
    return (struct kv_options){.n_pages = n_pages,
                               .n_kinds = 1,
                               .units = {1, 1},
                               .window = {window, 0},
                               .prefix_cache = true,
                               .hash_key = {1, 2},
                               .max_seqs = 8,
                               .max_blocks_per_seq = N_MAX / KV_BLOCK_TOKENS};
}

/* One full kind of 1 page a block and one window kind of 2. */
static struct kv_options options_two_kinds(uint32_t n_pages, uint32_t window) {
    struct kv_options o = options(n_pages, 0);
    o.n_kinds = 2;
    o.units[1] = 2;
    o.window[1] = window;
    return o;
}

static struct kv *open_kv(struct kv_options o) {
    struct err e;
    struct kv *kv = kv_open(&o, &e);
    assert_non_null(kv);
    return kv;
}

static void check(const struct kv *kv) {
    struct err e;
    if (!kv_check(kv, &e)) fail_msg("%s", e.message);
}

static void tokens_fill(int32_t *tokens, uint32_t n, int32_t first) {
    for (uint32_t i = 0; i < n; i++) tokens[i] = first + (int32_t)i;
}

/* A sequence that takes what it can from the cache and computes the rest, in chunks. Returns the tokens it took. */
static uint32_t compute(struct kv *kv, int seq, const int32_t *tokens, uint32_t n, uint32_t chunk) {
    uint32_t n_hit = kv_prefix_take(kv, seq, tokens, n);
    for (uint32_t done = n_hit; done < n;) {
        done += chunk < n - done ? chunk : n - done;
        kv_grow(kv, seq, done);
        kv_commit(kv, seq, tokens, done);
        check(kv);
    }
    return n_hit;
}

static struct kv_stats stats(const struct kv *kv) {
    struct kv_stats s;
    kv_stats_get(kv, &s);
    assert_int_equal(s.pages_free + s.pages_cached + s.pages_used, s.pages_total);
    assert_int_equal(s.pages_free + s.pages_cached, kv_pages_available(kv));
    return s;
}

static void bad_options_are_refused(void **state) {
    (void)state;
    struct kv_options good = options(16, 0), bad[10];
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) bad[i] = good;
    bad[0].n_pages = 0;
    bad[1].n_pages = KV_PAGES_MAX + 1u;
    bad[2].n_kinds = 0;
    bad[3].n_kinds = KV_KINDS_MAX + 1;
    bad[4].units[0] = 0;
    bad[5].units[0] = UINT32_MAX;
    bad[6].max_seqs = 0;
    bad[7].max_blocks_per_seq = UINT32_MAX;
    bad[8].units[0] = 17; /* not even one block */
    bad[9].max_seqs = KV_SEQS_MAX, bad[9].max_blocks_per_seq = KV_SEQ_BLOCKS_MAX;
    bad[9].n_pages = bad[9].units[0] = KV_UNITS_MAX; /* within every limit, but beyond any address space */
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct err e = {.code = ERR_NONE};
        assert_null(kv_open(&bad[i], &e));
        assert_int_equal(e.code, ERR_LOAD);
    }
}

static void pages_are_taken_by_block_and_all_come_back(void **state) {
    (void)state;
    struct kv *kv = open_kv(options_two_kinds(30, 0));
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int seq = kv_seq_begin(kv, 0);
    assert_int_equal(kv_pages_needed(kv, seq, 0), 0);
    assert_int_equal(kv_pages_needed(kv, seq, 1), 3);
    assert_int_equal(kv_pages_needed(kv, seq, 32), 3);
    assert_int_equal(kv_pages_needed(kv, seq, 33), 6);
    assert_true(kv_can_grow(kv, seq, 320));
    assert_false(kv_can_grow(kv, seq, 321));
    assert_int_equal(kv_grow_max(kv, seq, 1000), 320);
    assert_int_equal(compute(kv, seq, tokens, 70, 7), 0);
    assert_int_equal(stats(kv).pages_used, 9);
    assert_int_equal(kv_seq_pages(kv, seq), 9);
    assert_int_equal(kv_grow_max(kv, seq, 90), 90);
    kv_seq_end(kv, seq);
    check(kv);
    assert_int_equal(stats(kv).pages_used, 0);
    assert_int_equal(stats(kv).pages_cached, 6); /* two full blocks; the third was partial */
    kv_close(kv);
}

static void sequences_are_handed_out_up_to_the_limit(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(4, 0));
    for (int i = 0; i < 8; i++) assert_int_equal(kv_seq_begin(kv, 0), i);
    assert_int_equal(kv_seq_begin(kv, 0), -1);
    kv_seq_end(kv, 5);
    assert_int_equal(kv_seq_begin(kv, 0), 5);
    kv_close(kv);
}

static void a_hit_is_the_longest_prefix_of_whole_blocks_below_the_last_token(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(64, 0));
    int32_t tokens[N_MAX], other[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int a = kv_seq_begin(kv, 0);
    compute(kv, a, tokens, 100, 100);
    const struct {
        uint32_t n, hit;
    } cases[] = {{1, 0}, {32, 0}, {33, 32}, {64, 32}, {65, 64}, {96, 64}, {97, 96}, {200, 96}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_int_equal(kv_prefix_find(kv, 0, tokens, cases[i].n, NULL), cases[i].hit);
    memcpy(other, tokens, sizeof other);
    other[40]++;
    assert_int_equal(kv_prefix_find(kv, 0, other, 100, NULL), 32);
    /* The hit shows the very same pages. While a is there nothing is pinned by it; afterwards all of it is. */
    uint32_t pinned;
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 100, &pinned), 96);
    assert_int_equal(pinned, 0);
    int b = kv_seq_begin(kv, 0);
    assert_int_equal(kv_prefix_take(kv, b, tokens, 100), 96);
    assert_memory_equal(kv_table(kv, a, 0), kv_table(kv, b, 0), 3 * sizeof(uint32_t));
    check(kv);
    kv_seq_end(kv, a);
    kv_seq_end(kv, b);
    kv_prefix_find(kv, 0, tokens, 100, &pinned);
    assert_int_equal(pinned, 3);
    assert_int_equal(kv->hits_tokens, 96);
    assert_int_equal(kv->queries_tokens, 200);
    kv_close(kv);
}

static void different_salts_never_share(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(64, 0));
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int a = kv_seq_begin(kv, 1), b = kv_seq_begin(kv, 2);
    compute(kv, a, tokens, 200, 64);
    assert_int_equal(kv_prefix_find(kv, 2, tokens, 200, NULL), 0);
    assert_int_equal(compute(kv, b, tokens, 200, 64), 0);
    for (uint32_t i = 0; i < 7; i++)
        for (uint32_t k = 0; k < 7; k++) assert_int_not_equal(kv_table(kv, a, 0)[i], kv_table(kv, b, 0)[k]);
    kv_close(kv);
}

static struct kv_hash hash_constant(const uint64_t key[2], const void *data, size_t n_bytes) {
    (void)key, (void)data, (void)n_bytes;
    return (struct kv_hash){42, 42};
}

static void crafted_hash_collisions_never_share(void **state) {
    (void)state;
    struct kv_options o = options(64, 0);
    o.hash = hash_constant;
    struct kv *kv = open_kv(o);
    int32_t a[96], b[96];
    tokens_fill(a, 96, 0);
    int seq = kv_seq_begin(kv, 1);
    compute(kv, seq, a, 96, 96);
    memcpy(b, a, sizeof b); /* differs in one token only */
    b[5]++;
    assert_int_equal(kv_prefix_find(kv, 1, b, 96, NULL), 0);
    memcpy(b, a + 32, 64 * sizeof *a); /* blocks that exist, but after another history */
    assert_int_equal(kv_prefix_find(kv, 1, b, 64, NULL), 0);
    memcpy(b, a, 32 * sizeof *a);
    memcpy(b + 32, a + 64, 32 * sizeof *a); /* first right, second one that exists elsewhere */
    assert_int_equal(kv_prefix_find(kv, 1, b, 96, NULL), 32);
    assert_int_equal(kv_prefix_find(kv, 2, a, 96, NULL), 0); /* another tenant */
    assert_int_equal(kv_prefix_find(kv, 1, a, 96, NULL), 64);
    kv_close(kv);
}

static void the_key_changes_every_hash(void **state) {
    (void)state;
    int32_t tokens[32];
    tokens_fill(tokens, 32, 0);
    struct kv_hash h[3];
    for (uint32_t i = 0; i < 3; i++) {
        struct kv_options o = options(4, 0);
        if (i > 0) o.hash_key[i - 1]++;
        struct kv *kv = open_kv(o);
        h[i] = names_hash(kv, NONE, 0, tokens);
        kv_close(kv);
    }
    assert_true(h[0].lo != h[1].lo && h[0].lo != h[2].lo && h[1].lo != h[2].lo);
    assert_true(h[0].hi != h[1].hi && h[0].hi != h[2].hi && h[1].hi != h[2].hi);
}

static void prefix_cache_off_keeps_nothing(void **state) {
    (void)state;
    struct kv_options o = options(64, 0);
    o.prefix_cache = false;
    struct kv *kv = open_kv(o);
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int seq = kv_seq_begin(kv, 0);
    compute(kv, seq, tokens, 100, 10);
    kv_seq_end(kv, seq);
    assert_int_equal(stats(kv).pages_free, 64);
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 100, NULL), 0);
    kv_close(kv);
}

static void equal_blocks_in_flight_end_as_one(void **state) {
    (void)state;
    struct kv *kv = open_kv(options_two_kinds(64, 50));
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int a = kv_seq_begin(kv, 0), b = kv_seq_begin(kv, 0);
    kv_grow(kv, a, 64);
    kv_grow(kv, b, 64);
    assert_int_equal(stats(kv).pages_used, 12);
    kv_commit(kv, a, tokens, 64);
    kv_commit(kv, b, tokens, 64);
    check(kv);
    assert_int_equal(stats(kv).pages_used, 6);
    assert_memory_equal(kv_table(kv, a, 0), kv_table(kv, b, 0), 2 * sizeof(uint32_t));
    assert_memory_equal(kv_table(kv, a, 1), kv_table(kv, b, 1), 4 * sizeof(uint32_t));
    kv_seq_end(kv, a);
    check(kv);
    kv_seq_end(kv, b);
    check(kv);
    assert_int_equal(stats(kv).pages_used, 0);
    kv_close(kv);
}

/* After n computed tokens exactly the blocks that position n or a later one can see are in the table. */
static void a_window_holds_what_the_next_position_sees(void **state) {
    (void)state;
    static const uint32_t windows[] = {1, 2, 31, 32, 33, 64, 100};
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    for (size_t i = 0; i < ARRAY_COUNT(windows); i++) {
        uint32_t w = windows[i];
        struct kv *kv = open_kv(options_two_kinds(200, w));
        int seq = kv_seq_begin(kv, 0);
        for (uint32_t n = 1; n <= 300; n++) {
            kv_grow(kv, seq, n);
            kv_commit(kv, seq, tokens, n);
            for (uint32_t b = 0; b <= (n - 1) / 32; b++) {
                bool seen = false;
                for (uint32_t p = b * 32; p < b * 32 + 32; p++) seen = seen || p + w > n;
                assert_int_equal(kv_table(kv, seq, 1)[2 * b] != KV_PAGE_NONE, seen);
                assert_int_equal(kv_table(kv, seq, 1)[2 * b + 1] != KV_PAGE_NONE, seen);
                assert_int_not_equal(kv_table(kv, seq, 0)[b], KV_PAGE_NONE);
            }
        }
        check(kv);
        kv_close(kv);
    }
}

/* kv_pages_span against what growing really holds: exact for single tokens, a bound for chunks. */
static void the_span_of_a_sequence_is_what_it_takes(void **state) {
    (void)state;
    static const uint32_t windows[] = {0, 1, 2, 32, 33, 34, 65, 97};
    static const uint32_t chunks[] = {1, 2, 31, 33, 100};
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    for (size_t i = 0; i < ARRAY_COUNT(windows); i++)
        for (size_t c = 0; c < ARRAY_COUNT(chunks); c++) {
            struct kv_options o = options_two_kinds(200, windows[i]);
            o.prefix_cache = false;
            struct kv *kv = open_kv(o);
            int seq = kv_seq_begin(kv, 0);
            uint32_t most = 0;
            for (uint32_t n = 0; n < 400;) {
                n += chunks[c];
                kv_grow(kv, seq, n);
                if (stats(kv).pages_used > most) most = stats(kv).pages_used;
                kv_commit(kv, seq, tokens, n);
                uint64_t span = kv_pages_span(kv, 0, n, chunks[c]);
                assert_true(chunks[c] == 1 ? span == most : span >= most);
            }
            kv_close(kv);
        }
}

static void a_hit_needs_the_window_blocks_that_the_next_position_sees(void **state) {
    (void)state;
    struct kv *kv = open_kv(options_two_kinds(60, 40));
    int32_t tokens[N_MAX], other[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int a = kv_seq_begin(kv, 0);
    compute(kv, a, tokens, 320, 32);
    kv_seq_end(kv, a); /* 30 pages cached, 30 free; the window blocks were released in order of position */
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 161, NULL), 160);
    /* Another sequence takes the free pages and, of the cached, the window blocks 0 to 2: least recently used. */
    tokens_fill(other, N_MAX, 5000);
    int b = kv_seq_begin(kv, 1);
    kv_grow(kv, b, 12 * 32);
    check(kv);
    assert_int_equal(stats(kv).evictions, 3);
    /* 64 needs the window blocks 0 and 1, 96 the blocks 1 and 2, 128 the blocks 2 and 3, 160 the blocks 3 and 4. */
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 100, NULL), 0);
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 129, NULL), 0);
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 161, NULL), 160);
    int c = kv_seq_begin(kv, 0);
    assert_int_equal(kv_prefix_take(kv, c, tokens, 161), 160);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_not_equal(kv_table(kv, c, 0)[i], KV_PAGE_NONE);
        assert_int_equal(kv_table(kv, c, 1)[2 * i] == KV_PAGE_NONE, i < 3);
    }
    check(kv);
    kv_close(kv);
}

static void only_a_window_kind_still_hits(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(8, 40));
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int a = kv_seq_begin(kv, 0);
    compute(kv, a, tokens, 512, 16); /* 16 blocks through 8 pages: the first are long gone */
    kv_seq_end(kv, a);
    check(kv);
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 100, NULL), 0);
    assert_int_equal(kv_prefix_find(kv, 0, tokens, 513, NULL), 512);
    int b = kv_seq_begin(kv, 0);
    assert_int_equal(compute(kv, b, tokens, 600, 16), 512);
    kv_close(kv);
}

static void the_least_recently_used_goes_first_and_a_leaf_before_its_parent(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(8, 0));
    int32_t a[N_MAX], b[N_MAX], c[N_MAX];
    tokens_fill(a, N_MAX, 0);
    tokens_fill(b, N_MAX, 5000);
    tokens_fill(c, N_MAX, 9000);
    int seq = kv_seq_begin(kv, 0);
    compute(kv, seq, a, 128, 128);
    kv_seq_end(kv, seq);
    seq = kv_seq_begin(kv, 0);
    compute(kv, seq, b, 128, 128);
    kv_seq_end(kv, seq);
    assert_int_equal(stats(kv).pages_cached, 8);
    seq = kv_seq_begin(kv, 0); /* a is used again, so b is the older one now */
    assert_int_equal(kv_prefix_take(kv, seq, a, 129), 128);
    kv_seq_end(kv, seq);
    seq = kv_seq_begin(kv, 0);
    compute(kv, seq, c, 64, 64);
    assert_int_equal(kv_prefix_find(kv, 0, a, 129, NULL), 128);
    assert_int_equal(kv_prefix_find(kv, 0, b, 129, NULL), 64);
    kv_grow(kv, seq, 128);
    assert_int_equal(kv_prefix_find(kv, 0, b, 129, NULL), 0);
    kv_grow(kv, seq, 160);
    assert_int_equal(kv_prefix_find(kv, 0, a, 129, NULL), 96);
    check(kv);
    kv_close(kv);
}

struct event_log {
    uint32_t n;
    struct kv_event events[64];
    int32_t first_tokens[64];
};

static void event_append(void *arg, const struct kv_event *ev) {
    struct event_log *log = arg;
    assert_true(log->n < 64);
    log->first_tokens[log->n] = ev->tokens[0];
    log->events[log->n++] = *ev;
}

static void events_tell_routers_what_is_stored(void **state) {
    (void)state;
    struct kv *kv = open_kv(options_two_kinds(12, 40));
    struct event_log log = {0};
    kv_on_event(kv, event_append, &log);
    int32_t a[N_MAX], b[N_MAX];
    tokens_fill(a, N_MAX, 0);
    tokens_fill(b, N_MAX, 5000);
    int seq = kv_seq_begin(kv, 7);
    compute(kv, seq, a, 96, 20);
    assert_int_equal(log.n, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(log.events[i].kind, KV_EVENT_STORED);
        assert_int_equal(log.events[i].salt, 7);
        assert_int_equal(log.first_tokens[i], 32 * i);
        assert_true(log.events[i].parent == (i > 0 ? log.events[i - 1].hash : 0));
    }
    kv_seq_end(kv, seq);
    seq = kv_seq_begin(kv, 0);
    kv_grow(kv, seq, 128); /* all 12 pages */
    assert_int_equal(log.n, 6);
    for (uint32_t i = 3; i < 6; i++) { /* children before parents */
        assert_int_equal(log.events[i].kind, KV_EVENT_REMOVED);
        assert_true(log.events[i].hash == log.events[5 - i].hash && log.events[i].parent == log.events[5 - i].parent);
    }
    assert_int_equal(stats(kv).blocks_named, 0);
    kv_close(kv);
}

static void the_epoch_moves_when_a_refused_request_could_fit(void **state) {
    (void)state;
    struct kv *kv = open_kv(options(8, 0));
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    int seq = kv_seq_begin(kv, 0);
    uint64_t before = kv_epoch(kv);
    kv_grow(kv, seq, 40);
    kv_commit(kv, seq, tokens, 31);
    assert_true(kv_epoch(kv) == before);
    kv_commit(kv, seq, tokens, 32); /* a name */
    assert_true(kv_epoch(kv) != before);
    before = kv_epoch(kv);
    kv_seq_end(kv, seq); /* pages */
    assert_true(kv_epoch(kv) != before);
    kv_close(kv);
}

/* kv_check must be able to fail: each way to break the books is found. */
static void the_integrity_walk_finds_broken_books(void **state) {
    (void)state;
    int32_t tokens[N_MAX];
    tokens_fill(tokens, N_MAX, 0);
    for (int fault = 0; fault < 14; fault++) {
        struct kv *kv = open_kv(options_two_kinds(60, 40));
        int a = kv_seq_begin(kv, 1), b = kv_seq_begin(kv, 1);
        compute(kv, a, tokens, 150, 50);
        compute(kv, b, tokens, 70, 10);
        kv_seq_end(kv, b);
        check(kv);
        uint32_t cached = kv->lru_first / KV_KINDS_MAX, cached_kind = kv->lru_first % KV_KINDS_MAX;
        uint32_t first = *seq_node_at(kv, (uint32_t)a, 0), second = *seq_node_at(kv, (uint32_t)a, 1);
        switch (fault) {
        case 0:
            kv->n_free--;
            break;
        case 1:
            kv->n_cached++;
            break;
        case 2:
            kv->nodes[first].parts[0].users++;
            break;
        case 3:
            kv->nodes[first].refs++;
            break;
        case 4:
            *table_at(kv, (uint32_t)a, 0, 4) = *table_at(kv, (uint32_t)a, 0, 3);
            break;
        case 5:
            *table_at(kv, (uint32_t)a, 0, 1) = kv->free_page;
            break;
        case 6:
            *table_at(kv, (uint32_t)a, 1, 0) = kv->free_page;
            break; /* released entry has a page again */
        case 7:
            kv->seqs[a].salt = 2;
            break;
        case 8:
            kv->nodes[second].tokens[3]++;
            break;
        case 9:
            kv->nodes[second].parent = NONE;
            break;
        case 10:
            kv->free_page = kv->page_next[kv->free_page];
            break; /* a lost page */
        case 11:
            kv->seqs[a].first_live[1]--;
            break;
        case 12:
            kv->nodes[cached].parts[cached_kind].lru_next = NONE;
            break;
        case 13:
            kv->page_next[kv->nodes[first].parts[0].first_page] = kv->free_page;
            break;
        }
        struct err e;
        if (kv_check(kv, &e)) fail_msg("fault %d was not found", fault);
        assert_int_equal(e.code, ERR_INTERNAL);
        kv_close(kv);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(pages_are_taken_by_block_and_all_come_back),
        cmocka_unit_test(sequences_are_handed_out_up_to_the_limit),
        cmocka_unit_test(a_hit_is_the_longest_prefix_of_whole_blocks_below_the_last_token),
        cmocka_unit_test(different_salts_never_share),
        cmocka_unit_test(crafted_hash_collisions_never_share),
        cmocka_unit_test(the_key_changes_every_hash),
        cmocka_unit_test(prefix_cache_off_keeps_nothing),
        cmocka_unit_test(equal_blocks_in_flight_end_as_one),
        cmocka_unit_test(a_window_holds_what_the_next_position_sees),
        cmocka_unit_test(the_span_of_a_sequence_is_what_it_takes),
        cmocka_unit_test(a_hit_needs_the_window_blocks_that_the_next_position_sees),
        cmocka_unit_test(only_a_window_kind_still_hits),
        cmocka_unit_test(the_least_recently_used_goes_first_and_a_leaf_before_its_parent),
        cmocka_unit_test(events_tell_routers_what_is_stored),
        cmocka_unit_test(the_epoch_moves_when_a_refused_request_could_fit),
        cmocka_unit_test(the_integrity_walk_finds_broken_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
