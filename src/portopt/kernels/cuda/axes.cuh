// Reductions of rows and of columns at once. A warp goes down the rows of a tile of a matrix, some rows at a time; a lane has four
// columns of it. Each row and each column has bins of its own, so that no bit depends on how a matrix is cut into tiles.

// A block on the host may have fewer threads than a warp.
#ifdef __CUDA_ARCH__
__device__ __forceinline__ constexpr unsigned int lanes_here() { return LANES; }
#else
__device__ __forceinline__ unsigned int lanes_here() { return blockDim.x < LANES ? blockDim.x : LANES; }
#endif

// Bins of numbers that are scaled to be less than two to the power of LEFT_OF_BINS: multiples of 2**-16, 2**-48 and 2**-80. To add a
// number that is so large rounds to such a multiple, and the integer then stands in the last 51 bits; what is above is not looked at.
struct Bins {
    unsigned long long first, second, third;
};

#define LEFT_OF_BINS 15
#define BITS_OF_BINS 51

__device__ __forceinline__ Bins no_bins()
{
    const Bins nothing = {0, 0, 0};
    return nothing;
}

__device__ __forceinline__ void add_scaled(Bins &bins, double left)
{
    const double first = left + 0x1.8p36;
    left -= first - 0x1.8p36;
    const double second = left + 0x1.8p4;
    left -= second - 0x1.8p4;
    bins.first += (unsigned long long)__double_as_longlong(first);
    bins.second += (unsigned long long)__double_as_longlong(second);
    bins.third += (unsigned long long)__double_as_longlong(left + 0x1.8p-28);
}

__device__ __forceinline__ void join(Bins &bins, Bins other)
{
    bins.first += other.first;
    bins.second += other.second;
    bins.third += other.third;
}

__device__ __forceinline__ long long integer_of(unsigned long long bin)
{
    return (long long)(bin << (64 - BITS_OF_BINS)) >> (64 - BITS_OF_BINS);
}

__device__ __forceinline__ Sum sum_of_bins(const Bins &bins, int exponent, int special)
{
    const Sum sum = {exponent, integer_of(bins.first), integer_of(bins.second), integer_of(bins.third), special};
    return sum;
}

// The exponents of bins, and what scales numbers for them -----------------------------------------------------------------

// The part of a magnitude that tells its exponent.
__device__ __forceinline__ unsigned int exponent_word_of(float x) { return __float_as_uint(fabsf(x)); }
__device__ __forceinline__ unsigned int exponent_word_of(double x)
{
    return (unsigned int)((unsigned long long)__double_as_longlong(fabs(x)) >> 32);
}

// Of finite numbers, infinity and NaN being zero.
__device__ __forceinline__ unsigned int finite_word_of(float x) { return fabsf(x) < (float)INFINITE ? exponent_word_of(x) : 0; }
__device__ __forceinline__ unsigned int finite_word_of(double x) { return fabs(x) < INFINITE ? exponent_word_of(x) : 0; }

// 1 of NaN, 2 of infinity, 4 of minus infinity.
template <typename Real> __device__ __forceinline__ int special_of(Real x)
{
    return x != x ? 1 : x >= (Real)INFINITE ? 2 : x <= -(Real)INFINITE ? 4 : 0;
}

template <typename Real> __device__ __forceinline__ constexpr unsigned int infinity_word()
{
    return sizeof(Real) == 4 ? 0x7f800000u : 0x7ff00000u;
}

template <typename Real> __device__ __forceinline__ constexpr int least_exponent()
{
    return sizeof(Real) == 4 ? -112 : LOWEST_EXPONENT;
}

// The smallest exponent of bins above a number.
template <typename Real> __device__ __forceinline__ int exponent_above_word(unsigned int word)
{
    const int exponent = exponent_from(sizeof(Real) == 4 ? (int)(word >> 23) - 126 : (int)(word >> 20) - 1022);
    return exponent < least_exponent<Real>() ? least_exponent<Real>() : exponent;
}

// What scales numbers for bins at an exponent; where it is subnormal, it is exact.
__device__ __forceinline__ float scale_at(int exponent, float)
{
    const int word = LEFT_OF_BINS - exponent + 127;
    return __uint_as_float(word > 0 ? (unsigned int)word << 23 : 0x400000u >> -word);
}

