// The rows of a table in a captured step: the parameter that each chunk is of, given the first chunk of each.

extern "C" __global__ void __launch_bounds__(THREADS) put_rows(
    const long long *first_chunk, int *row, const long long rows)
{
    for (long long parameter = blockIdx.x; parameter < rows; parameter += gridDim.x)
        for (long long k = first_chunk[parameter] + threadIdx.x; k < first_chunk[parameter + 1]; k += blockDim.x)
            row[k] = (int)parameter;
}
