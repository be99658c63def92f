#pragma once

#include "optim/element.h"

/*
 * The rules for one element.  `f` are the scalars of the step, `decay` is f[SCALAR_DECAY], or what
 * leaves the weight alone where the tensor does not decay; g is the gradient times its scale, p the
 * master weight, s the states.  Returns the new weight and changes s; the caller makes every NaN
 * the one NaN.  What they compute stands at the top of optim.h and <rule>.c.
 */

/* Indices into optim_scalars.f.  From SCALAR_OWN on each rule has its own. */
enum optim_scalar {
    SCALAR_BETA1,
    SCALAR_ONE_MINUS_BETA1,
    SCALAR_BETA2,
    SCALAR_ONE_MINUS_BETA2,
    SCALAR_RSQRT_B2, /* 1 / sqrt(1 - beta2^t) */
    SCALAR_EPS,
    SCALAR_DECAY, /* factor of the weights, or weight_decay itself where it joins the gradient */
    SCALAR_STEP_SIZE,
    SCALAR_OWN,

    ADAM_ATAN2_INV_B1 = SCALAR_OWN, /* 1 / (1 - beta1^t) */

    ADEMAMIX_INV_B1 = SCALAR_OWN,
    ADEMAMIX_BETA3,
    ADEMAMIX_ONE_MINUS_BETA3,
    ADEMAMIX_ALPHA,

    ADOPT_CLIP = SCALAR_OWN,

    MARS_CORRECTION = SCALAR_OWN, /* gamma * beta1 / (1 - beta1) */
    MARS_CLIP,                    /* factor of the corrected gradient, 1 without tensor_clip */

    SCHEDULE_FREE_SHARE = SCALAR_OWN, /* of this step in the average */
    SCHEDULE_FREE_KEPT,               /* 1 - that */
    SCHEDULE_FREE_DRIFT,              /* lr beta1 */

    SGD_MOMENTUM = SCALAR_OWN,
    SGD_BUFFER_SHARE, /* of the momentum buffer and of the gradient in the update */
    SGD_GRAD_SHARE,

    FACTORED_LR = SCALAR_OWN, /* adafactor and came: SCALAR_BETA2 is beta2 of the step */
    FACTORED_WEIGHT_DECAY,
    FACTORED_THRESHOLD,
    CAME_BETA3,
    CAME_ONE_MINUS_BETA3 = SCALAR_RSQRT_B2, /* no bias correction there */

    COMPAT_B1 = SCALAR_OWN, /* 1 - beta1^t */
    COMPAT_B2,              /* 1 - beta2^t or its root */
};

enum { ELEMENT_STATES = 3 }; /* at most */

/* Indices into the vectors of rules over sums (stats.h); one enum per struct optim_stats_rule. */
enum elements_vector {
    ELEMENTS_CLIP, /* these two are passes, too, and have one element */
    ELEMENTS_MASK,
    ELEMENTS_ROW, /* largest second moments, which codes of such a state are decoded with */
    ELEMENTS_COL,
    ELEMENTS_ROW_BEFORE, /* those before the step, until UPDATE has read the codes */
    ELEMENTS_COL_BEFORE,
    ELEMENTS_VECTORS
};

enum { MINI_AVG_SQ, MINI_DENOMINATOR, MINI_VECTORS };

enum factored_vector {
    FACTORED_ROW,
    FACTORED_COL,
    FACTORED_ELEMENT,
    FACTORED_ROW_FACTOR,
    FACTORED_COL_FACTOR,
    FACTORED_STEP, /* FACTORED_STEP_VALUES scalars of this tensor */
    FACTORED_VECTORS,

    CAME_ROW = FACTORED_VECTORS, /* instability of the update */
    CAME_COL,
    CAME_ROW_FACTOR,
    CAME_COL_FACTOR,
    CAME_VECTORS,
};

enum factored_step_value {
    STEP_CLIP, /* 1 / max(1, rms(u) / threshold) */
    STEP_SIZE,
    STEP_DECAY,
    STEP_PARAM_SCALE,   /* max(1e-3, rms of the weights), or 1 */
    STEP_RESIDUAL_BITS, /* came: log2 of the scale of the instability's sums */
    FACTORED_STEP_VALUES
};

