#pragma once

#include "optim/update_work.h"
#include "runtime/device/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Decode, update and encode: the bytes of the CPU.  `work` is copied; addresses are the device's,
 * aligned as their elements.
 */
shoal_status cuda_update(cudaStream_t stream, const struct update_work *work);

/*
 * One pass of sums before the update (optim/stats.h): each part adds one sum of its tensor to its
 * limbs, which the caller has zeroed.  The integers of the CPU.
 */
shoal_status cuda_update_sums(cudaStream_t stream, const struct update_work *work);

/* Copy the tables of the codecs that are maps to the device; once, before updates that use them. */
shoal_status cuda_update_maps(void);

#ifdef __cplusplus
}
#endif
