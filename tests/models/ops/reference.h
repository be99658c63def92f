#pragma once

#include "models/ops/ops.h"

/*
 * The ops in double, as their definitions read: the specification that the tests hold the back
 * ends against.  Arrays as in ops.h, all double.
 */

void ref_linear(int64_t N, int64_t in, int64_t out, const double *x, const double *w,
                const double *bias, double *y);
void ref_norm(enum norm_kind kind, int64_t N, int64_t C, double eps, const double *x,
              const double *w, const double *b, double *y);
void ref_rope(struct attention_shape s, double theta, int64_t first_position, double *qkv);
void ref_attention(struct attention_shape s, const double *qkv, double *y, double *lse);
/* dqkv [B, T, (H + 2K) * D] of dy [B, T, H * D], for y and lse as ref_attention leaves them. */
void ref_attention_backward(struct attention_shape s, const double *dy, const double *qkv,
                            const double *y, const double *lse, double *dqkv);
double ref_gelu(double x);
double ref_swiglu(double gate, double up);
/* row_loss[i] = logsumexp(w x_i) - its element targets[i]; 0 for negative targets. */
void ref_head(int64_t N, int64_t C, int64_t V, const double *x, const double *w,
              const int32_t *targets, double *row_loss);

/*
 * Central differences: grad[i] = d/dx[i] of sum_j dy[j] out_j(x), where forward() computes
 * out [n_out] from its argument, of which x [n] is a part.
 */
struct probe {
    void (*forward)(void *arg, double *out);
    void *arg;
    int64_t n_out;
    const double *dy;
};

void numeric_gradient(const struct probe *probe, double *x, int64_t n, double *grad);
