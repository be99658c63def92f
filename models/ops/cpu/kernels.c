/* The table of one instruction set; its entries are in the other kernels_*.c files. */
#include "models/ops/cpu/kernels_internal.h"

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

const struct op_kernels ISA_NAME(op_kernels) = {
    .isa = TEXT(SHOAL_ISA),
    .convert = kernel_convert,
    .accumulate = kernel_accumulate,
    .clear = kernel_clear,
    .add = kernel_add,
    .add_embeddings = kernel_add_embeddings,
    .column_sums = kernel_column_sums,
    .norm = kernel_norm,
    .norm_backward = kernel_norm_backward,
    .gelu = kernel_gelu,
    .gelu_backward = kernel_gelu_backward,
    .gelu_again = kernel_gelu_again,
    .swiglu = kernel_swiglu,
    .swiglu_backward = kernel_swiglu_backward,
    .rotate = kernel_rotate,
    .exp = kernel_exp,
    .log = kernel_log,
    .dot = kernel_dot,
    .axpy = kernel_axpy,
    .softmax_row = kernel_softmax_row,
    .softmax_backward_row = kernel_softmax_backward_row,
    .cross_entropy = kernel_cross_entropy,
    .cross_entropy_backward = kernel_cross_entropy_backward,
};
