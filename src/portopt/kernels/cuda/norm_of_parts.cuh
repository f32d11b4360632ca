// The norm of all gradients, given what blocks have found of it, in one block.

extern "C" __global__ void __launch_bounds__(THREADS) norm_of_parts(const Sum *parts, const long long count, double *norm)
{
    const Sum sum = over_parts(no_sum(LOWEST_OF_SQUARES), parts, count);
    if (threadIdx.x == 0)
        *norm = root_of(sum);
}