OPTIM_ELEMENT float moved_average(const float *f, float average, float g)
{
    return average * f[SCALAR_BETA1] + g * f[SCALAR_ONE_MINUS_BETA1];
}

OPTIM_ELEMENT float moved_square(const float *f, float average, float g)
{
    return average * f[SCALAR_BETA2] + (g * f[SCALAR_ONE_MINUS_BETA2]) * g;
}

OPTIM_ELEMENT float denominator(const float *f, float average_square)
{
    return sqrtf(average_square) * f[SCALAR_RSQRT_B2] + f[SCALAR_EPS];
}

OPTIM_ELEMENT float adamw_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = moved_average(f, s[0], g);
    s[1] = moved_square(f, s[1], g);
    return p * decay - (s[0] / denominator(f, s[1])) * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float adam_step(const float *f, float decay, float g, float p, float *s)
{
    const float with_decay = g + p * decay;

    s[0] = moved_average(f, s[0], with_decay);
    s[1] = moved_square(f, s[1], with_decay);
    return p - (s[0] / denominator(f, s[1])) * f[SCALAR_STEP_SIZE];
}

/* atan2(y, x) for x >= 0.  Selections instead of branches, so that the loop vectorizes. */
OPTIM_ELEMENT float angle_of(float y, float x)
{
    const float abs_y = fabsf(y);
    const bool steep = abs_y > x;
    const float lo = steep ? x : abs_y;
    const float hi = steep ? abs_y : x;
    const bool far = lo > hi * 0.41421357f;
    const float den = far ? hi + lo : hi;
    const float t = (far ? lo - hi : lo) / (den == 0.0f ? 1.0f : den);
    const float z = t * t;
    const float q = ((0.08060298f * z - 0.13879846f) * z + 0.19977926f) * z - 0.33332956f;
    const float near = t + (t * z) * q;
    const float octant = far ? near + 0.7853982f : near;
    const float quadrant = steep ? 1.5707964f - octant : octant;

    return y < 0.0f ? -quadrant : quadrant;
}

