// What tells the kernels of a captured step where arrays lie. A graph keeps the arguments of its kernels, so they are the only
// memory of the host that each repetition may read: the words of a table are arguments here.

struct Words {
    long long word[WORDS];
};

extern "C" __global__ void __launch_bounds__(THREADS) put_words(
    const __grid_constant__ Words words, long long *to, const long long count)
{
    for (long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x; k < count; k += gridDim.x * (long long)blockDim.x)
        to[k] = words.word[k];
}

// The parameter that each chunk is of, given the first chunk of each.
extern "C" __global__ void __launch_bounds__(THREADS) put_rows(
    const long long *first_chunk, int *row, const long long rows)
{
    for (long long parameter = blockIdx.x; parameter < rows; parameter += gridDim.x)
        for (long long k = first_chunk[parameter] + threadIdx.x; k < first_chunk[parameter + 1]; k += blockDim.x)
            row[k] = (int)parameter;
}
