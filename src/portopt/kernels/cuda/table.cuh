// Many parameters in one launch: what is known of them lies in the device's memory, and the launch is told where.
// The elements are cut into chunks, numbered through all parameters; each block takes every gridDim.x-th chunk.

struct Table {
    const long long *first_chunk;  // of each parameter, and after the last one's the number of all chunks
    const long long *size;  // the number of elements of each parameter
    const int *row;  // the parameter that each chunk is of
    const unsigned long long *address;  // column c of parameter r stands at c * rows + r
    long long rows;
    long long chunks;
};

// Memory that begins at an address. To say that it is of the device spares each load and store the question.
template <typename T> __device__ __forceinline__ T *memory_at(unsigned long long address)
{
    return (T *)__cvta_global_to_generic(address);
}
