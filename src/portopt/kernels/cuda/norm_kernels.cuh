// The two passes over the gradients. Any grid, and any block of a power of two of at most THREADS threads.

extern "C" __global__ void __launch_bounds__(THREADS) largest_gradient(const __grid_constant__ Table table, GradientNorm *norm)
{
    __shared__ unsigned long long found[THREADS];
    unsigned long long largest = 0;
    for (long long chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
        const int row = table.row[chunk];
        const gradient *const g = memory_at<const gradient>(table.address[row]);
        const long long start = (chunk - table.first_chunk[row]) * CHUNK;
        const long long end = start + CHUNK < table.size[row] ? start + CHUNK : table.size[row];
        for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {
            const unsigned long long word = (unsigned long long)__double_as_longlong(fabs(load(g[i])));
            largest = word > largest ? word : largest;
        }
    }
    found[threadIdx.x] = largest;
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && found[threadIdx.x + half] > found[threadIdx.x])
            found[threadIdx.x] = found[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        atomicMax(&norm->largest, found[0]);
}

extern "C" __global__ void __launch_bounds__(THREADS) sum_squares(const __grid_constant__ Table table, GradientNorm *norm)
{
    __shared__ long long partial[3][THREADS];
    if (norm->largest == 0 || norm->largest >= INFINITY_WORD)
        return;
    const double scale = power_of_two(-scaling_of(norm->largest));
    // Adding a number to one that is so large rounds it to a multiple of the unit of the last bit, which is that of a bin.
    const double unit_of_last = 1.5 * power_of_two(bins_of(norm->largest) - 31 + 52);
    const double constants[3] = {unit_of_last, unit_of_last * 0x1p-32, unit_of_last * 0x1p-64};
    long long sums[3] = {0, 0, 0};
    for (long long chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
        const int row = table.row[chunk];
        const gradient *const g = memory_at<const gradient>(table.address[row]);
        const long long start = (chunk - table.first_chunk[row]) * CHUNK;
        const long long end = start + CHUNK < table.size[row] ? start + CHUNK : table.size[row];
        for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {
            const double scaled = load(g[i]) * scale;
            double rest = scaled * scaled;
            for (int pass = 0; pass < 3; pass++) {
                const double rounded = rest + constants[pass];
                sums[pass] += __double_as_longlong(rounded) - __double_as_longlong(constants[pass]);
                rest -= rounded - constants[pass];
            }
        }
    }
    for (int pass = 0; pass < 3; pass++)
        partial[pass][threadIdx.x] = sums[pass];
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            for (int pass = 0; pass < 3; pass++)
                partial[pass][threadIdx.x] += partial[pass][threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        for (int pass = 0; pass < 3; pass++)
            atomicAdd(&norm->sums[pass], (unsigned long long)partial[pass][0]);
}