__device__ __forceinline__ double scale_at(int exponent, double)
{
    return power_of_two(LEFT_OF_BINS - exponent + 64) * 0x1p-64;
}

__device__ __forceinline__ unsigned int largest_of_lanes(unsigned int word)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, word);
#else
    for (unsigned int far = lanes_here() / 2; far > 0; far /= 2) {
        const unsigned int other = __shfl_xor_sync(ALL_LANES, word, far);
        word = other > word ? other : word;
    }
    return word;
#endif
}

// Sums of columns: each lane adds up its own ---------------------------------------------------------------------------------

template <typename Real> struct Column {
    Bins bins;
    int exponent, special;
    Real scale;
};

template <typename Real> __device__ __forceinline__ void begin(Column<Real> &column)
{
    column.bins = no_bins();
    column.exponent = least_exponent<Real>();
    column.special = 0;
    column.scale = scale_at(column.exponent, Real());
}

template <typename Real> __device__ __forceinline__ void raise_column(Column<Real> &column, int exponent)
{
#pragma unroll 1
    for (; column.exponent < exponent; column.exponent += BIN_WIDTH) {
        column.bins.third = column.bins.second;
        column.bins.second = column.bins.first;
        column.bins.first = 0;
    }
    column.scale = scale_at(exponent, Real());
}

// Adds the `k`-th of each four.
template <typename Real, int COUNT> __device__ __forceinline__ void add_column(Column<Real> &column, const Real (&x)[COUNT], int k)
{
    unsigned int most = exponent_word_of(x[k]);
#pragma unroll
    for (int n = k + 4; n < COUNT; n += 4)
        most = exponent_word_of(x[n]) > most ? exponent_word_of(x[n]) : most;
    if (most >= infinity_word<Real>()) {
        most = 0;
#pragma unroll
        for (int n = k; n < COUNT; n += 4) {
            most = finite_word_of(x[n]) > most ? finite_word_of(x[n]) : most;
            column.special |= special_of(x[n]);
        }
    }
    const int exponent = exponent_above_word<Real>(most);
    if (exponent > column.exponent)
        raise_column(column, exponent);
#pragma unroll
    for (int n = k; n < COUNT; n += 4)
        add_scaled(column.bins, (double)(x[n] * column.scale));
}

// Sums of rows: the lanes of a warp add them up together ----------------------------------------------------------------------

// Adds the four of each row that a lane has, in bins that suit the row's whole part in the tile. Returns their exponents; of a row
// that is special, how, beside IS_SPECIAL.
#define IS_SPECIAL 0x10000

template <typename Real, int COUNT>
__device__ __forceinline__ void add_rows(Bins (&rows)[COUNT / 4], int (&exponents)[COUNT / 4], const Real (&x)[COUNT])
{
#pragma unroll
    for (int r = 0; r < COUNT / 4; r++) {
        unsigned int most = exponent_word_of(x[4 * r]);
#pragma unroll
        for (int k = 1; k < 4; k++)
            most = exponent_word_of(x[4 * r + k]) > most ? exponent_word_of(x[4 * r + k]) : most;
        most = largest_of_lanes(most);
        exponents[r] = exponent_above_word<Real>(most);
        const Real scale = scale_at(exponents[r], Real());
        if (most >= infinity_word<Real>()) {
            int special = 0;
#pragma unroll
            for (int k = 0; k < 4; k++)
                special |= special_of(x[4 * r + k]);
            exponents[r] = IS_SPECIAL;
            for (int k = 1; k <= 4; k *= 2)
                exponents[r] |= largest_of_lanes(special & k);
        }
        rows[r] = no_bins();
#pragma unroll
        for (int k = 0; k < 4; k++)
            add_scaled(rows[r], (double)(x[4 * r + k] * scale));
    }
}

// What another lane has.
__device__ __forceinline__ Bins of_lane(const Bins &own, unsigned int far)
{
    const Bins found = {
        __shfl_xor_sync(ALL_LANES, own.first, far), __shfl_xor_sync(ALL_LANES, own.second, far),
        __shfl_xor_sync(ALL_LANES, own.third, far)};
    return found;
}

