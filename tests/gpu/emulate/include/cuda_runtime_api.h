#pragma once

#include <stddef.h>

/*
 * The part of the CUDA runtime that launchers and their tests use, on host memory: device memory
 * comes from malloc, streams do everything at once.
 */
#ifdef __cplusplus
extern "C" {
#endif

typedef struct emulated_stream *cudaStream_t;

typedef enum cudaError { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 } cudaError_t;

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaMalloc(void **p, size_t n_bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t n_bytes, cudaStream_t stream);
cudaError_t cudaDeviceSynchronize(void);

#ifdef __cplusplus
}
#endif
