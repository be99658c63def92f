#pragma once

/*
 * Every tolerance of the tests, with its derivation.  Relative errors are
 * |got - want| / max(|want|, scale of the sum) unless a test says otherwise.
 */

/* Largest relative error of one rounding: half an ulp just above a power of two, 2^-24 and 2^-8. */
#define TOL_F32_ROUND  5.97e-8
#define TOL_BF16_ROUND 3.91e-3

/*
 * Normals against Box-Muller in double, relative to the radius, in half ulps of 2^-24.  Radius: log
 * 3 (halved by the root), root 1, product with std 1; angle at most pi/4 with
 * three roundings: 2.4; sine or cosine 3; last product 1.  Sum 9.9, taken as 12.
 */
#define TOL_BOX_MULLER (12 * 5.97e-8)

/*
 * AdamW in fp32 against double, with beta1 = 0.9, beta2 = 0.95 and u = 2^-24.
 * m: a step adds at most 4 u |g|max (scale and product of g, product of m, sum); the scalars are
 *    off by u each; an error fades by beta1 per step, so the sum is below 6 / (1 - beta1) u |g|max.
 * v: all terms are positive, each step multiplies by at most 1 + 5 u.
 * p: a step rounds p twice (2 u |p|, 1 u for the scalar of decay) and moves it by lr * m / denom,
 *    where |g|max / denom is at most 4 in the tests: 60 u * 4 from m, some 20 u from v, the root,
 *    the quotient and the scalars.
 */
#define TOL_ADAMW_M               (60 * TOL_F32_ROUND)
#define TOL_ADAMW_V(steps)        ((steps)*5 * TOL_F32_ROUND)
#define TOL_ADAMW_P(steps, p, lr) ((steps)*TOL_F32_ROUND * (3 * (p) + 260 * (lr)))

/*
 * AdamW by other conventions, with scalars in fp32.
 * By hand: three steps of weights below 1 and moves below 1/4, each of at most 4 roundings of the
 * weight and 8 of the move with its scalars: 3 * (4 + 8 / 4) half ulps.
 * P, against "adamw" with beta1 = 0.9, beta2 = 0.95: two such errors, and 1 - beta in fp32 is off by
 * 2^-25 / (1 - beta), 5 half ulps of m and 10 of v (5 of its root), times |g|max / denom of 4; the
 * scalars' other roundings are 6.
 */
#define TOL_COMPAT_BY_HAND (18 * TOL_F32_ROUND)
#define TOL_COMPAT_P(steps, p, lr)                                                                 \
    (2 * TOL_ADAMW_P(steps, p, lr) + (steps)*TOL_F32_ROUND * 64 * (lr))

/*
 * atan2 of adam_atan2 in fp32, relative, in half ulps of 2^-24: its arguments' root 1; sum and
 * difference 2, quotient 1, polynomial 1 (its error is below 2e-8, its last terms small beside t),
 * sum with pi/4 and difference from pi/2 2 with 1 of their constants.  8 in all.
 */
#define TOL_ATAN2 (8 * TOL_F32_ROUND)

/*
 * Optimizer rules against double carry their own bounds (running error analysis, half an ulp for
 * each operation).  The kernels' orders have at most twice as many roundings as the reference's.
 */
#define TOL_RULE_ORDER 2.0

/*
 * Three steps of a rule over statistics, relative to the way travelled: each of at most 15
 * roundings (scalars, averages, factors, products), and figures given to 8 digits.
 */
#define TOL_BLOCKS_BY_HAND (16 * TOL_F32_ROUND)

/*
 * Whole decoders of two blocks.  A forward is a chain of about 20 stages (norm, product, attention,
 * activation, sum, ...).  With fp32 each adds an error of about 2 half ulps of its row's scale,
 * in quadrature 9; logits are at most as large as the loss.  16 half ulps of the loss are allowed.
 * A backward doubles the chain, and an element of a gradient is up to 5 times its tensor's rms:
 * 2 * sqrt(40) * 5 = 63 half ulps of the rms; 160 are allowed.
 * AdamW divides by |g|: an element with |g| = rms/100 has a relative error of 100 * 63 half ulps,
 * hence 4e-4, and moves by 20 * lr = 0.02 in 20 steps: 8e-6 or 1.1e-4 of the weights' rms (0.072),
 * if the errors of all steps agree; half of that is allowed.
 */
#define TOL_MODEL_LOSS   (16 * TOL_F32_ROUND)
#define TOL_MODEL_GRAD   (160 * TOL_F32_ROUND)
#define TOL_MODEL_WEIGHT 5.5e-5

/*
 * The same chain with bf16 between the stages: one rounding of 2^-9 on average each, sqrt(20) in
 * quadrature, of the logits' standard deviation, which is at most 0.45 of the loss in the tests:
 * twice 2^-9, the largest error of one rounding.
 */
#define TOL_MODEL_BF16_LOSS TOL_BF16_ROUND

/*
 * Central differences of the fp32 loss along a tensor's gradient g, step h = 0.02.  Truncation is
 * h^2 / 6 times the third derivative, which is up to 60 |g| in these models: 4e-3.  Rounding of the
 * loss (5 half ulps of 5.4) over h |g|, with |g| above 0.02: 4e-3.
 */
