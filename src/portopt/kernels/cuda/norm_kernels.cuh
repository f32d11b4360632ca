// The two passes over the gradients. Any grid, and any block of a power of two of at most THREADS threads.

extern "C" __global__ void largest_gradient(const __grid_constant__ Table table, GradientNorm *norm)
{
    __shared__ unsigned long long found[THREADS];
    unsigned long long largest = 0;
    for (long long chunk = blockIdx.x; chunk < table.first_chunk[ROWS]; chunk += gridDim.x) {
        const int row = find_row(table, chunk);
        const gradient *const g = (const gradient *)table.address[row][0];
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

extern "C" __global__ void sum_squares(
    const __grid_constant__ Table table,
    const double constant_0,
    const double constant_1,
    const double constant_2,
    GradientNorm *norm)
{
    __shared__ double partial[3][THREADS];
    if (norm->largest == 0 || norm->largest >= INFINITY_WORD)
        return;
    const double constants[3] = {constant_0, constant_1, constant_2};
    const int exponent = exponent_of(norm->largest);
    const double factor_0 = power_of_two(-first_exponent(exponent));
    const double factor_1 = power_of_two(-second_exponent(exponent));
    double sums[3] = {0.0, 0.0, 0.0};
    for (long long chunk = blockIdx.x; chunk < table.first_chunk[ROWS]; chunk += gridDim.x) {
        const int row = find_row(table, chunk);
        const gradient *const g = (const gradient *)table.address[row][0];
        const long long start = (chunk - table.first_chunk[row]) * CHUNK;
        const long long end = start + CHUNK < table.size[row] ? start + CHUNK : table.size[row];
        for (long long i = start + threadIdx.x; i < end; i += blockDim.x) {
            const double scaled = (load(g[i]) * factor_0) * factor_1;
            double rest = product(scaled, scaled);
            for (int pass = 0; pass < 3; pass++) {
                const double rounded = (rest + constants[pass]) - constants[pass];
                sums[pass] += rounded;
                rest -= rounded;
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
            atomicAdd(&norm->sums[pass], partial[pass][0]);
}
