// What blocks found for a total over all parameters, joined: a block takes `each` parts and leaves one. Parts follow a word for
// the result.

template <typename Part> __device__ __forceinline__ void joined(
    Part begin, const long long *memory, long long *results, long long count, long long each)
{
    const Part *const parts = (const Part *)(memory + 1);
    for (long long block = blockIdx.x; block * each < count; block += gridDim.x) {
        const long long start = block * each;
        const Part found = over_parts(begin, parts + start, count - start < each ? count - start : each);
        if (threadIdx.x == 0)
            ((Part *)(results + 1))[block] = found;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sums_joined(const long long *memory, long long *results, long long count, long long each)
{
    joined(no_sum(LOWEST_OF_SQUARES), memory, results, count, each);
}

extern "C" __global__ void __launch_bounds__(THREADS) largest_joined(const long long *memory, long long *results, long long count, long long each)
{
    joined(Largest{-0x7fffffffffffffffll - 1}, memory, results, count, each);
}
