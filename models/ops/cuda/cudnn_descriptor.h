#pragma once

#include "runtime/base/status.h"

#include <cudnn_backend.h>
#include <stdint.h>

#if CUDNN_VERSION < 91002
#error "attention by cuDNN needs cuDNN 9.10.2 or newer: install it, or build with SHOAL_CUDA=OFF"
#endif

/*
 * One cuDNN backend descriptor at a time: created, its attributes set, finalized.  Failures name
 * the descriptor and the attribute, and carry the library's own text.
 */

struct cudnn_attribute {
    cudnnBackendAttributeName_t name;
    const char *label;
    cudnnBackendAttributeType_t type;
    int64_t n;
    const void *values;
};

/* CUDNN_SET(TENSOR_DIMENSIONS, INT64, 4, dims): an attribute of n values, copied when it is set. */
#define CUDNN_SET(name_, type_, n_, values_)                                                       \
    {                                                                                              \
        .name = CUDNN_ATTR_##name_, .label = #name_, .type = CUDNN_TYPE_##type_, .n = (n_),        \
        .values = (values_)                                                                        \
    }

/* The one place where a cudnnStatus_t becomes ours: "cuDNN: <what>: <name of the status>". */
shoal_status cudnn_check(cudnnStatus_t result, const char *what);

/*
 * Create a descriptor, set its attributes in order, finalize it.  `what` names it in errors.
 * On failure nothing is left over.
 */
shoal_status cudnn_descriptor_create(cudnnBackendDescriptorType_t type, const char *what,
                                     const struct cudnn_attribute *attributes, int n_attributes,
                                     cudnnBackendDescriptor_t *descriptor_out);

/* Read one value of an attribute. */
shoal_status cudnn_descriptor_get(cudnnBackendDescriptor_t descriptor, const char *what,
                                  struct cudnn_attribute attribute, void *value_out);

/* NULL is allowed. */
void cudnn_descriptor_destroy(cudnnBackendDescriptor_t descriptor);