OPTIM_ELEMENT float adam_atan2_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = moved_average(f, s[0], g);
    s[1] = moved_square(f, s[1], g);
    return p * decay - angle_of(s[0] * f[ADAM_ATAN2_INV_B1], sqrtf(s[1]) * f[SCALAR_RSQRT_B2]) *
                           f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float ademamix_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = moved_average(f, s[0], g);
    s[2] = s[2] * f[ADEMAMIX_BETA3] + g * f[ADEMAMIX_ONE_MINUS_BETA3];
    s[1] = moved_square(f, s[1], g);

    const float u = (s[0] * f[ADEMAMIX_INV_B1] + s[2] * f[ADEMAMIX_ALPHA]) / denominator(f, s[1]);
    return p * decay - u * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float adopt_step(const float *f, float decay, float g, float p, float *s)
{
    const float eps = f[SCALAR_EPS];
    const float clip = f[ADOPT_CLIP];
    const float root = sqrtf(s[1]);
    const float ratio = g / (root < eps ? eps : root);
    const float below = ratio > clip ? clip : ratio;
    const float c = below < -clip ? -clip : below;

    s[0] = moved_average(f, s[0], c);
    s[1] = moved_square(f, s[1], g);
    return p * decay - s[0] * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float lion_step(const float *f, float decay, float g, float p, float *s)
{
    const float c = moved_average(f, s[0], g);
    const float sign = (float)((c > 0.0f) - (c < 0.0f));

    s[0] = s[0] * f[SCALAR_BETA2] + g * f[SCALAR_ONE_MINUS_BETA2];
    return p * decay - sign * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float mars_corrected(const float *f, float g, float prev_grad)
{
    return g + (g - prev_grad) * f[MARS_CORRECTION];
}

OPTIM_ELEMENT float mars_step(const float *f, float decay, float g, float p, float *s)
{
    const float c = mars_corrected(f, g, s[2]) * f[MARS_CLIP];

    s[0] = moved_average(f, s[0], c);
    s[1] = moved_square(f, s[1], c);
    s[2] = g;
    return p * decay - (s[0] / denominator(f, s[1])) * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float schedule_free_step(const float *f, float decay, float g, float p, float *s)
{
    const float ahead = s[0];

    s[1] = moved_square(f, s[1], g);

    const float u = g / denominator(f, s[1]) + p * decay;
    s[0] = (ahead - u * f[SCHEDULE_FREE_DRIFT]) * f[SCHEDULE_FREE_KEPT];
    return (p + ahead * f[SCHEDULE_FREE_SHARE]) - u * f[SCALAR_STEP_SIZE];
}

OPTIM_ELEMENT float sgd_step(const float *f, float decay, float g, float p, float *s)
{
    const float with_decay = g + p * decay;

    s[0] = s[0] * f[SGD_MOMENTUM] + with_decay;
    return p - (s[0] * f[SGD_BUFFER_SHARE] + with_decay * f[SGD_GRAD_SHARE]) * f[SCALAR_STEP_SIZE];
}

/* ---- rules over sums: what is known of more than the element comes in ---- */

/* A cautious step: u and the gradient have one sign.  A product of the two could underflow. */
OPTIM_ELEMENT bool step_agrees(float u, float grad)
{
    return ((u > 0.0f) & (grad > 0.0f)) | ((u < 0.0f) & (grad < 0.0f));
}

OPTIM_ELEMENT float moved_weight(float p, float decay, float u, float size)
{
    return p * decay - u * size;
}

OPTIM_ELEMENT float adam_mini_step(const float *f, float decay, float g, float p, float *s,
                                   float denom)
{
    s[0] = moved_average(f, s[0], g);
    return p * decay - (s[0] / denom) * f[SCALAR_STEP_SIZE];
}

/* The limbs of an element with a second moment of its own hold the bits of these. */
OPTIM_ELEMENT float adam_mini_share(const float *f, float g)
{
    return (g * f[SCALAR_ONE_MINUS_BETA2]) * g;
}

OPTIM_ELEMENT float factored_square(float g)
{
    return g * g;
}

OPTIM_ELEMENT float by_factors(float x, float row_factor, float col_factor)
{
    return (x * row_factor) * col_factor;
}

OPTIM_ELEMENT float by_second_moment(float g, float average_square)
{
    return g / sqrtf(average_square);
}

/* ---- AdamW as other software computes it: adamw_<software>.c ---- */

OPTIM_ELEMENT float adamw_apex_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = f[SCALAR_BETA1] * s[0] + f[SCALAR_ONE_MINUS_BETA1] * g;
    s[1] = f[SCALAR_BETA2] * s[1] + (f[SCALAR_ONE_MINUS_BETA2] * g) * g;

    const float u = (s[0] / f[COMPAT_B1]) / (sqrtf(s[1] / f[COMPAT_B2]) + f[SCALAR_EPS]);
    return p - f[SCALAR_STEP_SIZE] * (u + decay * p);
}

OPTIM_ELEMENT float adamw_bnb_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = s[0] * f[SCALAR_BETA1] + f[SCALAR_ONE_MINUS_BETA1] * g;
    s[1] = s[1] * f[SCALAR_BETA2] + f[SCALAR_ONE_MINUS_BETA2] * (g * g);
    return (p + f[SCALAR_STEP_SIZE] * (s[0] / (sqrtf(s[1]) + f[SCALAR_EPS]))) * decay;
}

OPTIM_ELEMENT float adamw_deepspeed_step(const float *f, float decay, float g, float p, float *s)
{
    s[0] = fmaf(g, f[SCALAR_ONE_MINUS_BETA1], s[0] * f[SCALAR_BETA1]);
    s[1] = fmaf(g * g, f[SCALAR_ONE_MINUS_BETA2], s[1] * f[SCALAR_BETA2]);

    const float u = s[0] / fmaf(sqrtf(s[1]), f[SCALAR_RSQRT_B2], f[SCALAR_EPS]);
    return fmaf(u, f[SCALAR_STEP_SIZE], fmaf(p, decay, p));
}

OPTIM_ELEMENT float adamw_torch_fused_step(const float *f, float decay, float g, float p, float *s)
{
    const float beta1 = f[SCALAR_BETA1];
    const float beta2 = f[SCALAR_BETA2];
    const float square = g * g;

    s[0] = fmaf(beta1, s[0], fmaf(-beta1, g, g));
    s[1] = fmaf(beta2, s[1], fmaf(-beta2, square, square));

    const float denom = sqrtf(s[1]) / f[COMPAT_B2] + f[SCALAR_EPS];
    return (p - decay * p) - (f[SCALAR_STEP_SIZE] * s[0]) / denom;
}
