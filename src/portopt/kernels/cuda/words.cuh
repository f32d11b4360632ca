// Words into the device's memory, by the arguments of a launch: the host need not keep them until the device has read them.

struct Words {
    unsigned long long *to;
    unsigned long long count;
    unsigned long long at[WORDS];
};

extern "C" __global__ void __launch_bounds__(THREADS) put_words(const __grid_constant__ Words words)
{
    for (unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x; i < words.count; i += gridDim.x * blockDim.x)
        words.to[i] = words.at[i];
}
