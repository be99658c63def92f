#pragma once

#include "optim/cuda/codecs.cuh"
#include "optim/cuda/rules.cuh"

/*
 * UPDATE of an element-wise rule whose states and master weights rest in fp32: nothing has a scale
 * that elements share, so a thread takes four of them and every access is of 16 bytes.
 */
enum { WIDE = 4 };

static bool is_aligned(const void *p, size_t n_bytes)
{
    return (uintptr_t)p % n_bytes == 0;
}

static bool is_wide(const update_part *part)
{
    bool wide = part->rule < RULE_ADAM_MINI && part->vectors[ELEMENTS_CLIP] == NULL &&
                part->vectors[ELEMENTS_MASK] == NULL && part->master == MASTER_FP32 &&
                is_aligned(part->grad, sizeof(float4)) && is_aligned(part->low, sizeof(float4)) &&
                is_aligned(part->param, sizeof(uint2));

    for (int k = 0; k < part->n_states; k++)
        wide = wide && part->codec[k] == CODE_FP32 && is_aligned(part->codes[k], sizeof(float4));
    return wide;
}

static __device__ __forceinline__ void load_four(const void *from, size_t i, float *x)
{
    const float4 four = *(const float4 *)((const float *)from + i);

    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
}

static __device__ __forceinline__ void store_four(void *to, size_t i, const float *x)
{
    *(float4 *)((float *)to + i) = make_float4(x[0], x[1], x[2], x[3]);
}

static __device__ __forceinline__ uint32_t two_bf16_of(float low, float high)
{
    return (uint32_t)bf16_of(low) | (uint32_t)bf16_of(high) << 16;
}

static __device__ __forceinline__ void update_four(const update_part &part, float grad_scale,
                                                   size_t i)
{
    float g[WIDE], p[WIDE], s[WORK_STATES][WIDE];

    load_four(part.grad, i, g);
    load_four(part.low, i, p);
    ELEMENT_UNROLL
    for (int k = 0; k < WORK_STATES; k++)
        if (k < part.n_states)
            load_four(part.codes[k], i, s[k]);
    ELEMENT_UNROLL
    for (int e = 0; e < WIDE; e++) {
        float of_element[WORK_STATES];

        ELEMENT_UNROLL
        for (int k = 0; k < WORK_STATES; k++)
            of_element[k] = k < part.n_states ? s[k][e] : 0.0f;
        p[e] = one_nan(step(part, g[e] * grad_scale, p[e], of_element));
        ELEMENT_UNROLL
        for (int k = 0; k < WORK_STATES; k++)
            s[k][e] = one_nan(of_element[k]);
    }
    ELEMENT_UNROLL
    for (int k = 0; k < WORK_STATES; k++)
        if (k < part.n_states)
            store_four(part.codes[k], i, s[k]);
    store_four(part.low, i, p);
    if (part.param != NULL)
        *(uint2 *)(part.param + i) = make_uint2(two_bf16_of(p[0], p[1]), two_bf16_of(p[2], p[3]));
}

static __device__ __forceinline__ void update_one(const update_part &part, float grad_scale,
                                                  size_t i)
{
    float s[WORK_STATES] = {0.0f, 0.0f, 0.0f};

    for (int k = 0; k < part.n_states; k++)
        s[k] = ((const float *)part.codes[k])[i];

    const float p = one_nan(step(part, part.grad[i] * grad_scale, ((const float *)part.low)[i], s));

    for (int k = 0; k < part.n_states; k++)
        ((float *)part.codes[k])[i] = one_nan(s[k]);
    ((float *)part.low)[i] = p;
    if (part.param != NULL)
        part.param[i] = bf16_of(p);
}
