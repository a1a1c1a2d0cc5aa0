/* matmul.c - drives the panel kernels: splits rows into pool items, walks tiles of tokens, gates and packs.
 *
 * An item is a group of panels, sized to stay in the L2 cache (ITEM_BYTES) and times all tokens: for each tile of
 * 8 tokens, for each panel of the group. So a tile of x stays in L1, weights come from memory once, and the item
 * owns its outputs. Items never split columns: results do not depend on how many threads there are.
 */
#include <string.h>

#include "engine/kernels/cpu/panel.h"

enum {
    ITEM_BYTES = 64 * 1024,     /* of weights per item */
    ITEMS_PER_THREAD = 8,       /* at least, where there is that much: evens out the end of an operation */
    ITEMS_PER_THREAD_LONG = 16, /* with many tokens, where an item takes long and starting one costs nothing */
    LONG_TOKENS = 64,
    MATRICES_PER_RUN = 16, /* matrices in one pool run */
};

/* ---- Activations as the kernels read them ---- */

struct x_view {
    const uint8_t *tiles, *sums;
    size_t tile_bytes, sums_bytes;
};

static struct x_view x_view_of(const struct weight *w, const struct act *x) {
    const unsigned format = cpu_weight_act_format(w);
    ASSERT(x->formats & format && x->n_cols == w->n_cols);
    if (format == ACT_Q8) return (struct x_view){x->q8, x->q8_sums, x->q8_tile_bytes, x->q8_sums_tile_bytes};
    if (format == ACT_F32) return (struct x_view){(const uint8_t *)x->f32, NULL, x->f32_tile_bytes, 0};
    return (struct x_view){(const uint8_t *)x->bf16, NULL, x->bf16_tile_bytes, 0};
}

static uint32_t tile_rows(uint32_t n_tokens, uint32_t tile) {
    return (uint32_t)size_min(n_tokens - (size_t)tile * TILE_TOKENS, TILE_TOKENS);
}

/* Units of `bytes` each per item: enough to fill ITEM_BYTES, few enough to give every thread several. */
static uint32_t units_per_item(const struct cpu *cpu, size_t units, size_t bytes, uint32_t n_tokens) {
    const size_t share = n_tokens < LONG_TOKENS ? ITEMS_PER_THREAD : ITEMS_PER_THREAD_LONG;
    const size_t by_size = size_max(1, ITEM_BYTES / bytes);
    const size_t by_share = size_max(1, units / (cpu->base.n_threads * share));
    return (uint32_t)size_min(by_size, by_share);
}

/* ---- Plain matrices ---- */

struct matmul_part {
    const struct matmul *m;
    struct x_view x;
    uint32_t panels_per_item, first_item;
};

struct matmul_job {
    const struct cpu *cpu;
    struct matmul_part parts[MATRICES_PER_RUN];
    uint32_t n_parts, n_tokens;
};

/* The last panel of a matrix whose rows are not a multiple of 16 goes through a scratch tile. */
static void ragged_panel_run(panel_fn *fn, const struct matmul *m, uint32_t panel, const uint8_t *tile,
                             const uint8_t *sums, uint32_t nc, float *y) {
    _Alignas(64) float scratch[TILE_TOKENS * ROW_PANEL];
    fn(m->w, panel, tile, sums, nc, scratch, ROW_PANEL);
    const size_t n = m->w->n_rows - panel * ROW_PANEL;
    for (size_t c = 0; c < nc; c++) memcpy(y + c * m->y_stride, scratch + c * ROW_PANEL, n * sizeof(float));
}

static void panels_run(const struct matmul_job *j, const struct matmul_part *part, uint32_t first, uint32_t last) {
    const struct matmul *m = part->m;
    panel_fn *fn = j->cpu->isa.panel[m->w->type];
    for (uint32_t t = 0; t * TILE_TOKENS < j->n_tokens; t++) {
        const uint8_t *tile = part->x.tiles + t * part->x.tile_bytes;
        const uint8_t *sums = part->x.sums + t * part->x.sums_bytes;
        const uint32_t nc = tile_rows(j->n_tokens, t);
        for (uint32_t p = first; p < last; p++) {
            float *y = m->y + (size_t)t * TILE_TOKENS * m->y_stride + (size_t)p * ROW_PANEL;
            if ((p + 1) * ROW_PANEL > m->w->n_rows)
                ragged_panel_run(fn, m, p, tile, sums, nc, y);
            else
                fn(m->w, p, tile, sums, nc, y, m->y_stride);
        }
    }
}

static void matmul_item(void *arg, uint32_t item) {
    const struct matmul_job *j = arg;
    uint32_t i = j->n_parts - 1;
    while (j->parts[i].first_item > item) i--;
    const struct matmul_part *part = &j->parts[i];
    const uint32_t first = (item - part->first_item) * part->panels_per_item;
    panels_run(j, part, first, (uint32_t)size_min((size_t)first + part->panels_per_item, part->m->w->n_panels));
}

