// Memory that begins at an address. To say that it is of the device spares each load and store the question.
template <typename T> __device__ __forceinline__ T *memory_at(unsigned long long address)
{
    return (T *)__cvta_global_to_generic(address);
}
