#pragma once

#include "models/ops/ops.h"
#include "runtime/device/device.h"

/*
 * The cuda back end of ops.h.  Public within the project in builds with CUDA (SHOAL_WITH_CUDA).
 *
 * Every pointer that an op takes is memory of the device, tokens, targets and row losses included;
 * tokens and targets must have been checked on the host.  Ops are issued to the device's
 * QUEUE_COMPUTE and return before they ran; seconds in the profile are those of issuing.
 *
 * The same inputs give the same bits in every run on one kind of device.  They are not the cpu back
 * end's bits: products and attention sum in the libraries' order.
 */

/* How attention is computed. */
enum ops_cuda_attention {
    OPS_CUDA_ATTENTION_AUTO,  /* cuDNN for what it takes, else our own kernels */
    OPS_CUDA_ATTENTION_CUDNN, /* cuDNN, or an error */
    OPS_CUDA_ATTENTION_PLAIN  /* our own kernels */
};

/* What bf16 products make beside themselves, where cuBLASLt can. */
enum ops_cuda_epilogue {
    OPS_CUDA_EPILOGUE_BIAS, /* the bias is added */
    OPS_CUDA_EPILOGUE_FULL  /* and GELU, its gradient, and bias gradients */
};

struct ops_cuda_options {
    bool tf32; /* fp32 products round their inputs to 11 bits; off: true fp32 */
    enum ops_cuda_epilogue epilogue;
    enum ops_cuda_attention attention;
    /*
     * The most scratch that attention's deterministic backward may take; 0: 1.5 GiB.  A shape that
     * needs more is cut into calls over fewer batches or heads; one that still does not fit runs on
     * our own kernels.
     */
    size_t attention_limit_bytes;
    /* Logits of so many bytes exist at a time; 0: 512 MiB. */
    size_t head_chunk_bytes;
};

/*
 * The device is borrowed, and must be a cuda device.  Allocates the libraries' workspace of
 * 32 MiB there; rope tables are the only other device memory that a context takes.
 */
shoal_status ops_create_cuda(struct device *device, struct ops **ops_out);
shoal_status ops_create_cuda_with(struct device *device, const struct ops_cuda_options *options,
                                  struct ops **ops_out);

/* ---- what was chosen, and what it costs ---- */

struct ops_cuda_attention_cost {
    bool cudnn_forward, cudnn_backward; /* else our own kernels */
    size_t forward_bytes, backward_bytes;
    int backward_calls; /* 1: the whole shape at once */
    /* Scratch of one undivided deterministic backward: 2 * B * H * T^2 and little more. */
    size_t undivided_bytes;
};

/* Builds the shape's plans if they are new, as op_attention_scratch_bytes does. */
shoal_status ops_cuda_attention_cost(struct ops *ops, struct attention_shape s,
                                     struct ops_cuda_attention_cost *cost_out);
