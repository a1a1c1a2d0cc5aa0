/* weight.c - packed matrices: shape checks, memory, parallel repacking, embedding lookup.
 *
 * Packing is split over the pool by panels; a panel is written by one item only. Shapes come from a model file
 * and are checked here; the caller vouches for the bytes behind src.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/cpu/weight_arena.h"
#include "engine/kernels/cpu/panel.h"
#include "engine/kernels/dtype.h"

enum {
    WEIGHT_DIM_MAX = 1 << 24,     /* rows or columns: above any model; keeps 32-bit index arithmetic safe */
    PACK_ITEM_BYTES = 256 * 1024, /* of panels per pool item */
};

static bool slices_valid(const struct slices *s, enum dtype t, uint32_t n_cols) {
    if (s->count != 1 && s->count != 2 && s->count != 4 && s->count != 8) return false;
    if (s->edge[0] != 0 || s->edge[s->count] != n_cols) return false;
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->edge[i] > s->edge[i + 1] || s->edge[i] % dtype_slice_unit(t)) return false;
    }
    return true;
}

static bool shape_check(enum dtype t, uint32_t n_rows, uint32_t n_cols, size_t row_bytes, const struct slices *s,
                        struct err *e) {
    if ((unsigned)t >= DT_COUNT || t == DT_I8) return err_set(e, ERR_LOAD, "weights of an unsupported type");
    if (n_rows == 0 || n_cols == 0 || n_rows > WEIGHT_DIM_MAX || n_cols > WEIGHT_DIM_MAX)
        return err_set(e, ERR_LOAD, "a matrix of %u x %u is outside the supported 1..%d", n_rows, n_cols,
                       WEIGHT_DIM_MAX);
    if (n_cols % dtype_block_len(t))
        return err_set(e, ERR_LOAD, "%u columns are not whole blocks of %s (%u)", n_cols, dtype_name(t),
                       dtype_block_len(t));
    if (row_bytes < dtype_row_bytes(t, n_cols))
        return err_set(e, ERR_LOAD, "rows of %s lie closer than their length", dtype_name(t));
    if (!slices_valid(s, t, n_cols))
        return err_set(e, ERR_LOAD, "slices do not cut %u columns of %s on block edges", n_cols, dtype_name(t));
    return true;
}

struct pack_job {
    const struct weight *w;
    const uint8_t *src;
    size_t row_bytes;
    uint32_t panels_per_item;
};

static void pack_item(void *arg, uint32_t item) {
    const struct pack_job *j = arg;
    const struct weight *w = j->w;
    const uint32_t first = item * j->panels_per_item;
    const uint32_t last = (uint32_t)size_min((size_t)first + j->panels_per_item, w->n_panels);
    for (uint32_t p = first; p < last; p++) {
        uint8_t *panel = w->panels + p * w->panel_bytes;
        for (uint32_t r = 0; r < ROW_PANEL && p * ROW_PANEL + r < w->n_rows; r++) {
            panel_row_pack(w, panel, r, j->src + (size_t)(p * ROW_PANEL + r) * j->row_bytes);
        }
    }
}

struct weight *cpu_weight_pack(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols, const void *src,
                               size_t row_bytes, const struct slices *slices, struct err *e) {
    if (!shape_check(t, n_rows, n_cols, row_bytes, slices, e)) return NULL;
    struct cpu *cpu = cpu_of(k);
    struct weight *w = calloc(1, sizeof *w);
    if (w) {
        *w = (struct weight){.type = t, .n_rows = n_rows, .n_cols = n_cols, .slices = *slices};
        w->n_panels = (uint32_t)div_up(n_rows, ROW_PANEL);
        w->panel_bytes = panel_bytes(t, n_cols);
        w->panels = weight_arena_alloc(cpu->arena, w->n_panels * w->panel_bytes, &w->chunk);
    }
    if (!w || !w->panels) {
        free(w);
        err_set(e, ERR_LOAD, "no memory for a matrix of %u x %u in %s", n_rows, n_cols, dtype_name(t));
        return NULL;
    }
    struct pack_job job = {.w = w, .src = src, .row_bytes = row_bytes};
    job.panels_per_item = (uint32_t)size_max(1, PACK_ITEM_BYTES / w->panel_bytes);
    pool_run(cpu->pool, (uint32_t)div_up(w->n_panels, job.panels_per_item), pack_item, &job);
    return w;
}

void cpu_weight_free(struct kernels *k, struct weight *w) {
    if (!w) return;
    weight_arena_free(cpu_of(k)->arena, w->chunk);
    free(w);
}

size_t cpu_weight_bytes(const struct weight *w) {
    return w->n_panels * w->panel_bytes;
}

unsigned cpu_weight_act_format(const struct weight *w) {
    switch (w->type) {
    case DT_F32:
    case DT_F16:
        return ACT_F32;
    case DT_BF16:
        return ACT_BF16;
    default:
        return ACT_Q8;
    }
}

/* ---- Embedding lookup ---- */

struct embed_job {
    const struct weight *w;
    const int32_t *ids;
    float scale;
    float *out;
};

static void embed_item(void *arg, uint32_t token) {
    const struct embed_job *j = arg;
    const uint32_t row = (uint32_t)j->ids[token];
    ASSERT(row < j->w->n_rows);
    float *y = j->out + (size_t)token * j->w->n_cols;
    panel_row_to_f32(j->w, panel_at(j->w, row / ROW_PANEL), row % ROW_PANEL, y);
    for (uint32_t i = 0; i < j->w->n_cols; i++) y[i] *= j->scale;
}

void cpu_embed(struct kernels *k, const struct weight *w, const int32_t *ids, uint32_t n_tokens, float scale,
               float *out) {
    struct embed_job job = {.w = w, .ids = ids, .scale = scale, .out = out};
    pool_run(cpu_of(k)->pool, n_tokens, embed_item, &job);
}