template <typename Part> __device__ __forceinline__ Part of_lane(const Part &own, unsigned int far)
{
    const Part found = {__shfl_xor_sync(ALL_LANES, own.word, far)};
    return found;
}

// Joins what the lanes have of some rows: afterwards each lane has its share of them, from `first_of_rows` on.
template <typename Part, int ROWS> __device__ __forceinline__ void over_rows(Part (&rows)[ROWS])
{
    unsigned int far = lanes_here();
    int left = ROWS;
#pragma unroll
    for (int step = 0; step < 5; step++) {
        far /= 2;
        if (far == 0)
            break;
        if (left == 1) {
            join(rows[0], of_lane(rows[0], far));
            continue;
        }
        left /= 2;
        const bool upper = threadIdx.x & far;
#pragma unroll
        for (int n = 0; n < ROWS / 2; n++)
            if (n < left) {
                const Part others = upper ? rows[n] : rows[n + left];
                rows[n] = upper ? rows[n + left] : rows[n];
                join(rows[n], of_lane(others, far));
            }
    }
}

template <int ROWS> __device__ __forceinline__ int number_of_rows() { return lanes_here() < ROWS ? ROWS / lanes_here() : 1; }

template <int ROWS> __device__ __forceinline__ int first_of_rows()
{
    const unsigned int lane = threadIdx.x % lanes_here();
    return lanes_here() < ROWS ? lane * (ROWS / lanes_here()) : lane / (lanes_here() / ROWS);
}

// Several lanes have the same row in the end.
template <int ROWS> __device__ __forceinline__ bool is_first_with_rows()
{
    return lanes_here() < ROWS || threadIdx.x % (lanes_here() / ROWS) == 0;
}

// The sum of the `r`-th row.
template <int ROWS> __device__ __forceinline__ Sum sum_of_row(const Bins &bins, const int (&exponents)[ROWS], int r)
{
    int exponent = exponents[0];
#pragma unroll
    for (int n = 1; n < ROWS; n++)
        exponent = n == r ? exponents[n] : exponent;
    const bool is_special = exponent & IS_SPECIAL && exponent > 0;
    return sum_of_bins(bins, is_special ? LOWEST_EXPONENT : exponent, is_special ? exponent ^ IS_SPECIAL : 0);
}

// What a tile leaves of a row or a column -------------------------------------------------------------------------------------

// A sum of few addends: its integers have 40 bits.
struct alignas(16) PartOfSum {
    unsigned long long low, high;
};

#define BITS_OF_PART 40
#define CODE_OF_SPECIAL 128

__device__ __forceinline__ PartOfSum part_of(const Sum &sum)
{
    const unsigned long long mask = (1ull << BITS_OF_PART) - 1;
    const unsigned long long first = sum.first & mask, second = sum.second & mask, third = sum.third & mask;
    const unsigned long long code =
        sum.special != 0 ? CODE_OF_SPECIAL | sum.special : (unsigned long long)(sum.exponent - LOWEST_EXPONENT) / BIN_WIDTH;
    const PartOfSum found = {first | second << BITS_OF_PART, second >> (64 - BITS_OF_PART) | third << 16 | code << 56};
    return found;
}

__device__ __forceinline__ Sum whole_of(const PartOfSum &part)
{
    const int code = (int)(part.high >> 56), above = 64 - BITS_OF_PART;
    Sum sum = no_sum(LOWEST_EXPONENT + BIN_WIDTH * (code & CODE_OF_SPECIAL ? 0 : code));
    sum.first = (long long)(part.low << above) >> above;
    sum.second = (long long)((part.low >> BITS_OF_PART | part.high << above) << above) >> above;
    sum.third = (long long)(part.high << 8) >> above;
    sum.special = code & CODE_OF_SPECIAL ? code & ~CODE_OF_SPECIAL : 0;
    return sum;
}

__device__ __forceinline__ void join_part(Sum &sum, const PartOfSum &part) { join(sum, whole_of(part)); }
template <typename Part> __device__ __forceinline__ void join_part(Part &own, const Part &part) { join(own, part); }
template <typename Part> __device__ __forceinline__ Part part_of(const Part &own) { return own; }
