/* cpu.h - private header of the CPU backend: the backend object, packed weights, activations, the ISA table.
 *
 * Three instruction set levels compute the same bits; `struct cpu_isa` holds what differs between them. All
 * arithmetic runs inside pool items (pool.h), hence under the mode of fpmode.h.
 *
 * Activations come in tiles of 8 tokens, the last tile narrower: tile t holds nc = min(8, n_tokens - 8t) rows,
 * and inside a tile the rows of one column group lie side by side, so that a micro-kernel walks memory once,
 * forward, with constant offsets. Per tile, with nc rows:
 *   Q8    per 32 columns: int8 q[8 groups of 4 columns][nc][4], float d[nc], int32 neg_sum[nc]     = 40 nc bytes
 *   sums  per 32 columns: float neg_dsum[nc], int32 neg_sum16[2][nc]                               = 12 nc bytes
 *   F32   float [n_cols][nc]
 *   BF16  uint16 [n_cols / 2, rounded up][nc][2]
 * where x is about d*q, neg_sum = -sum(q), neg_dsum = d * (float)neg_sum, neg_sum16 of the two halves of 16.
 */
#ifndef CHOIR_KERNELS_CPU_H
#define CHOIR_KERNELS_CPU_H

#include "engine/kernels/cpu/pool.h"
#include "engine/kernels/kernels.h"

enum isa_level { ISA_SCALAR, ISA_AVX2, ISA_AVX512 };

enum {
    TILE_TOKENS = 8,     /* rows of activations per tile: 8 int and 8 float accumulators fit 32 registers */
    GATE_ROWS = 32,      /* gate and up rows per gated unit: one activation block of its output */
    Q8_BLOCK_BYTES = 40, /* per row of a tile, see above */
    Q8_SUMS_BYTES = 12,
};

struct weight {
    enum dtype type;
    uint32_t n_rows, n_cols;
    uint32_t n_panels; /* of 16 rows; rows past n_rows are zero */
    struct slices slices;
    uint8_t *panels;                  /* [n_panels][panel_bytes], 64-byte aligned; layout: panel.h */
    size_t panel_bytes;               /* multiple of 64 */
    struct weight_arena_chunk *chunk; /* memory that the panels live in */
};

struct act {
    uint32_t n_tokens_max, n_cols_max;
    unsigned formats_max;      /* formats there is memory for */
    uint32_t n_tokens, n_cols; /* as packed last */
    unsigned formats;
    uint8_t *q8, *q8_sums; /* [tiles] of *_tile_bytes each */
    float *f32;
    uint16_t *bf16;
    size_t q8_tile_bytes, q8_sums_tile_bytes, f32_tile_bytes, bf16_tile_bytes;
    size_t bytes; /* of the one allocation, which starts at this struct */
};

/* One row of an act: where its values go. Pointers are to the row's tile; NULL for formats not wanted. */
struct act_row {
    uint8_t *q8, *q8_sums;
    float *f32;
    uint16_t *bf16;
    uint32_t nc, c; /* rows in the tile, this row's place among them */
};

/* Dot products of one panel (16 rows) with the nc rows of one tile of x:
 * y[c * y_stride + r], all 16 r written. */
typedef void panel_fn(const struct weight *w, uint32_t panel, const void *tile, const void *sums, uint32_t nc, float *y,
                      size_t y_stride);

struct cpu_isa {
    enum isa_level level;
    panel_fn *panel[DT_COUNT];
    /* Sum of x[i]^2 by fma in 16 lanes (i % 16), lanes added as 8+8, 4+4, 2+2, 1+1. */
    float (*sum_squares)(const float *x, uint32_t n);
    /* h[i] += w ? (y[i] * scale) * w[i] : y[i] */
    void (*add_scaled)(float *h, const float *y, const float *w, float scale, uint32_t n);
    /* Packs w ? (x[i] * scale) * w[i] : x[i] for i in [0, n) to columns [col, col + n) of the row; col is a
     * multiple of 32. The last block is filled up with zeros. */
    void (*pack_row)(const struct act_row *row, uint32_t col, const float *x, const float *w, float scale, uint32_t n);
    /* gate[i] = f(gate[i]) * up[i] */
    void (*gate)(enum activation f, float *gate, const float *up, uint32_t n);
};

struct cpu {
    struct kernels base; /* first: a struct kernels * is a struct cpu * */
    struct pool *pool;
    struct cpu_isa isa;
    bool has_avx512bf16;
    struct weight_arena *arena;         /* weights */
    struct attention_memory *attention; /* scratch of attention.c: cpu_attention_open, cpu_attention_close */
};

