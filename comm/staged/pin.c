#include "comm/transport_internal.h"

#include <cuda_runtime_api.h>

/*
 * Page-locking of the host's window.  A refusal (a limit on locked memory) costs speed alone:
 * copies from pageable memory go through the driver's own staging.
 */

void comm_staged_pin(void *base, size_t n_bytes)
{
    if (cudaHostRegister(base, n_bytes, cudaHostRegisterDefault) != cudaSuccess)
        (void)cudaGetLastError();
}

void comm_staged_unpin(void *base)
{
    if (cudaHostUnregister(base) != cudaSuccess)
        (void)cudaGetLastError();
}
