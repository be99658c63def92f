#pragma once

#include "tests/gpu/imitate/imitate.h"

#include <cudnn_backend.h>

/* What cudnn.c (descriptors) and cudnn_run.c (graphs) share. */

enum { IMITATED_ATTRIBUTES = 12 };

struct imitated_attribute {
    cudnnBackendAttributeName_t name;
    int64_t n;
    void *values;
};

struct imitated_descriptor {
    cudnnBackendDescriptorType_t type;
    bool finalized;
    int n;
    struct imitated_attribute attributes[IMITATED_ATTRIBUTES];
    const struct imitated_descriptor *graph; /* of an engine configuration */
};

/* NULL: not set. */
const struct imitated_attribute *imitated_find(const struct imitated_descriptor *d,
                                               cudnnBackendAttributeName_t name);
const void *imitated_get(const struct imitated_descriptor *d, cudnnBackendAttributeName_t name);
const struct imitated_descriptor *imitated_child(const struct imitated_descriptor *d,
                                                 cudnnBackendAttributeName_t name, int index);

/* The dimensions of an operation's tensors go together; true for what is no operation. */
bool imitated_operation_is_valid(const struct imitated_descriptor *d);

enum { IMITATED_TENSORS = 16 };

/* What an execution takes of its variant pack, which the next one may change. */
struct imitated_pack {
    int n;
    int64_t ids[IMITATED_TENSORS];
    void *pointers[IMITATED_TENSORS];
};

/* Run the operations of a graph on the memory of a variant pack. */
cudnnStatus_t imitated_run(const struct imitated_descriptor *graph,
                           const struct imitated_pack *pack);
