/* act.c - activations: memory, packing out of fp32 rows, and the norms that end in packing.
 *
 * Work is split by tiles of 8 tokens: the rows of a tile lie interleaved (cpu.h), so a tile is written by one
 * thread. Rows are computed one by one; nothing depends on a row's neighbours.
 */
#include <string.h>

#include "engine/kernels/cpu/weight_arena.h"
#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/dtype.h"

enum { ACT_ALL = ACT_F32 | ACT_Q8 | ACT_BF16, ACT_DIM_MAX = 1 << 24 };

/* ---- Memory ---- */

/* Bytes of a full tile of n_cols columns in each format; columns are filled up to whole blocks of 32. */
static size_t tile_bytes(unsigned format, uint32_t n_cols) {
    const size_t n_blocks = div_up(n_cols, Q8_BLOCK);
    switch (format) {
    case ACT_Q8:
        return n_blocks * Q8_BLOCK_BYTES * TILE_TOKENS;
    case ACT_F32:
        return n_blocks * Q8_BLOCK * sizeof(float) * TILE_TOKENS;
    default:
        return n_blocks * Q8_BLOCK * sizeof(uint16_t) * TILE_TOKENS;
    }
}

static size_t sums_tile_bytes(uint32_t n_cols) {
    return round_up(div_up(n_cols, Q8_BLOCK) * Q8_SUMS_BYTES * TILE_TOKENS, 64);
}

struct act *cpu_act_alloc(struct kernels *k, uint32_t n_tokens_max, uint32_t n_cols_max, unsigned formats) {
    (void)k;
    if (!n_tokens_max || !n_cols_max || n_tokens_max > ACT_DIM_MAX || n_cols_max > ACT_DIM_MAX) return NULL;
    if (!formats || formats & ~(unsigned)ACT_ALL) return NULL;
    const size_t n_tiles = div_up(n_tokens_max, TILE_TOKENS);
    const size_t header = round_up(sizeof(struct act), 64);
    const size_t q8 = formats & ACT_Q8 ? n_tiles * tile_bytes(ACT_Q8, n_cols_max) : 0;
    const size_t sums = formats & ACT_Q8 ? n_tiles * sums_tile_bytes(n_cols_max) : 0;
    const size_t f32 = formats & ACT_F32 ? n_tiles * tile_bytes(ACT_F32, n_cols_max) : 0;
    const size_t bf16 = formats & ACT_BF16 ? n_tiles * tile_bytes(ACT_BF16, n_cols_max) : 0;
    const size_t bytes = header + q8 + sums + f32 + bf16;
    uint8_t *p = map_alloc(bytes);
    if (!p) return NULL;
    struct act *a = (struct act *)p;
    *a = (struct act){.n_tokens_max = n_tokens_max, .n_cols_max = n_cols_max, .formats_max = formats, .bytes = bytes};
    p += header;
    a->q8 = p;
    a->q8_sums = p + q8;
    a->f32 = (float *)(p + q8 + sums);
    a->bf16 = (uint16_t *)(p + q8 + sums + f32);
    return a;
}

void cpu_act_free(struct kernels *k, struct act *a) {
    (void)k;
    if (a) map_free(a, a->bytes);
}

size_t cpu_act_bytes(const struct act *a) { return a->bytes; }

void cpu_act_begin(struct act *a, uint32_t n_tokens, uint32_t n_cols, unsigned formats) {
    ASSERT(n_tokens <= a->n_tokens_max && n_cols <= a->n_cols_max && (formats & ~a->formats_max) == 0);
    a->n_tokens = n_tokens;
    a->n_cols = n_cols;
    a->formats = formats;
    a->q8_tile_bytes = tile_bytes(ACT_Q8, n_cols);
    a->q8_sums_tile_bytes = sums_tile_bytes(n_cols);
    a->f32_tile_bytes = tile_bytes(ACT_F32, n_cols);
    a->bf16_tile_bytes = tile_bytes(ACT_BF16, n_cols);
}

