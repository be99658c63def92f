#include "tests/models/ops/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ref_linear(int64_t N, int64_t in, int64_t out, const double *x, const double *w,
                const double *bias, double *y)
{
    for (int64_t i = 0; i < N; i++) {
        for (int64_t o = 0; o < out; o++) {
            double sum = bias == NULL ? 0.0 : bias[o];
            for (int64_t c = 0; c < in; c++)
                sum += x[i * in + c] * w[o * in + c];
            y[i * out + o] = sum;
        }
    }
}

void ref_norm(enum norm_kind kind, int64_t N, int64_t C, double eps, const double *x,
              const double *w, const double *b, double *y)
{
    for (int64_t i = 0; i < N; i++, x += C, y += C) {
        double mean = 0.0;
        double square = 0.0;
        for (int64_t c = 0; c < C && kind == NORM_LAYER; c++)
            mean += x[c] / (double)C;
        for (int64_t c = 0; c < C; c++)
            square += (x[c] - mean) * (x[c] - mean) / (double)C;
        for (int64_t c = 0; c < C; c++)
            y[c] = (x[c] - mean) / sqrt(square + eps) * w[c] + (b == NULL ? 0.0 : b[c]);
    }
}

void ref_rope(struct attention_shape s, double theta, int64_t first_position, double *qkv)
{
    const int half = s.D / 2;

    for (int64_t row = 0; row < s.B * s.T; row++) {
        for (int head = 0; head < s.H + s.K; head++) {
            double *x = qkv + (row * (s.H + 2 * s.K) + head) * s.D;
            for (int i = 0; i < half; i++) {
                const double angle =
                    (double)(first_position + row % s.T) * pow(theta, -2.0 * i / s.D);
                const double a = x[i];
                const double b = x[i + half];
                x[i] = a * cos(angle) - b * sin(angle);
                x[i + half] = b * cos(angle) + a * sin(angle);
            }
        }
    }
}

/* One query (b, h, t): softmax over keys 0 .. t and the mean of the values. */
static void attend(const struct attention_shape *s, const double *qkv, int64_t b, int h, int64_t t,
                   double *p, double *y, double *lse)
{
    const int64_t width = (int64_t)(s->H + 2 * s->K) * s->D;
    const int kv = h / (s->H / s->K);
    const double *q = qkv + (b * s->T + t) * width + (int64_t)h * s->D;
    const double *k = qkv + b * s->T * width + (int64_t)(s->H + kv) * s->D;
    const double *v = k + (int64_t)s->K * s->D;
    double sum = 0.0;

    for (int64_t j = 0; j <= t; j++) {
        double score = 0.0;
        for (int d = 0; d < s->D; d++)
            score += q[d] * k[j * width + d] / sqrt(s->D);
        p[j] = exp(score);
        sum += p[j];
    }
    for (int d = 0; d < s->D; d++) {
        y[d] = 0.0;
        for (int64_t j = 0; j <= t; j++)
            y[d] += p[j] / sum * v[j * width + d];
    }
    *lse = log(sum);
}

void ref_attention(struct attention_shape s, const double *qkv, double *y, double *lse)
{
    double *p = malloc((size_t)s.T * sizeof *p);

    for (int64_t b = 0; b < s.B; b++)
        for (int h = 0; h < s.H; h++)
            for (int64_t t = 0; t < s.T; t++)
                attend(&s, qkv, b, h, t, p, y + ((b * s.T + t) * s.H + h) * s.D,
                       lse + (b * s.H + h) * s.T + t);
    free(p);
}

/* The query (b, h, t) adds its part to dq, dk and dv; their rows lie as those of q, k and v. */
static void attend_backward(const struct attention_shape *s, const double *dy, const double *y,
                            const double *q, const double *k, const double *v, int64_t t,
                            double lse, double *dq, double *dk, double *dv)
{
    const int64_t width = (int64_t)(s->H + 2 * s->K) * s->D;
    const double scale = 1.0 / sqrt(s->D);
    double delta = 0.0;

    for (int d = 0; d < s->D; d++)
        delta += dy[d] * y[d];
    for (int64_t j = 0; j <= t; j++) {
        double score = 0.0;
        double dp = 0.0;
        for (int d = 0; d < s->D; d++) {
            score += q[d] * k[j * width + d] * scale;
            dp += dy[d] * v[j * width + d];
        }
        const double p = exp(score - lse);
        for (int d = 0; d < s->D; d++) {
            dq[d] += p * (dp - delta) * scale * k[j * width + d];
            dk[j * width + d] += p * (dp - delta) * scale * q[d];
            dv[j * width + d] += p * dy[d];
        }
    }
}

void ref_attention_backward(struct attention_shape s, const double *dy, const double *qkv,
                            const double *y, const double *lse, double *dqkv)
{
    const int64_t width = (int64_t)(s.H + 2 * s.K) * s.D;

    memset(dqkv, 0, (size_t)(s.B * s.T * width) * sizeof *dqkv);
    for (int64_t i = 0; i < s.B * s.H * s.T; i++) {
        const int64_t t = i % s.T;
        const int64_t h = i / s.T % s.H;
        const int64_t b = i / s.T / s.H;
        const int64_t row = ((b * s.T + t) * s.H + h) * s.D;
        const int64_t q = (b * s.T + t) * width + h * s.D;
        const int64_t k = b * s.T * width + (s.H + h / (s.H / s.K)) * s.D;
        const int64_t v = k + (int64_t)s.K * s.D;
        attend_backward(&s, dy + row, y + row, qkv + q, qkv + k, qkv + v, t, lse[i], dqkv + q,
                        dqkv + k, dqkv + v);
    }
}

double ref_gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

double ref_swiglu(double gate, double up)
{
    return gate / (1.0 + exp(-gate)) * up;
}

void ref_head(int64_t N, int64_t C, int64_t V, const double *x, const double *w,
              const int32_t *targets, double *row_loss)
{
    double *logits = malloc((size_t)V * sizeof *logits);

    for (int64_t i = 0; i < N; i++) {
        double sum = 0.0;
        ref_linear(1, C, V, x + i * C, w, NULL, logits);
        for (int64_t v = 0; v < V; v++)
            sum += exp(logits[v]);
        row_loss[i] = targets[i] < 0 ? 0.0 : log(sum) - logits[targets[i]];
    }
    free(logits);
}

static double weighted_sum(const struct probe *probe, double *out)
{
    double sum = 0.0;

    probe->forward(probe->arg, out);
    for (int64_t j = 0; j < probe->n_out; j++)
        sum += probe->dy[j] * out[j];
    return sum;
}

void numeric_gradient(const struct probe *probe, double *x, int64_t n, double *grad)
{
    const double h = 1e-5; /* truncation about h², rounding 2^-53 / h: both near 1e-10 */
    double *out = malloc((size_t)probe->n_out * sizeof *out);

    for (int64_t i = 0; i < n; i++) {
        const double kept = x[i];
        x[i] = kept + h;
        const double above = weighted_sum(probe, out);
        x[i] = kept - h;
        const double below = weighted_sum(probe, out);
        x[i] = kept;
        grad[i] = (above - below) / (2.0 * h);
    }
    free(out);
}
