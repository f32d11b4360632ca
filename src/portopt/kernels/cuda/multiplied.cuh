// A product of matrices of integers in float64, of which every sum is exact, in any order and contracted or not.
// A block computes a square of TILE rows and columns, each of 256 parts of it as four rows by four columns.

#define DEPTH 16

extern "C" __global__ void __launch_bounds__(THREADS) multiplied(
    const double *a, const double *b, double *results, long long count, long long rows, long long columns, long long inner)
{
    __shared__ double left[DEPTH][TILE + 1];
    __shared__ double right[DEPTH][TILE];
    const long long beside = (columns + TILE - 1) / TILE, squares = (rows + TILE - 1) / TILE * beside;
    for (long long square = blockIdx.x; square < count * squares; square += gridDim.x) {
        const long long matrix = square / squares, place = square - matrix * squares;
        const long long first_row = place / beside * TILE, first_column = (place - place / beside * beside) * TILE;
        const double *const from_left = a + matrix * rows * inner, *const from_right = b + matrix * inner * columns;
        for (unsigned int part = threadIdx.x; part < TILE * TILE / 16; part += blockDim.x) {
            const unsigned int row = part / 16 * 4, column = part % 16;
            double sums[4][4] = {};
            for (long long start = 0; start < inner; start += DEPTH) {
                __syncthreads();
                for (unsigned int k = threadIdx.x; k < TILE * DEPTH; k += blockDim.x) {
                    const long long i = first_row + k / DEPTH, along = start + k % DEPTH;
                    left[k % DEPTH][k / DEPTH] = i < rows && along < inner ? from_left[i * inner + along] : 0.0;
                    const long long down = start + k / TILE, j = first_column + k % TILE;
                    right[k / TILE][k % TILE] = down < inner && j < columns ? from_right[down * columns + j] : 0.0;
                }
                __syncthreads();
#pragma unroll
                for (int k = 0; k < DEPTH; k++)
#pragma unroll
                    for (int m = 0; m < 4; m++)
#pragma unroll
                        for (int n = 0; n < 4; n++)
                            sums[m][n] = fma(left[k][row + m], right[k][column + 16 * n], sums[m][n]);
            }
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const long long i = first_row + row + m, j = first_column + column + 16 * n;
                    if (i < rows && j < columns)
                        results[(matrix * rows + i) * columns + j] = sums[m][n];
                }
        }
    }
}
