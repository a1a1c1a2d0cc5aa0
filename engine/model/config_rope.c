/* config_rope.c - rotary frequencies of a layer kind, with the scalings that models are trained with.
 *
 * inv_freq[i] = theta^(-2i/dim), then
 *   linear   inv_freq / factor                                             (position interpolation)
 *   llama3   short wavelengths kept, long ones / factor, a ramp between    (Llama 3.1 model card)
 *   yarn     dimensions that turn often kept, others / factor, a ramp      (YaRN, arXiv:2309.00071, section 3.2)
 *   divisors inv_freq / rope_freqs.weight                                  (llama3 as llama.cpp's converter stores it)
 * Formulas as in transformers' modeling_rope_utils.py; in double, and from our own pow and log, so that the same
 * file gives the same table on every machine.
 *
 * No state; any thread.
 */
#include "engine/model/config_int.h"

#include <math.h>

#define TWO_PI 6.283185307179586476925286766559
#define LN_2 0.693147180559945309417232121458

/* Natural logarithm of a finite x > 0: x = m 2^k with m in [1/sqrt2, sqrt2), ln m = 2 artanh((m-1)/(m+1)) by its
 * series; |t| <= 0.1716, so the term after t^23 is below 1e-19. frexp is exact. */
static double rope_log(double x) {
    int k;
    double m = frexp(x, &k);
    if (m < 0.70710678118654752440) {
        m *= 2;
        k--;
    }
    double t = (m - 1) / (m + 1), t2 = t * t, sum = 0;
    for (int n = 23; n >= 1; n -= 2) sum = sum * t2 + 1.0 / n;
    return k * LN_2 + 2 * t * sum;
}

static void scale_llama3(struct rope_config *r, const struct rope_spec *s) {
    double long_wave = s->original_len / s->low_freq_factor, short_wave = s->original_len / s->high_freq_factor;
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double f = r->inv_freq[i], wave = TWO_PI / f;
        if (wave > long_wave) {
            r->inv_freq[i] = f / s->factor;
        } else if (wave >= short_wave) {
            double smooth = (s->original_len / wave - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
            r->inv_freq[i] = (1 - smooth) * f / s->factor + smooth * f;
        }
    }
}

static double yarn_mscale(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * rope_log(factor) + 1;
}

/* The dimension that turns `rotations` times within the original context. */
static double yarn_dim(const struct rope_spec *s, uint32_t dim, double rotations) {
    return dim * rope_log(s->original_len / (rotations * TWO_PI)) / (2 * rope_log(s->theta));
}

static void scale_yarn(struct rope_config *r, const struct rope_spec *s) {
    double low = yarn_dim(s, r->dim, s->beta_fast), high = yarn_dim(s, r->dim, s->beta_slow);
    if (!s->no_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = low > 0 ? low : 0;
    high = high < r->dim - 1 ? high : r->dim - 1;
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double ramp = (i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        r->inv_freq[i] = r->inv_freq[i] / s->factor * ramp + r->inv_freq[i] * (1 - ramp);
    }
    double factor = s->attention_factor;
    if (factor == 0) {
        bool both = s->mscale != 0 && s->mscale_all_dim != 0;
        factor = both ? yarn_mscale(s->factor, s->mscale) / yarn_mscale(s->factor, s->mscale_all_dim)
                      : yarn_mscale(s->factor, 1);
    }
    r->mscale = (float)factor;
}

bool rope_config_fill(struct rope_config *r, const struct rope_spec *s, uint32_t dim, enum rope_kind kind,
                      const char *key, struct err *e) {
    ASSERT(dim >= 2 && dim % 2 == 0 && dim <= HEAD_DIM_MAX);
    *r = (struct rope_config){.dim = dim, .kind = kind, .mscale = 1};
    for (uint32_t i = 0; i < dim / 2; i++) r->inv_freq[i] = 1 / num_pow(s->theta, 2.0 * i / dim);
    switch (s->scaling) {
    case ROPE_PLAIN:
        break;
    case ROPE_LINEAR:
        for (uint32_t i = 0; i < dim / 2; i++) r->inv_freq[i] /= s->factor;
        break;
    case ROPE_LLAMA3:
        scale_llama3(r, s);
        break;
    case ROPE_YARN:
        scale_yarn(r, s);
        break;
    }
    for (uint32_t i = 0; i < dim / 2; i++) {
        if (s->divisors) r->inv_freq[i] /= (double)s->divisors[i];
        if (!(r->inv_freq[i] > 0 && r->inv_freq[i] <= 1e3)) {
            return err_set_param(e, ERR_LOAD, key, "'%s' gives rotary frequency %g for dimension %u", key,
                                 r->inv_freq[i], i);
        }
    }
    return true;
}
