/* kernels.h - the engine's only door to arithmetic: coarse operations on opaque buffers.
 *
 * A `struct kernels` is one backend on one device (cpu now; cuda has the same shape). The layer loop in
 * engine/model/ calls these operations in order from one thread; a backend may use as many threads as it
 * likes inside one call.
 *
 * The promise (docs/ARCHITECTURE.md, "Exactness"): an output row is a function of its own input row, the
 * weights and the absolute position. It never depends on the number of rows in the call, the row's index,
 * the number of threads or the instruction set. The scalar C version (cpu/..._scalar.c) is the definition;
 * every other path equals it bit for bit.
 *
 * All float buffers are fp32, row-major, [n_tokens][stride] with stride = the row length unless said.
 * Buffers come from buf_alloc (64-byte aligned, zeroed).
 */
#ifndef CHOIR_KERNELS_H
#define CHOIR_KERNELS_H

#include "common/err.h"

/* ---- Types ---- */

/* Weight and KV element types. The K-quants and _0 types are GGUF's block formats. */
enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_I8, /* KV cache only: int8 with one fp32 scale per (token, head) */
    DT_Q4_0,
    DT_Q5_0,
    DT_Q8_0,
    DT_Q4_K,
    DT_Q5_K,
    DT_Q6_K,
    DT_COUNT
};
const char *dtype_name(enum dtype t);
uint32_t dtype_block_len(enum dtype t);   /* elements per block: 1, 32 or 256 */
uint32_t dtype_block_bytes(enum dtype t); /* bytes per block as in the file */
/* Bytes of n_cols elements in file layout; n_cols must be whole blocks. */
size_t dtype_row_bytes(enum dtype t, size_t n_cols);
/* src: n elements (whole blocks) in file layout -> dst fp32 [n]. Equals gguf-py's dequantize bit for bit. */
void dtype_to_f32(enum dtype t, const void *src, float *dst, size_t n);

enum {
    KV_PAGE_TOKENS = 32,     /* tokens in a KV page */
    ATTN_SPLIT_TOKENS = 256, /* attention is computed per split of absolute positions, merged ascending */
    SLICE_COUNT = 8,         /* canonical slices of a reduction that tensor parallelism may cut */
    Q8_BLOCK = 32,           /* activations are quantized per 32 columns */
    ROW_PANEL = 16,          /* weights are repacked into panels of 16 rows */
};

/* Where the columns of a weight are cut for its canonical reduction. count = 1 (never split by tensor
 * parallelism) or a power of two <= 8; slice s covers columns [edge[s], edge[s+1]); slices may be empty.
 * The dot product is: per slice one sum in ascending column order from 0, the slices added by the balanced
 * binary tree ((0+1)+(2+3))+((4+5)+(6+7)). A rank that owns whole slices passes the edges of its own part. */
struct slices {
    uint32_t count;
    uint32_t edge[SLICE_COUNT + 1];
};
/* The canonical edges of a full weight: floor(i * n_blocks / 8) blocks of the dtype (BF16: pairs of columns). */
struct slices slices_canonical(enum dtype t, uint32_t n_cols);
struct slices slices_single(uint32_t n_cols);

/* ---- Opaque buffers ---- */

struct weight; /* a repacked matrix [n_rows][n_cols] */
struct act;    /* activations [n_tokens][n_cols] in the formats that the next matmuls read */

enum act_format { ACT_F32 = 1, ACT_Q8 = 2, ACT_BF16 = 4 }; /* bit mask */
enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH };
enum rope_kind { ROPE_NEOX /* pairs (i, i + half) */, ROPE_INTERLEAVED /* pairs (2i, 2i+1) */ };

/* One matrix of a matmul call: y[n_tokens][y_stride] = x * w^T, w [n_rows][n_cols]. */
struct matmul {
    const struct weight *w;
    float *y;
    uint32_t y_stride;
};

/* Geometry of one layer's K and V inside the paged slab. Page p of the slab starts at slab + p * page_bytes;
 * this layer's part of it at + layer_offset: first K, then V (and scales for DT_I8), laid out as the backend
 * likes, `kv_layer_bytes` in all. */
struct kv_layer {
    void *slab;
    size_t page_bytes;
    size_t layer_offset;
    enum dtype type; /* DT_F16, DT_F32, DT_BF16, DT_I8 */
    uint32_t n_kv_heads;
    uint32_t head_dim; /* multiple of 16 */
};

/* The rows of one sequence in this step: rows [row0, row0+n_rows) are positions [pos0, pos0+n_rows).
 * The page of position p is pages[(p / KV_PAGE_TOKENS) * page_stride]; entries that a sliding window has
 * passed are not read. */
struct kv_rows {
    uint32_t row0, n_rows, pos0;
    const uint32_t *pages;
    uint32_t page_stride;
};

/* After q, k, v: optional per-head RMSNorm of q and k, rotary embedding, q *= q_scale, K and V written to
 * their pages in the storage type. qkv rows are [n_heads*head_dim | n_kv_heads*head_dim | n_kv_heads*head_dim];
 * q is updated in place. */
struct qkv_post {
    float *qkv;
    uint32_t stride;
    uint32_t n_heads;
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    float norm_eps;
    enum rope_kind rope;
    uint32_t rope_dim;            /* rotated leading dimensions of a head, even, <= head_dim */
    const float *cos, *sin;       /* [n_tokens][rope_dim / 2] from rope_table */
    float q_scale;
    const struct kv_layer *kv;
    const struct kv_rows *seqs;
    uint32_t n_seqs;
};

/* out[n_tokens][out_stride], row = [n_heads*head_dim]. Row at position p sees positions
 * max(0, p - window + 1) .. p (window 0: all). softcap 0: none. */