static inline struct cpu *cpu_of(struct kernels *k) {
    return (struct cpu *)k;
}

/* Each fills its part of the table: matmul_*.c the panel functions, vec_*.c the rest. */
void matmul_scalar_fill(struct cpu_isa *isa);
void matmul_avx2_fill(struct cpu_isa *isa);
void matmul_avx512_fill(struct cpu_isa *isa);
void matmul_avx512_bf16_fill(struct cpu_isa *isa); /* DT_BF16 by vdpbf16ps */
void vec_scalar_fill(struct cpu_isa *isa);
void vec_avx2_fill(struct cpu_isa *isa);
void vec_avx512_fill(struct cpu_isa *isa);

/* Operations, one file each; see kernels.h. */
struct weight *cpu_weight_pack(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols, const void *src,
                               size_t row_bytes, const struct slices *slices, struct err *e);
void cpu_weight_free(struct kernels *k, struct weight *w);
size_t cpu_weight_bytes(const struct weight *w);
unsigned cpu_weight_act_format(const struct weight *w);
struct act *cpu_act_alloc(struct kernels *k, uint32_t n_tokens_max, uint32_t n_cols_max, unsigned formats);
void cpu_act_free(struct kernels *k, struct act *a);
size_t cpu_act_bytes(const struct act *a);
void cpu_act_begin(struct act *a, uint32_t n_tokens, uint32_t n_cols, unsigned formats);
struct act_row cpu_act_row(const struct act *a, uint32_t token);
void cpu_embed(struct kernels *k, const struct weight *w, const int32_t *ids, uint32_t n_tokens, float scale,
               float *out);
void cpu_norm_pack(struct kernels *k, const float *x, const float *w, float eps, uint32_t n_tokens, uint32_t n_cols,
                   struct act *out, unsigned formats);
void cpu_residual_norm_pack(struct kernels *k, float *h, const float *y, const float *post_w, const float *next_w,
                            float eps, uint32_t n_tokens, uint32_t n_cols, struct act *out, unsigned formats);
void cpu_act_pack(struct kernels *k, const float *x, uint32_t x_stride, uint32_t n_tokens, uint32_t n_cols,
                  struct act *out, unsigned formats);
void cpu_matmul(struct kernels *k, const struct matmul *m, uint32_t n, const struct act *x, uint32_t n_tokens);
void cpu_matmul_gated(struct kernels *k, const struct weight *gate, const struct weight *up, enum activation f,
                      const struct act *x, uint32_t n_tokens, struct act *out, unsigned formats);
void cpu_gather_rows(struct kernels *k, const float *x, const uint32_t *rows, uint32_t n_rows, uint32_t n_cols,
                     float *y);

/* rope.c, qkv_post.c, attention.c: they choose their path by cpu_of(k)->isa.level and use cpu_of(k)->pool. */
void cpu_rope_table(struct kernels *k, const uint32_t *positions, uint32_t n_tokens, const double *inv_freq,
                    uint32_t half, float mscale, float *cos, float *sin);
size_t cpu_kv_layer_bytes(enum dtype t, uint32_t n_kv_heads, uint32_t head_dim);
void cpu_qkv_post(struct kernels *k, const struct qkv_post *a);
void cpu_attention(struct kernels *k, const struct attention *a);
/* Scratch memory for cpu_attention, sized by pool_threads(c->pool): after pool_open, before pool_close. */
bool cpu_attention_open(struct cpu *c); /* false when there is no memory */
void cpu_attention_close(struct cpu *c);

/* row_*.c: called without a backend, so there is one function per level; each sets the mode of fpmode.h itself. */
void cpu_row_max_scalar(const float *x, uint32_t n, float *max, uint32_t *arg);
void cpu_row_max_avx2(const float *x, uint32_t n, float *max, uint32_t *arg);
void cpu_row_max_avx512(const float *x, uint32_t n, float *max, uint32_t *arg);
float cpu_row_sum_exp_scalar(const float *x, uint32_t n, float max, float inv_temperature);
float cpu_row_sum_exp_avx2(const float *x, uint32_t n, float max, float inv_temperature);
float cpu_row_sum_exp_avx512(const float *x, uint32_t n, float max, float inv_temperature);
uint32_t cpu_row_select_scalar(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap);
uint32_t cpu_row_select_avx2(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap);
uint32_t cpu_row_select_avx512(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap);

#endif
