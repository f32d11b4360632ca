// Four elements of a thread. Where the arrays of a parameter are aligned they are neighbours, of which each array's are loaded
// and stored at once; otherwise, and at the end, they are of the places i, i + beside and so on that are below the end.
// An array of constants is one that nothing writes while the kernel runs.

template <typename T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
    T at[4];
};

template <typename T> __device__ __forceinline__ bool is_aligned(const T *array)
{
    return (unsigned long long)array % alignof(Four<T>) == 0;
}

template <typename T> __device__ __forceinline__ T one_of(T *place) { return *place; }
template <typename T> __device__ __forceinline__ T one_of(const T *place) { return __ldg(place); }

template <typename T> __device__ __forceinline__ Four<T> four_of(T *place) { return *(const Four<T> *)place; }

__device__ __forceinline__ Four<unsigned short> four_of(const unsigned short *place)
{
    const ushort4 words = __ldg((const ushort4 *)place);
    return {{words.x, words.y, words.z, words.w}};
}

__device__ __forceinline__ Four<float> four_of(const float *place)
{
    const float4 words = __ldg((const float4 *)place);
    return {{words.x, words.y, words.z, words.w}};
}

__device__ __forceinline__ Four<double> four_of(const double *place)
{
    const double2 first = __ldg((const double2 *)place), second = __ldg((const double2 *)place + 1);
    return {{first.x, first.y, second.x, second.y}};
}

template <typename T> __device__ __forceinline__ auto each_of(T *array, long long i, long long beside, long long end)
{
    Four<decltype(one_of(array))> found;
#pragma unroll
    for (int k = 0; k < 4; k++)
        found.at[k] = i + k * beside < end ? one_of(array + i + k * beside) : decltype(one_of(array))(0);
    return found;
}

#ifdef __CUDA_ARCH__
// Written as assignments, the compiler takes some of them apart, and its functions that store ask for an order among threads.

__device__ __forceinline__ void put_four(unsigned short *place, const Four<unsigned short> &four)
{
    asm volatile("st.global.v4.u16 [%0], {%1, %2, %3, %4};" ::"l"(place), "h"(four.at[0]), "h"(four.at[1]), "h"(four.at[2]),
        "h"(four.at[3])
        : "memory");
}

__device__ __forceinline__ void put_four(float *place, const Four<float> &four)
{
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(four.at[0]), "f"(four.at[1]), "f"(four.at[2]),
        "f"(four.at[3])
        : "memory");
}

__device__ __forceinline__ void put_four(double *place, const Four<double> &four)
{
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(place), "d"(four.at[0]), "d"(four.at[1]) : "memory");
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(place + 2), "d"(four.at[2]), "d"(four.at[3]) : "memory");
}
#else
template <typename T> __device__ __forceinline__ void put_four(T *place, const Four<T> &four) { *(Four<T> *)place = four; }
#endif

// Whether one of four is another number than before. A NaN is, which does no harm.
template <typename T> __device__ __forceinline__ bool differ(const Four<T> &four, const Four<T> &before)
{
    return four.at[0] != before.at[0] || four.at[1] != before.at[1] || four.at[2] != before.at[2] || four.at[3] != before.at[3];
}

template <typename T>
__device__ __forceinline__ void put_each(T *array, long long i, long long beside, long long end, const Four<T> &four)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (i + k * beside < end)
            array[i + k * beside] = four.at[k];
}
