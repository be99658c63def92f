#include "models/ops/cuda/cudnn_descriptor.h"

#include <stdio.h>
#include <string.h>

enum { LIBRARY_TEXT = 256 };

/*
 * The library's last words on one line; empty if it has none.  An engine that refuses a graph is
 * named first, then a line with a reason for each function on the way out: the first one tells.
 */
static void library_text(char text[LIBRARY_TEXT])
{
    char words[2048] = "";

    cudnnGetLastErrorString(words, sizeof words - 1);
    char *reason = strstr(words, "Reason: ");
    if (reason != NULL)
        reason[strcspn(reason, "\n")] = '\0';
    snprintf(text, LIBRARY_TEXT, "%s", reason != NULL ? reason + strlen("Reason: ") : words);
    for (char *c = text; *c != '\0'; c++)
        if (*c == '\n' || *c == '\t')
            *c = ' ';
}

/* The thousands of a status are its category. */
static shoal_status code_of(cudnnStatus_t result)
{
    enum { NOT_READY = 1, NOT_SUPPORTED = 3 };
    const int category = (int)result / 1000;

    if (result == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
        result == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)
        return SHOAL_ERR_NOMEM;
    return category == NOT_READY || category == NOT_SUPPORTED ? SHOAL_ERR_UNAVAILABLE
                                                              : SHOAL_ERR_INTERNAL;
}

shoal_status cudnn_check(cudnnStatus_t result, const char *what)
{
    char text[LIBRARY_TEXT];
    const shoal_status code = code_of(result);

    if (result == CUDNN_STATUS_SUCCESS)
        return SHOAL_OK;
    library_text(text);
    fail(code, "cuDNN: %s: %s", what, cudnnGetErrorString(result));
    return text[0] == '\0' ? code : fail_why(code, "%s", text);
}

static shoal_status set_attribute(cudnnBackendDescriptor_t descriptor, const char *what,
                                  const struct cudnn_attribute *a)
{
    char place[160];

    snprintf(place, sizeof place, "%s: set %s", what, a->label);
    return cudnn_check(cudnnBackendSetAttribute(descriptor, a->name, a->type, a->n, a->values),
                       place);
}

shoal_status cudnn_descriptor_create(cudnnBackendDescriptorType_t type, const char *what,
                                     const struct cudnn_attribute *attributes, int n_attributes,
                                     cudnnBackendDescriptor_t *descriptor_out)
{
    cudnnBackendDescriptor_t descriptor = NULL;
    shoal_status status = cudnn_check(cudnnBackendCreateDescriptor(type, &descriptor), what);
    char place[160];

    if (status != SHOAL_OK)
        return status;
    for (int i = 0; i < n_attributes; i++)
        SHOAL_TRY_GOTO(set_attribute(descriptor, what, &attributes[i]), err_destroy);
    snprintf(place, sizeof place, "%s: finalize", what);
    SHOAL_TRY_GOTO(cudnn_check(cudnnBackendFinalize(descriptor), place), err_destroy);
    *descriptor_out = descriptor;
    return SHOAL_OK;

err_destroy:
    cudnnBackendDestroyDescriptor(descriptor);
    return status;
}

shoal_status cudnn_descriptor_get(cudnnBackendDescriptor_t descriptor, const char *what,
                                  struct cudnn_attribute attribute, void *value_out)
{
    int64_t found = 0;
    char place[160];

    snprintf(place, sizeof place, "%s: get %s", what, attribute.label);
    SHOAL_TRY(cudnn_check(
        cudnnBackendGetAttribute(descriptor, attribute.name, attribute.type, 1, &found, value_out),
        place));
    return found >= 1 ? SHOAL_OK : fail(SHOAL_ERR_INTERNAL, "cuDNN: %s: no value", place);
}

void cudnn_descriptor_destroy(cudnnBackendDescriptor_t descriptor)
{
    if (descriptor != NULL)
        cudnnBackendDestroyDescriptor(descriptor);
}
