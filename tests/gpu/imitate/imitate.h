#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * The libraries of a GPU, on host memory: the part of the CUDA runtime, cuBLASLt and cuDNN that the
 * cuda back end calls, by the same names, so that an executable that holds these files needs no GPU.
 *
 * Each does in double, one element at a time, what the library's documentation says of the
 * descriptors that it is given.  So a wrong transposition, stride, pointer, id or formula in the
 * back end shows as wrong numbers.  It says nothing about which shapes a library takes, about its
 * rounding and order of sums, nor about speed: the tests on a GPU do.
 */
struct imitate {
    /* Faults to inject. */
    bool no_cudnn;        /* cudnnCreate fails */
    bool refuse_graphs;   /* cuDNN has no engine for a graph */
    int refuse_epilogues; /* bits of cublasLtEpilogue_t with which cuBLASLt has no algorithm */
    bool refuse_product;  /* cuBLASLt has no algorithm at all */
    /*
     * cuBLASLt offers two algorithms and refuses to run those whose bit is set, where the product has
     * all bits of an epilogue (0: any product): what a launch that failed leaves behind comes with it.
     */
    int refuse_runs, refuse_runs_with;
    int refusal;          /* the cublasStatus_t then; 0: NOT_SUPPORTED */
    bool refusal_breaks;  /* the device with it */
    size_t cudnn_version; /* 0: that of the headers */
    size_t shared_bytes;  /* that a block may take; 0: 227 KiB, as on 9.0 */
    size_t total_bytes;   /* that the device says it has; 0: 1 GiB */
    int fail_attribute;   /* the n-th cudnnBackendSetAttribute from now fails; 0: none */
    int fail_driver;      /* the n-th call on the way to loaded kernels fails; 0: none */
    int driver_error;     /* the CUresult of a load that fails; 0: INVALID_HANDLE */
    bool old_driver;      /* it cannot load kernels ahead */

    /* What was done. */
    int products, graphs, replays;
    int refused;          /* calls of cublasLtMatmul */
    bool broken;          /* the device, by refusal_breaks: whoever waits for it is told so */
    int live_descriptors; /* of cuBLASLt and cuDNN, handles included */
    int live_handles;     /* streams and events */
};

extern struct imitate imitate;

/* What the runtime's calls leave for cudaGetLastError. */
void imitate_leave_error(cudaError_t error);

/* What work in a stream meets: an error on the default one, or while the thread records another. */
cudaError_t imitate_stream_check(cudaStream_t stream);