struct act_row cpu_act_row(const struct act *a, uint32_t token) {
    const size_t tile = token / TILE_TOKENS;
    const size_t left = a->n_tokens - tile * TILE_TOKENS;
    struct act_row r = {.nc = (uint32_t)size_min(left, TILE_TOKENS), .c = token % TILE_TOKENS};
    if (a->formats & ACT_Q8) {
        r.q8 = a->q8 + tile * a->q8_tile_bytes;
        r.q8_sums = a->q8_sums + tile * a->q8_sums_tile_bytes;
    }
    if (a->formats & ACT_F32) r.f32 = a->f32 + tile * a->f32_tile_bytes / sizeof(float);
    if (a->formats & ACT_BF16) r.bf16 = a->bf16 + tile * a->bf16_tile_bytes / sizeof(uint16_t);
    return r;
}

/* ---- Rows ---- */

/* All the operations that end in packing: h += ..., norm, pack. Fields not used are NULL. */
struct row_job {
    const struct cpu_isa *isa;
    const float *x; /* packed as it is, or after the norm by w */
    size_t x_stride;
    const float *w;
    float *h; /* residual stream, or NULL */
    const float *y, *post_w;
    float eps;
    uint32_t n_tokens, n_cols;
    struct act *out;
};

static float norm_scale(const struct row_job *j, const float *x) {
    const float sum = j->isa->sum_squares(x, j->n_cols);
    return 1.0f / __builtin_sqrtf(sum / (float)j->n_cols + j->eps);
}

static void row_run(const struct row_job *j, uint32_t t) {
    const float *x = j->x + t * j->x_stride;
    if (j->h) {
        const float *y = j->y + (size_t)t * j->n_cols;
        const float scale = j->post_w ? norm_scale(j, y) : 1.0f;
        j->isa->add_scaled(j->h + (size_t)t * j->n_cols, y, j->post_w, scale, j->n_cols);
    }
    if (!j->out) return;
    const struct act_row row = cpu_act_row(j->out, t);
    j->isa->pack_row(&row, 0, x, j->w, j->w ? norm_scale(j, x) : 1.0f, j->n_cols);
}

static void row_item(void *arg, uint32_t tile) {
    const struct row_job *j = arg;
    const uint32_t end = (uint32_t)size_min((size_t)(tile + 1) * TILE_TOKENS, j->n_tokens);
    for (uint32_t t = tile * TILE_TOKENS; t < end; t++) row_run(j, t);
}

static void rows_run(struct kernels *k, struct row_job *j, unsigned formats) {
    j->isa = &cpu_of(k)->isa;
    if (j->out) cpu_act_begin(j->out, j->n_tokens, j->n_cols, formats);
    pool_run(cpu_of(k)->pool, (uint32_t)div_up(j->n_tokens, TILE_TOKENS), row_item, j);
}

void cpu_act_pack(struct kernels *k, const float *x, uint32_t x_stride, uint32_t n_tokens, uint32_t n_cols,
                  struct act *out, unsigned formats) {
    struct row_job j = {.x = x, .x_stride = x_stride, .n_tokens = n_tokens, .n_cols = n_cols, .out = out};
    rows_run(k, &j, formats);
}

void cpu_norm_pack(struct kernels *k, const float *x, const float *w, float eps, uint32_t n_tokens, uint32_t n_cols,
                   struct act *out, unsigned formats) {
    struct row_job j = {
        .x = x, .x_stride = n_cols, .w = w, .eps = eps, .n_tokens = n_tokens, .n_cols = n_cols, .out = out};
    rows_run(k, &j, formats);
}

void cpu_residual_norm_pack(struct kernels *k, float *h, const float *y, const float *post_w, const float *next_w,
                            float eps, uint32_t n_tokens, uint32_t n_cols, struct act *out, unsigned formats) {
    struct row_job j = {.x = h,
                        .x_stride = n_cols,
                        .w = next_w,
                        .h = h,
                        .y = y,
                        .post_w = post_w,
                        .eps = eps,
                        .n_tokens = n_tokens,
                        .n_cols = n_cols,
                        .out = next_w ? out : NULL};
    rows_run(k, &j, formats);
}

void cpu_gather_rows(struct kernels *k, const float *x, const uint32_t *rows, uint32_t n_rows, uint32_t n_cols,
                     float *y) {
    (void)k;
    for (uint32_t r = 0; r < n_rows; r++) {
        memcpy(y + (size_t)r * n_cols, x + (size_t)rows[r] * n_cols, n_cols * sizeof(float));
    }
}
