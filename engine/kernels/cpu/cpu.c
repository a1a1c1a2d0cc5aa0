/* cpu.c - opens the CPU backend: picks the instruction set by cpuid, wires the operations, owns the pool.
 *
 * Every level gives the same bits, so the choice is a matter of speed only and the numeric path has one name.
 */
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/cpu/weight_arena.h"
#include "engine/kernels/cpu/cpu.h"

enum { BUF_MAP_BYTES = 1 << 20 }; /* from here on a buffer is a mapping of its own */

/* ---- What the machine can do ---- */

struct features {
    bool avx2, avx512, avx512bf16;
};

static uint64_t xgetbv0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static struct features features_detect(void) {
    struct features f = {0};
    uint32_t a, b, c, d, c1;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !(c1 & bit_OSXSAVE)) return f;
    const uint64_t os = xgetbv0();
    const bool os_avx = (os & 0x06) == 0x06, os_avx512 = (os & 0xe6) == 0xe6;
    if (!os_avx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    f.avx2 = b & bit_AVX2 && c1 & bit_FMA && c1 & bit_F16C;
    const uint32_t need_b = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    f.avx512 = f.avx2 && os_avx512 && (b & need_b) == need_b && c & bit_AVX512VNNI;
    if (f.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512bf16 = a & bit_AVX512BF16;
    return f;
}

static bool level_choose(const char *isa, const struct features *f, enum isa_level *level, struct err *e) {
    *level = f->avx512 ? ISA_AVX512 : f->avx2 ? ISA_AVX2 : ISA_SCALAR;
    if (!isa || !strcmp(isa, "auto")) return true;
    enum isa_level wanted;
    if (!strcmp(isa, "scalar"))
        wanted = ISA_SCALAR;
    else if (!strcmp(isa, "avx2"))
        wanted = ISA_AVX2;
    else if (!strcmp(isa, "avx512"))
        wanted = ISA_AVX512;
    else
        return err_set(e, ERR_BAD_VALUE, "unknown instruction set; there are auto, scalar, avx2, avx512");
    if (wanted > *level) return err_set(e, ERR_BAD_VALUE, "this machine does not have %s", isa);
    *level = wanted;
    return true;
}

static void isa_fill(struct cpu_isa *isa, enum isa_level level, bool bf16) {
    isa->level = level;
    if (level == ISA_SCALAR) {
        matmul_scalar_fill(isa);
        vec_scalar_fill(isa);
    } else if (level == ISA_AVX2) {
        matmul_avx2_fill(isa);
        vec_avx2_fill(isa);
    } else {
        matmul_avx512_fill(isa);
        if (bf16) matmul_avx512_bf16_fill(isa);
        vec_avx512_fill(isa);
    }
}

/* ---- Buffers ---- */

static void *cpu_buf_alloc(struct kernels *k, size_t bytes) {
    (void)k;
    if (bytes >= BUF_MAP_BYTES) return map_alloc(bytes);
    bytes = round_up(size_max(bytes, 1), 64);
    void *p = aligned_alloc(64, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static void cpu_buf_free(struct kernels *k, void *p, size_t bytes) {
    (void)k;
    if (bytes >= BUF_MAP_BYTES)
        map_free(p, bytes);
    else
        free(p);
}

/* ---- Open and close ---- */

static void cpu_parallel(struct kernels *k, uint32_t n, void (*fn)(void *arg, uint32_t item), void *arg) {
    pool_run(cpu_of(k)->pool, n, fn, arg);
}

static void cpu_close(struct kernels *k) {
    if (!k) return;
    struct cpu *cpu = cpu_of(k);
    cpu_attention_close(cpu);
    pool_close(cpu->pool);
    weight_arena_close(cpu->arena);
    free(cpu);
}

static const char *const level_names[] = {[ISA_SCALAR] = "scalar", [ISA_AVX2] = "avx2", [ISA_AVX512] = "avx512"};

static void ops_wire(struct kernels *k, enum isa_level level) {
    *k = (struct kernels){
        .backend = "cpu",
        .isa = level_names[level],
        .numeric_path = "cpu-v1",
        .close = cpu_close,
        .buf_alloc = cpu_buf_alloc,
        .buf_free = cpu_buf_free,
        .weight_pack = cpu_weight_pack,
        .weight_free = cpu_weight_free,
        .weight_bytes = cpu_weight_bytes,
        .weight_act_format = cpu_weight_act_format,
        .act_alloc = cpu_act_alloc,
        .act_free = cpu_act_free,
        .act_bytes = cpu_act_bytes,
        .embed = cpu_embed,
        .norm_pack = cpu_norm_pack,
        .residual_norm_pack = cpu_residual_norm_pack,
        .act_pack = cpu_act_pack,
        .matmul = cpu_matmul,
        .matmul_gated = cpu_matmul_gated,
        .rope_table = cpu_rope_table,
        .kv_layer_bytes = cpu_kv_layer_bytes,
        .qkv_post = cpu_qkv_post,
        .attention = cpu_attention,
        .gather_rows = cpu_gather_rows,
        .parallel = cpu_parallel,
    };
    if (level == ISA_SCALAR) {
        k->row_max = cpu_row_max_scalar;
        k->row_sum_exp = cpu_row_sum_exp_scalar;
        k->row_select = cpu_row_select_scalar;
    } else if (level == ISA_AVX2) {
        k->row_max = cpu_row_max_avx2;
        k->row_sum_exp = cpu_row_sum_exp_avx2;
        k->row_select = cpu_row_select_avx2;
    } else {
        k->row_max = cpu_row_max_avx512;
        k->row_sum_exp = cpu_row_sum_exp_avx512;
        k->row_select = cpu_row_select_avx512;
    }
}

struct kernels *kernels_cpu_open(const struct kernels_options *o, struct err *e) {
    const struct features f = features_detect();
    enum isa_level level;
    if (!level_choose(o->isa, &f, &level, e)) return NULL;
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (cpu) {
        cpu->pool = pool_open(o->n_threads);
        cpu->arena = weight_arena_open();
    }
    if (!cpu || !cpu->pool || !cpu->arena || !cpu_attention_open(cpu)) {
        if (cpu) cpu_close(&cpu->base);
        err_set(e, ERR_LOAD, "no memory for the CPU backend");
        return NULL;
    }
    ops_wire(&cpu->base, level);
    cpu->base.n_threads = pool_threads(cpu->pool);
    cpu->has_avx512bf16 = level == ISA_AVX512 && f.avx512bf16;
    isa_fill(&cpu->isa, level, cpu->has_avx512bf16);
    return &cpu->base;
}