#define TOL_MODEL_SLOPE 1e-2

/*
 * ops, relative to the largest element of the array (array_expect), u = 2^-24.
 * fp32: sums of at most 1300 terms in the tests; their errors grow like the root of the number of
 *   terms, sqrt(1300) u < 37 u, each term itself a few roundings (exp: 2 ulp = 4 u): taken as 128 u.
 * bf16 output: one rounding of an fp32 result and the fp32 error.  A significand of 8 bits rounds
 *   numbers just above a power of two by 2^-8 of their size at most.
 * bf16 attention gradient: delta = dY · Y uses the rounded Y beside the output's own rounding.
 * bf16 head gradient: dlogits are rounded before the products, dx once more.
 * bf16 numbers that are not the nearest: an fp32 error of 2^-19 of the largest element, on average,
 *   carries an element x over the middle of two numbers that are 2^-8 |x| apart or more with a
 *   probability of 2^-10 of largest / |x|: 1 % for a tenth of the largest; twice that is allowed.
 *   With factors rounded to bf16, 2^-9, it would be a third.
 * head over 400,009 words: dx sums that many terms of mixed sign: sqrt(4e5) u = 630 u, 450 allowed.
 */
#define TOL_OPS_F32                 (128 * TOL_F32_ROUND)
#define TOL_OPS_BF16_OUT            (TOL_BF16_ROUND + TOL_OPS_F32)
#define TOL_OPS_BF16_ATTENTION_GRAD (2 * TOL_BF16_ROUND + TOL_OPS_F32)
#define TOL_OPS_BF16_HEAD_GRAD      (2 * TOL_BF16_ROUND + TOL_OPS_F32)
#define TOL_OPS_BF16_OTHERS         0.02
#define TOL_OPS_F32_HEAD_LONG       (450 * TOL_F32_ROUND)

/* Losses, absolute: logits up to 20 with 128 u of relative error. */
#define TOL_OPS_LOSS (20 * TOL_OPS_F32)

/*
 * exp16: reduction and Taylor remainder 0.1 ulp, the polynomial's last steps one rounding each of
 * r²-terms, r and 1: below 2 ulp.  log: eleven terms in double, the sum of two parts: 4 u64.
 */
#define TOL_OPS_EXP_ULP 2.0
#define TOL_OPS_LOG     (4 * 1.2e-16)

/*
 * Two fp32 sums of the same R terms in different orders, relative to the sum of magnitudes: each
 * of the R - 1 additions rounds by at most half an ulp, in both sums.
 */
#define TOL_F32_SUM_ORDER(R) (2.0 * ((R)-1) * TOL_F32_ROUND)

/*
 * Our own CUDA kernels against the cpu's fp32 ops, relative to the largest element: the promise of
 * models/ops/cuda/kernels.h.  Two results, each within TOL_OPS_F32 of the definition, may differ by
 * twice that; 1e-5 is asked.  A bf16 output is rounded once more.
 * Stored logits of bf16 are read exactly, so losses keep fp32's tolerance.
 */
#define TOL_GPU_F32      1e-5
#define TOL_GPU_BF16_OUT (TOL_BF16_ROUND + TOL_GPU_F32)

/*
 * Attention in bf16 by matrix instructions: P is rounded to bf16 before its product with V, an error
 * of at most 2^-8 of the sum's largest value, beside the output's own rounding.  In the gradient P
 * and dS are rounded: the errors of a sum's terms have random signs, and grow against the largest
 * element as the sum does; one rounding more is allowed.  cuDNN's is made of the rounded y as well,
 * and with grouped heads each head's part of dK and dV is rounded before their sum.
 */
#define TOL_GPU_ATTENTION            (2 * TOL_BF16_ROUND + TOL_OPS_F32)
#define TOL_GPU_ATTENTION_GRAD       (3 * TOL_BF16_ROUND + TOL_OPS_F32)
#define TOL_GPU_CUDNN_ATTENTION_GRAD (4 * TOL_BF16_ROUND + TOL_OPS_F32)

/*
 * The head keeps logits in bf16: each is off by 2^-9 of itself at most, rounded up to the
 * rounding just above a power of two; a loss is the difference of two such, a probability is off by
 * the same relative amount.
 */
#define TOL_GPU_BF16_LOSS(largest_logit) (2 * TOL_BF16_ROUND * (largest_logit))

/*
 * GELU behind a bf16 product, relative to the largest element, which is above 1.  Where it is made
 * after the product, of its rounded sum x: |gelu'(x) x| is at most 1.3 gelu(x) for positive x, 0.2
 * for negative; and its own rounding.  Inside the product the sum is not rounded, but the library's
 * tanh may be the processor's of 2^-11: x/2 of that, less than the first rounding saves.
 */
#define TOL_GPU_BF16_GELU (2.3 * TOL_BF16_ROUND + TOL_OPS_F32)

/*
 * A product times gelu'(x) of a stored x: rounded before and after, or rounded once with the
 * processor's tanh in gelu': (1/2 + 2 |x|/2 u') 2^-11, at most 2^-10 of a product that is itself at
 * most 4 times the largest result.  Two roundings are allowed, each 2^-8.
 */
#define TOL_GPU_BF16_GELU_GRADIENT (2 * TOL_BF16_ROUND + TOL_OPS_F32)
