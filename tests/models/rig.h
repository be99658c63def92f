#pragma once

#include "models/model.h"

/*
 * A model with every buffer that training needs, on the heap, for tests.  Units are
 * run one after the other, as a schedule would.  Failures end the test.
 *
 * Before a backward all gradients, and before a forward all activations, are filled with NaN:
 * what is not written shows.
 */
enum { RIG_UNITS = 16 };

struct rig {
    struct pool *pool;
    struct ops *ops;
    struct model *model;
    const struct layout *layout;
    int64_t B, T;
    enum dtype dtype;
    enum recompute recompute;

    float *master[RIG_UNITS]; /* fp32 weights */
    void *params[RIG_UNITS];  /* weights in dtype */
    float *grads[RIG_UNITS];
    float *tied_grads;
    float *x[RIG_UNITS]; /* x[u]: output of unit u */
    void *saved[RIG_UNITS];
    float *dx;
    double *row_loss;
    int32_t *tokens, *targets;
    void *scratch;
};

/* The two models of the reference fixture: GPT-2-like (tied) and Llama-like (grouped, untied). */
struct model_config rig_gpt2_like(void);
struct model_config rig_llama_like(void);

struct rig *rig_create(const struct model_config *config, int64_t B, int64_t T, enum dtype dtype,
                       enum recompute recompute, int n_threads);
void rig_destroy(struct rig *rig);

/*
 * Weights by model_init_range, but matrices 8 times larger (a model that is not yet
 * indifferent: the loss depends on every tensor); tokens by a fixed formula.
 */
void rig_fill(struct rig *rig, uint64_t seed);

/* master -> params. */
void rig_load(struct rig *rig);

/* Mean loss of a forward. */
double rig_forward(struct rig *rig);

/* Forward and backward; mean loss. */
double rig_backward(struct rig *rig);

/* The hash that tests/fixtures/make_reference.py calls hash32(stream, n)[i]. */
uint32_t rig_hash(uint64_t stream, uint64_t i);
