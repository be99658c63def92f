/* Rotary positions: a block per token, in place on its query and key heads. */
#include "models/ops/cuda/kernels_internal.cuh"

enum { ROPE_THREADS_MAX = 256 };

/* ---- kernels ---- */

template <typename T>
static __global__ void __launch_bounds__(ROPE_THREADS_MAX)
    rope_kernel(int64_t T_length, int64_t width, int heads, int half, const float *cosines,
                const float *sines, int64_t first_position, float direction, T *qkv, bool vector)
{
    const int64_t row = blockIdx.x;
    const int64_t angle = (first_position + blockIdx.x % (unsigned)T_length) * half;
    const int groups = (half + GROUP - 1) / GROUP;

    for (int item = (int)threadIdx.x; item < heads * groups; item += (int)blockDim.x) {
        const int i = item % groups * GROUP;
        T *first = qkv + row * width + (int64_t)(item / groups) * 2 * half;
        T *second = first + half;
        const packed<float> c_loaded = load_packed(cosines + angle, i, half, vector);
        const packed<float> s_loaded = load_packed(sines + angle, i, half, vector);
        const packed<T> a_loaded = load_packed(first, i, half, vector);
        const packed<T> b_loaded = load_packed(second, i, half, vector);
        const struct group c = unpack(c_loaded);
        const struct group s = unpack(s_loaded);
        struct group a = unpack(a_loaded);
        struct group b = unpack(b_loaded);
        for (int j = 0; j < GROUP; j++) {
            const float sine = direction * s.v[j];
            const float turned = a.v[j] * c.v[j] - b.v[j] * sine;
            b.v[j] = b.v[j] * c.v[j] + a.v[j] * sine;
            a.v[j] = turned;
        }
        store_group(first, i, half, vector, a);
        store_group(second, i, half, vector, b);
    }
}

/* ---- launchers ---- */

template <typename T>
static shoal_status rope(cudaStream_t stream, const struct attention_shape *s, const float *cosines,
                         const float *sines, int64_t first_position, float direction, void *qkv)
{
    const int half = s->D / 2;
    const int heads = s->H + s->K;
    const bool vector =
        half % GROUP == 0 && is_aligned(cosines) && is_aligned(sines) && is_aligned(qkv);

    return launch("rope", rope_kernel<T>, dim3((unsigned)(s->B * s->T)),
                  threads_for((int64_t)heads * round_up(half, GROUP), ROPE_THREADS_MAX), 0, stream,
                  s->T, (int64_t)(s->H + 2 * s->K) * s->D, heads, half, cosines, sines,
                  first_position, direction, (T *)qkv, vector);
}

shoal_status cuda_rope(cudaStream_t stream, struct attention_shape s, const float *cosines,
                       const float *sines, int64_t first_position, bool inverse, void *qkv)
{
    SHOAL_TRY(check_attention("rope", &s));
    SHOAL_TRY(check_range("rope", "first position", first_position, 0, GRID_X_MAX));
    return (s.dtype == DTYPE_F32 ? rope<float> : rope<bf16_t>)(stream, &s, cosines, sines,
                                                               first_position,
                                                               inverse ? -1.0f : 1.0f, qkv);
}
