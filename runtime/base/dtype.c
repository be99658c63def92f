#include "runtime/base/dtype.h"

const char *dtype_name(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
        return "fp32";
    case DTYPE_BF16:
        return "bf16";
    case DTYPE_I32:
        return "int32";
    case DTYPE_I64:
        return "int64";
    case DTYPE_U8:
        return "uint8";
    }
    return "unknown";
}
