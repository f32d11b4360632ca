// What a product of matrices is made of beside the product itself, as portopt.program.products defines it: an operand as integers,
// SLICES of them for each number of the type `real`, and integer products scaled back.

#define LOWEST_POWER -961
#define ROUNDING 6755399441055744.0

// A line is a row, or a column: `count` numbers, each `beside` after the one before. All threads of a block call this.
__device__ __forceinline__ void sliced(
    const real *x, double *integers, double *factors, long long lines, long long count, long long beside, int bits,
    unsigned int across, long long first, long long end)
{
    __shared__ long long words[ACROSS];
    for (long long line_of = first; line_of < end; line_of += across) {
        const long long line = line_of + threadIdx.x % across;
        const long long start = line + divided(line, beside) * beside * (count - 1);
        const unsigned int step = blockDim.x / across;
        Largest largest = {0};
        if (line < end)
            for (long long j = threadIdx.x / across; j < count; j += step)
                add(largest, fabs((double)x[start + j * beside]));
        largest = over_block(largest, across);
        if (threadIdx.x < across)
            words[threadIdx.x] = largest.word;
        __syncthreads();
        if (line >= end)
            continue;
        const long long word = words[threadIdx.x % across];
        const bool finite = word < (long long)INFINITY_WORD;
        int exponent = finite ? (int)(word >> 52) - 1023 : 0;
        exponent = exponent < LOWEST_POWER ? LOWEST_POWER : exponent;
        const double up = power_of_two(bits - 1 - exponent);
        if (threadIdx.x < across)
            factors[line] = finite ? power_of_two(exponent + 1 - bits) : NOT_A_NUMBER;
        for (long long j = threadIdx.x / across; j < count; j += step) {
            const long long at = start + j * beside;
            double rest = finite ? (double)x[at] * up : 0.0;
            for (int k = 0; k < SLICES; k++) {
                const double rounded = (rest + ROUNDING) - ROUNDING;
                integers[k * lines * count + at] = rounded;
                rest = (rest - rounded) * power_of_two(bits + 1);
            }
        }
    }
}

// Rows: a block takes one at a time.
extern "C" __global__ void __launch_bounds__(THREADS) rows_sliced(
    const real *x, double *integers, double *factors, long long lines, long long count, long long beside, long long bits)
{
    for (long long line = blockIdx.x; line < lines; line += gridDim.x)
        sliced(x, integers, factors, lines, count, beside, (int)bits, 1, line, line + 1);
}

// Columns: a block takes ACROSS neighbours at a time, or fewer if it has few threads.
extern "C" __global__ void __launch_bounds__(THREADS) columns_sliced(
    const real *x, double *integers, double *factors, long long lines, long long count, long long beside, long long bits)
{
    const unsigned int across = blockDim.x < 2 * ACROSS ? blockDim.x / 2 : ACROSS;
    for (long long first = (long long)blockIdx.x * ACROSS; first < lines; first += (long long)gridDim.x * ACROSS) {
        const long long end = first + ACROSS < lines ? first + ACROSS : lines;
        sliced(x, integers, factors, lines, count, beside, (int)bits, across, first, end);
    }
}

// Of 2**510, 2**-510 or 1.
__device__ __forceinline__ double reciprocal(double x) { return x > 1.0 ? 0x1p-510 : x < 1.0 ? 0x1p510 : 1.0; }

__device__ __forceinline__ real scaled_back(double total, double row, double column)
{
    total = total + 0.0;  // -0 becomes +0
#if SLICES == 1
    return round_to_float32(total * row * column);
#else
    // The product of the two factors may be out of range where the result is not.
    const double down_row = row >= 0x1p256 ? 0x1p-510 : row <= 0x1p-256 ? 0x1p510 : 1.0;
    const double down_column = column >= 0x1p256 ? 0x1p-510 : column <= 0x1p-256 ? 0x1p510 : 1.0;
    const double scaled = flush(flush(total * (row * down_row)) * (column * down_column));
    return product(scaled, reciprocal(down_row) * reciprocal(down_column));
#endif
}

#if SLICES == 1
extern "C" __global__ void __launch_bounds__(THREADS) rescaled(
    const double *n11, const double *rows, const double *columns, real *results, long long size, long long row_count,
    long long column_count, long long bits)
#else
extern "C" __global__ void __launch_bounds__(THREADS) rescaled(
    const double *n11, const double *n12, const double *n21, const double *n13, const double *n31, const double *n22,
    const double *rows, const double *columns, real *results, long long size, long long row_count, long long column_count,
    long long bits)
#endif
{
#pragma unroll 1
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += (long long)gridDim.x * blockDim.x) {
        const long long row = divided(i, column_count);
        const long long column = i - row * column_count + divided(row, row_count) * column_count;
#if SLICES == 1
        const double total = n11[i];
#else
        const double below = power_of_two(-(int)bits - 1);
        const double third = flush(flush(n13[i] + n31[i]) + n22[i]) * (below * below);
        const double total = flush(n11[i] + flush(flush(n12[i] + n21[i]) * below + third));
#endif
        results[i] = scaled_back(total, rows[row], columns[column]);
    }
}