struct attention {
    const float *q;
    uint32_t q_stride;
    float *out;
    uint32_t out_stride;
    uint32_t n_heads;
    uint32_t window;
    float softcap;
    const struct kv_layer *kv;
    const struct kv_rows *seqs;
    uint32_t n_seqs;
};

/* ---- The backend ---- */

struct kernels_options {
    uint32_t n_threads; /* compute threads including the caller; 0: all cores of the affinity mask */
    const char *isa;    /* "auto", "scalar", "avx2", "avx512" */
};

struct kernels {
    const char *backend;      /* "cpu" */
    const char *isa;          /* "scalar", "avx2", "avx512": the speed path; all give the same bits */
    const char *numeric_path; /* names the arithmetic, part of the numerics id: "cpu-v1" */
    uint32_t n_threads;

    void (*close)(struct kernels *k); /* after everything that came from it was freed */

    void *(*buf_alloc)(struct kernels *k, size_t bytes); /* NULL when there is no memory */
    void (*buf_free)(struct kernels *k, void *p, size_t bytes);

    /* src: row-major in file layout, rows row_bytes apart. Copies (repacks); src may go away afterwards.
     * n_cols whole blocks. NULL with *e on shapes or types it cannot take, or no memory. Uses the pool. */
    struct weight *(*weight_pack)(struct kernels *k, enum dtype t, uint32_t n_rows, uint32_t n_cols, const void *src,
                                  size_t row_bytes, const struct slices *slices, struct err *e);
    void (*weight_free)(struct kernels *k, struct weight *w);
    size_t (*weight_bytes)(const struct weight *w);
    unsigned (*weight_act_format)(const struct weight *w); /* the act_format that its matmul reads */

    struct act *(*act_alloc)(struct kernels *k, uint32_t n_tokens_max, uint32_t n_cols_max, unsigned formats);
    void (*act_free)(struct kernels *k, struct act *a);
    size_t (*act_bytes)(const struct act *a);

    /* out[i] = row ids[i] of w, dequantized, times scale. */
    void (*embed)(struct kernels *k, const struct weight *w, const int32_t *ids, uint32_t n_tokens, float scale, float *out);

    /* act = rmsnorm(x) * w in `formats`. sum of squares in 16 lanes (column i in lane i % 16), fixed tree. */
    void (*norm_pack)(struct kernels *k, const float *x, const float *w, float eps, uint32_t n_tokens, uint32_t n_cols,
                      struct act *out, unsigned formats);
    /* h += post_w ? rmsnorm(y) * post_w : y;  then, unless next_w is NULL, act = rmsnorm(h) * next_w. */
    void (*residual_norm_pack)(struct kernels *k, float *h, const float *y, const float *post_w, const float *next_w,
                               float eps, uint32_t n_tokens, uint32_t n_cols, struct act *out, unsigned formats);
    /* act = x[n_tokens][x_stride], first n_cols columns. */
    void (*act_pack)(struct kernels *k, const float *x, uint32_t x_stride, uint32_t n_tokens, uint32_t n_cols,
                     struct act *out, unsigned formats);

    /* n matrices that read the same x, in one go. n_tokens and n_cols as x was packed. */
    void (*matmul)(struct kernels *k, const struct matmul *m, uint32_t n, const struct act *x, uint32_t n_tokens);
    /* out = activation(gate(x)) * up(x) in `formats`; gate and up have equal shape [n_ff][n_cols]. */
    void (*matmul_gated)(struct kernels *k, const struct weight *gate, const struct weight *up, enum activation f,
                         const struct act *x, uint32_t n_tokens, struct act *out, unsigned formats);

    /* cos/sin[n_tokens][half] of positions[t] * inv_freq[i], computed in double by our own functions, times mscale. */
    void (*rope_table)(struct kernels *k, const uint32_t *positions, uint32_t n_tokens, const double *inv_freq,
                       uint32_t half, float mscale, float *cos, float *sin);
    size_t (*kv_layer_bytes)(enum dtype t, uint32_t n_kv_heads, uint32_t head_dim); /* of one page */
    void (*qkv_post)(struct kernels *k, const struct qkv_post *a);
    void (*attention)(struct kernels *k, const struct attention *a);

    /* y[r] = x[rows[r]], n_cols floats each. */
    void (*gather_rows)(struct kernels *k, const float *x, const uint32_t *rows, uint32_t n_rows, uint32_t n_cols, float *y);

    /* Runs fn(arg, item) for item 0..n-1 on the backend's threads; returns when all are done. For work on logits
     * that is independent per row (sampling). */
    void (*parallel)(struct kernels *k, uint32_t n, void (*fn)(void *arg, uint32_t item), void *arg);

    /* Over one row of logits on the host, canonical order (lanes of 16, chunks of 16384, ascending). */
    void (*row_max)(const float *x, uint32_t n, float *max, uint32_t *arg); /* ties: lowest index; NaN: *arg = n */
    float (*row_sum_exp)(const float *x, uint32_t n, float max, float inv_temperature); /* sum exp((x-max)*inv_t) */
    /* Indices with x >= threshold, ascending, at most `cap` written; returns how many there are. */
    uint32_t (*row_select)(const float *x, uint32_t n, float threshold, uint32_t *idx, uint32_t cap);
};

/* Never fails for "auto"; NULL with *e when the named isa is not available here. */
struct kernels *kernels_cpu_open(const struct kernels_options *o, struct err *e);

/* Our exp and log in fp32, the same bits on every path (|relative error| < 2 ulp). */
float num_expf(float x);
float num_logf(float x);
/* base > 0, |exponent * log base| <= 700; relative error < 1e-14. For RoPE's inverse frequencies. */
double num_pow(double base, double exponent);

#endif
