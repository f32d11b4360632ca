// The squares of all gradients, added up in one pass. A thread looks for the largest of sixteen elements before it adds their
// squares, and moves on to higher bins if it must. Each block leaves a part; parts of blocks that are not there are nothing.

extern "C" __global__ void __launch_bounds__(THREADS) sum_squares(
    const __grid_constant__ Table table, Sum *parts, const long long count)
{
    Sum sum = no_sum(LOWEST_OF_SQUARES);
    for (long long chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
        const int row = row_of(table, chunk);
        const gradient *const g = memory_at<const gradient>(address_of(table, 0, row));
        const long long start = (chunk - first_chunk_of(table, row)) * REDUCED_CHUNK;
        const long long end = start + REDUCED_CHUNK < elements_of(table, row) ? start + REDUCED_CHUNK : elements_of(table, row);
        const bool aligned = is_aligned(g);
        const long long beside = aligned ? 1 : blockDim.x;
#pragma unroll 1
        for (long long i = start + threadIdx.x * (aligned ? 4 : 1); i < end; i += 16 * blockDim.x) {
            Four<gradient> found[4];
            if (aligned && i + 12 * blockDim.x + 4 <= end) {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    found[n] = four_of(g + i + 4 * n * blockDim.x);
            } else {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    found[n] = each_of(g, i + 4 * n * blockDim.x, beside, end);
            }
            real x[16];
#pragma unroll
            for (int k = 0; k < 16; k++)
                x[k] = load(found[k / 4].at[k % 4]);
            add_squares(sum, x);
        }
    }
    sum = over_whole_block(sum);
    if (threadIdx.x == 0)
        for (long long part = blockIdx.x; part < count; part += gridDim.x) {
            parts[part] = sum;
            sum = no_sum(LOWEST_OF_SQUARES);
        }
}