static void matmul_batch(struct cpu *cpu, const struct matmul *m, uint32_t n, const struct act *x, uint32_t n_tokens) {
    struct matmul_job job = {.cpu = cpu, .n_parts = n, .n_tokens = n_tokens};
    size_t panels = 0;
    uint32_t n_items = 0;
    for (uint32_t i = 0; i < n; i++) panels += m[i].w->n_panels;
    for (uint32_t i = 0; i < n; i++) {
        struct matmul_part *part = &job.parts[i];
        part->m = &m[i];
        part->x = x_view_of(m[i].w, x);
        part->panels_per_item = units_per_item(cpu, panels, m[i].w->panel_bytes, n_tokens);
        part->first_item = n_items;
        n_items += (uint32_t)div_up(m[i].w->n_panels, part->panels_per_item);
    }
    pool_run(cpu->pool, n_items, matmul_item, &job);
}

void cpu_matmul(struct kernels *k, const struct matmul *m, uint32_t n, const struct act *x, uint32_t n_tokens) {
    ASSERT(x->n_tokens == n_tokens);
    for (uint32_t i = 0; i < n; i += MATRICES_PER_RUN) {
        matmul_batch(cpu_of(k), m + i, (uint32_t)size_min(n - i, MATRICES_PER_RUN), x, n_tokens);
    }
}

/* ---- Gate and up ---- */

struct gated_job {
    const struct cpu *cpu;
    const struct weight *gate, *up;
    enum activation f;
    struct x_view x_gate, x_up;
    uint32_t n_tokens, units_per_item, n_units;
    struct act *out;
};

/* One matrix' part of a unit: its (up to) two panels into out[nc][GATE_ROWS]. */
static void unit_rows(const struct gated_job *j, const struct weight *w, const struct x_view *x, uint32_t unit,
                      uint32_t tile, uint32_t nc, float *out) {
    const uint32_t first = unit * (GATE_ROWS / ROW_PANEL);
    for (uint32_t p = first; p < first + GATE_ROWS / ROW_PANEL && p < w->n_panels; p++) {
        j->cpu->isa.panel[w->type](w, p, x->tiles + tile * x->tile_bytes, x->sums + tile * x->sums_bytes, nc,
                                   out + (p - first) * ROW_PANEL, GATE_ROWS);
    }
}

static void unit_run(const struct gated_job *j, uint32_t unit, uint32_t tile) {
    _Alignas(64) float gate[TILE_TOKENS * GATE_ROWS], up[TILE_TOKENS * GATE_ROWS];
    const uint32_t nc = tile_rows(j->n_tokens, tile);
    const uint32_t n = (uint32_t)size_min(j->gate->n_rows - unit * GATE_ROWS, GATE_ROWS);
    unit_rows(j, j->gate, &j->x_gate, unit, tile, nc, gate);
    unit_rows(j, j->up, &j->x_up, unit, tile, nc, up);
    /* One call for the whole tile where its rows have no gaps: many independent values hide exp's latency. */
    if (n == GATE_ROWS) j->cpu->isa.gate(j->f, gate, up, nc * GATE_ROWS);
    for (uint32_t c = 0; c < nc; c++) {
        const struct act_row row = cpu_act_row(j->out, tile * TILE_TOKENS + c);
        if (n < GATE_ROWS) j->cpu->isa.gate(j->f, gate + c * GATE_ROWS, up + c * GATE_ROWS, n);
        j->cpu->isa.pack_row(&row, unit * GATE_ROWS, gate + c * GATE_ROWS, NULL, 1.0f, n);
    }
}

static void gated_item(void *arg, uint32_t item) {
    const struct gated_job *j = arg;
    const uint32_t first = item * j->units_per_item;
    const uint32_t last = (uint32_t)size_min((size_t)first + j->units_per_item, j->n_units);
    for (uint32_t t = 0; t * TILE_TOKENS < j->n_tokens; t++) {
        for (uint32_t u = first; u < last; u++) unit_run(j, u, t);
    }
}

void cpu_matmul_gated(struct kernels *k, const struct weight *gate, const struct weight *up, enum activation f,
                      const struct act *x, uint32_t n_tokens, struct act *out, unsigned formats) {
    ASSERT(gate->n_rows == up->n_rows && gate->n_cols == up->n_cols && x->n_tokens == n_tokens && out != x);
    const struct cpu *cpu = cpu_of(k);
    struct gated_job job = {.cpu = cpu, .gate = gate, .up = up, .f = f, .n_tokens = n_tokens, .out = out};
    job.x_gate = x_view_of(gate, x);
    job.x_up = x_view_of(up, x);
    job.n_units = (uint32_t)div_up(gate->n_rows, GATE_ROWS);
    job.units_per_item = units_per_item(cpu, job.n_units, 2 * (gate->panel_bytes + up->panel_bytes), n_tokens);
    cpu_act_begin(out, n_tokens, gate->n_rows, formats);
    pool_run(cpu->pool, (uint32_t)div_up(job.n_units, job.units_per_item), gated_item, &job);
}
