#pragma once

#include "models/ops/cuda/cudnn_graph.h"

/*
 * Causal attention by cuDNN: one pass (forward or backward) of one shape, as a compiled plan.
 *
 * bf16 in and out; scores, softmax and sums in fp32.  Query head h reads key/value head h / (H/K).
 * q, k and v are views of packed rows [(H + 2K) * D]; a call may cover some of the batches, or of
 * one batch's heads: then H and K are those of the call, and the row lengths those of the memory.
 *
 * The graphs are the composite form of NVIDIA's frontend 1.23 for cuDNN 9 (node
 * scaled_dot_product_flash_attention.h): of cuDNN 9.19 its only form with a causal mask and with a
 * backward.  A deterministic backward writes all of dS to memory, 2 * B * H * T^2 bytes, and reads
 * dQ's sums in one order; the other one adds to dQ in the order in which blocks finish.
 */
struct cudnn_attention_shape {
    int64_t B, T;
    int H, K, D;
    int64_t qkv_row, y_row; /* elements from a token to the next */
    bool deterministic;
};

enum cudnn_attention_pass { CUDNN_ATTENTION_FORWARD, CUDNN_ATTENTION_BACKWARD };

/* Device memory of one run; k and v, dk and dv likewise are views of their own. */
struct cudnn_attention_data {
    const void *q, *k, *v;
    void *y;    /* written by forward, read by backward */
    float *lse; /* [B, H, T], as y */
    const void *dy;
    void *dq, *dk, *dv;
};

struct cudnn_attention;

/*
 * Build a pass.  Its plan may take at most limit_bytes of workspace.  With `compile` false only what
 * a host without a device can do is done, and the result cannot run.  SHOAL_ERR_UNAVAILABLE if no
 * engine of the library takes the shape.
 */
shoal_status cudnn_attention_create(const struct cudnn_attention_shape *shape,
                                    enum cudnn_attention_pass pass,
                                    cudnnBackendDescriptor_t properties, size_t limit_bytes,
                                    bool compile, struct cudnn_attention **attention_out);
void cudnn_attention_destroy(struct cudnn_attention *attention);

/* Bytes that a run needs beside its data: the plan's workspace, and the buffers of the graph. */
size_t cudnn_attention_scratch_bytes(const struct cudnn_attention *attention);
const struct cudnn_plan *cudnn_attention_plan(const struct cudnn_attention *attention);

/*
 * The most that cudnn_attention_scratch_bytes of a deterministic backward comes to on an engine of
 * 9.19, known before anything is built: dS, partial sums of grouped heads, row sums.
 */
size_t cudnn_attention_estimate_bytes(const struct cudnn_attention_shape *shape);

/* On the handle's stream; scratch is aligned to 256 bytes. */
shoal_status cudnn_attention_run(cudnnHandle_t handle, struct cudnn_attention *attention,
                                 const struct cudnn_attention_data *data, void *scratch);
