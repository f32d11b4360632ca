// Reductions, as portopt.program.bins and portopt.program.reductions define them. What is kept of one is made of integers, so
// parts of it are combined in any order.

#define LANES 32
#define ALL_LANES 0xffffffffu
#define INFINITY_WORD 0x7ff0000000000000ull
#define INFINITE __longlong_as_double((long long)INFINITY_WORD)
#define NOT_A_NUMBER __longlong_as_double(0x7ff8000000000000ll)

// Bins: exponents, and integers ---------------------------------------------------------------------------------------

__device__ __forceinline__ double power_of_two(int exponent)
{
    return __longlong_as_double((long long)(exponent + 1023) << 52);
}

// One and a half times a power of two.
__device__ __forceinline__ double large(int exponent)
{
    return __longlong_as_double((long long)((exponent + 1023) << 20 | 0x80000) << 32);
}

// The exponent of what numbers are divided by before they are squared, given that of the bins of the squares.
__device__ __forceinline__ int scaling_of_squares(long long exponent)
{
    return exponent > 2 * UNSCALED ? SCALING : exponent <= -2 * UNSCALED ? -SCALING : 0;
}

// The smallest exponent of bins that is not below an integer.
__device__ __forceinline__ int exponent_from(int least)
{
    return ((least - BIN_OFFSET + BIN_WIDTH - 1) & -BIN_WIDTH) + BIN_OFFSET;
}

// An integer in units of a bin as a multiple of the next one, and a rest between minus and plus half of that.
__device__ __forceinline__ long long carry_of(long long integer) { return (integer + 0x80000000ll) >> 32; }
__device__ __forceinline__ long long rest_of(long long integer) { return integer - (carry_of(integer) << 32); }

// Sums: integers in three bins at an exponent ------------------------------------------------------------------------

struct Sum {
    long long exponent;
    long long first, second, third;
    long long special;  // 1: there is a NaN, 2: infinity, 4: minus infinity
};

__device__ __forceinline__ Sum no_sum(long long exponent)
{
    const Sum nothing = {exponent, 0, 0, 0, 0};
    return nothing;
}

__device__ __forceinline__ void raise_bins(Sum &sum, long long exponent)
{
    // Exponents are small: half of the word is enough to compare them.
    const int moved = (int)exponent - (int)sum.exponent;
    if (moved <= 0)
        return;
    sum.third = moved == 32 ? sum.second : moved == 64 ? sum.first : 0;
    sum.second = moved == 32 ? sum.first : 0;
    sum.first = 0;
    sum.exponent = exponent;
}

__device__ __forceinline__ unsigned int magnitude_of(float x) { return __float_as_uint(fabsf(x)); }

__device__ __forceinline__ unsigned long long magnitude_of(double x)
{
    return (unsigned long long)__double_as_longlong(fabs(x));
}

// The exponent of the last power of two that is not above a magnitude.
__device__ __forceinline__ int exponent_of(unsigned int magnitude) { return (int)(magnitude >> 23) - 127; }
__device__ __forceinline__ int exponent_of(unsigned long long magnitude) { return (int)(magnitude >> 52) - 1023; }

template <typename Real, int COUNT> __device__ __forceinline__ auto largest_magnitude(const Real (&x)[COUNT])
{
    auto most = magnitude_of(x[0]);
#pragma unroll
    for (int k = 1; k < COUNT; k++)
        most = magnitude_of(x[k]) > most ? magnitude_of(x[k]) : most;
    return most;
}

// All but the GPUs of these generations that are made for float64 have one unit of it for 16 or more of integers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 600 && __CUDA_ARCH__ != 700 && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900 \
    && __CUDA_ARCH__ != 1000
#define INTEGER_SQUARES
#endif

// What `add_squares` does of float32 numbers in bins that are high enough, in integers.
// Above the last bit of a square are two zeros, so what is followed by just a half is even, and stays. No square of 24 bits has a
// bit, 31 zeros and further ones where the last bin ends, so for the carry into the second what is below the last bin is not asked.
template <int COUNT>
__device__ __forceinline__ void add_integer_squares(Sum &sum, const float (&x)[COUNT])
{
    // What the last bin counts, as the exponent of the square of a whole number.
    const int unit = (int)sum.exponent - 95 + 2 * 150;
    unsigned long long sums[3] = {0, 0, 0};
    unsigned int carried_to_first = 0, carried_to_second = 0;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const unsigned int bits = magnitude_of(x[k]);
        const unsigned long long whole = bits == 0 ? 0 : (bits & 0x7fffff) | 0x800000, square = whole * whole;
        const int up = 2 * (int)(bits >> 23) - unit;
        unsigned long long high = 0, low, below = 0;
        if (up >= 0) {
            low = square << up;
            high = square >> 1 >> (63 - up);
        } else {
            const int down = up < -63 ? 63 : -up;
            low = square >> down;
            below = square << 1 << (63 - down);
        }
        const unsigned int last = (unsigned int)low;
        sums[0] += high;
        sums[1] += low >> 32;
        sums[2] += (unsigned long long)last + (below > 0x8000000000000000ull);
        carried_to_first += low > 0x8000000000000000ull;
        carried_to_second += last > 0x80000000u;
    }
    sum.first += (long long)(sums[0] + carried_to_first);
    sum.second += (long long)(sums[1] + carried_to_second - ((unsigned long long)carried_to_first << 32));
    sum.third += (long long)(sums[2] - ((unsigned long long)carried_to_second << 32));
}

template <int COUNT> __device__ __forceinline__ void add_integer_squares(Sum &, const double (&)[COUNT]) {}

// Adds numbers that are less than two to the power of an exponent, which is that of the bins, or what it is once the numbers are
// scaled. To add a number that is so large rounds to a multiple of the unit of its last bit, which is that of a bin; the integer
// then stands in the bits.
template <int COUNT> __device__ __forceinline__ void add_in_bins(Sum &sum, const double (&x)[COUNT], int exponent)
{
    const double units[3] = {large(exponent + 21), large(exponent - 11), large(exponent - 43)};
    unsigned long long sums[3] = {0, 0, 0};
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        double left = x[k];
#pragma unroll
        for (int bin = 0; bin < 3; bin++) {
            const double rounded = left + units[bin];
            sums[bin] += (unsigned long long)__double_as_longlong(rounded);
            left -= rounded - units[bin];
        }
    }
#pragma unroll
    for (int bin = 0; bin < 3; bin++)
        sums[bin] -= COUNT * (unsigned long long)__double_as_longlong(units[bin]);
    sum.first += (long long)sums[0];
    sum.second += (long long)sums[1];
    sum.third += (long long)sums[2];
}

// Several squares at once: their bins are those of the largest. Exponents of bins are even, so that of the largest number tells.
template <typename Real, int COUNT> __device__ __forceinline__ void add_squares(Sum &sum, const Real (&x)[COUNT])
{
    const auto most = largest_magnitude(x);
    if (most == 0)
        return;
    if (most >= magnitude_of((Real)INFINITE)) {
        sum.special |= most > magnitude_of((Real)INFINITE) ? 1 : 2;
        return;
    }
    raise_bins(sum, exponent_from(2 * exponent_of(most) + 1));
#ifdef INTEGER_SQUARES
    if (sizeof(Real) == 4) {
        add_integer_squares(sum, x);
        return;
    }
#endif
    const int half = sizeof(Real) == 8 ? scaling_of_squares(sum.exponent) : 0;
    double squares[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const double scaled = sizeof(Real) == 8 ? x[k] * power_of_two(-half) : x[k];
        squares[k] = scaled * scaled;
    }
    add_in_bins(sum, squares, (int)sum.exponent - 2 * half);
}

// Several numbers at once, in the same way. Those of float64 are scaled, so that nothing overflows.
template <typename Real, int COUNT> __device__ __forceinline__ void add_numbers(Sum &sum, const Real (&x)[COUNT])
{
    const auto most = largest_magnitude(x);
    if (most == 0)
        return;
    if (most >= magnitude_of((Real)INFINITE)) {
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (magnitude_of(x[k]) >= magnitude_of((Real)INFINITE))
                sum.special |= x[k] != x[k] ? 1 : x[k] > 0 ? 2 : 4;
        return;
    }
    raise_bins(sum, exponent_from(exponent_of(most) + 1));
    double scaled[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        scaled[k] = sizeof(Real) == 8 ? x[k] * power_of_two(31 - (int)sum.exponent) : x[k];
    add_in_bins(sum, scaled, sizeof(Real) == 8 ? 31 : (int)sum.exponent);
}

__device__ __forceinline__ void join(Sum &sum, Sum other)
{
    raise_bins(sum, other.exponent);
    raise_bins(other, sum.exponent);
    sum.first += other.first;
    sum.second += other.second;
    sum.third += other.third;
    sum.special |= other.special;
}

// The sum times 2**-shift.
__device__ __forceinline__ double shifted_sum_of(const Sum &sum, int shift)
{
    if (sum.special != 0)
        return sum.special & 1 || sum.special == 6 ? NOT_A_NUMBER : sum.special == 2 ? INFINITE : -INFINITE;
    const long long second = sum.second + carry_of(sum.third);
    const long long first = sum.first + carry_of(second);
    const double rest = (double)rest_of(sum.third) * 0x1p-64 + (double)rest_of(second) * 0x1p-32;
    return (rest + (double)first) * power_of_two((int)sum.exponent - 31 - shift);
}

__device__ __forceinline__ double sum_of(const Sum &sum) { return shifted_sum_of(sum, 0); }

__device__ __forceinline__ double root_of(const Sum &sum)
{
    const int half = scaling_of_squares(sum.exponent);
    return product(square_root(shifted_sum_of(sum, 2 * half)), power_of_two(half));
}

// Extremes: numbers as integers in the same order, NaN beyond all others -------------------------------------------------

struct Largest {
    long long word;
};

struct Smallest {
    long long word;
};

__device__ __forceinline__ long long word_of(float x)
{
    const int bits = (int)__float_as_uint(x);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

__device__ __forceinline__ long long word_of(double x)
{
    const long long bits = __double_as_longlong(x);
    return bits < 0 ? bits ^ 0x7fffffffffffffffll : bits;
}

template <typename Real> __device__ __forceinline__ void add(Largest &found, Real x)
{
    const long long word = x == x ? word_of(x) : 0x7fffffffffffffffll;
    found.word = word > found.word ? word : found.word;
}

template <typename Real> __device__ __forceinline__ void add(Smallest &found, Real x)
{
    const long long word = x == x ? word_of(x) : -0x7fffffffffffffffll - 1;
    found.word = word < found.word ? word : found.word;
}

__device__ __forceinline__ void join(Largest &found, Largest other)
{
    found.word = other.word > found.word ? other.word : found.word;
}

__device__ __forceinline__ void join(Smallest &found, Smallest other)
{
    found.word = other.word < found.word ? other.word : found.word;
}

__device__ __forceinline__ bool is_no_number(long long word)
{
    return word == 0x7fffffffffffffffll || word == -0x7fffffffffffffffll - 1;
}

// A zero is positive.
__device__ __forceinline__ double number_of_float32(long long word)
{
    const int bits = (int)word;
    const float x = __uint_as_float((unsigned int)(bits < 0 ? bits ^ 0x7fffffff : bits));
    return is_no_number(word) ? NOT_A_NUMBER : (double)x + 0.0;
}

__device__ __forceinline__ double number_of_float64(long long word)
{
    const double x = __longlong_as_double(word < 0 ? word ^ 0x7fffffffffffffffll : word);
    return is_no_number(word) ? NOT_A_NUMBER : x + 0.0;
}

// Counts -------------------------------------------------------------------------------------------------------------

struct Count {
    long long word;
};

template <typename Element> __device__ __forceinline__ void add(Count &count, Element x) { count.word += x ? 1 : 0; }
__device__ __forceinline__ void join(Count &count, Count other) { count.word += other.word; }

// What the threads of a block have found, combined ---------------------------------------------------------------------

// The first `across` threads get what every `across`-th thread from them on has found. The number of threads, and `across`, are
// powers of two; all threads of the block call this.
template <typename Part> __device__ __forceinline__ Part over_block(Part own, unsigned int across)
{
    __shared__ Part parts[THREADS];
    __syncthreads();
    parts[threadIdx.x] = own;
    for (unsigned int half = blockDim.x / 2; half >= across; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            join(parts[threadIdx.x], parts[threadIdx.x + half]);
    }
    return parts[threadIdx.x];
}

// Each of the first lanes of a warp gets what all of them have found; their number is a power of two, or there are more threads.
template <typename Part> __device__ __forceinline__ Part over_lanes(Part own, unsigned int lanes)
{
#pragma unroll
    for (unsigned int half = LANES / 2; half > 0; half /= 2) {
        if (half >= lanes)
            continue;
        const Part other = {__shfl_xor_sync(ALL_LANES, own.word, half)};
        join(own, other);
    }
    return own;
}

__device__ __forceinline__ Sum over_lanes(Sum own, unsigned int lanes)
{
    int exponent = (int)own.exponent, special = (int)own.special;
#pragma unroll
    for (unsigned int half = LANES / 2; half > 0; half /= 2) {
        if (half >= lanes)
            continue;
        const int other = __shfl_xor_sync(ALL_LANES, exponent, half);
        exponent = other > exponent ? other : exponent;
        special |= __shfl_xor_sync(ALL_LANES, special, half);
    }
    raise_bins(own, exponent);
    own.special = special;
#pragma unroll
    for (unsigned int half = LANES / 2; half > 0; half /= 2) {
        if (half >= lanes)
            continue;
        own.first += __shfl_xor_sync(ALL_LANES, own.first, half);
        own.second += __shfl_xor_sync(ALL_LANES, own.second, half);
        own.third += __shfl_xor_sync(ALL_LANES, own.third, half);
    }
    return own;
}

// The first thread gets what all have found. Lanes for which there is no warp get anything; nobody asks them. With a condition in
// its place, NVRTC 12.9 does not come to an end.
template <typename Part> __device__ __forceinline__ Part over_whole_block(Part own)
{
    __shared__ Part parts[LANES];
    own = over_lanes(own, blockDim.x);
    __syncthreads();
    if (threadIdx.x % LANES == 0)
        parts[threadIdx.x / LANES] = own;
    __syncthreads();
    return over_lanes(parts[threadIdx.x % LANES], (blockDim.x + LANES - 1) / LANES);
}

// Combines parts that lie in memory; the first thread gets the result. Several parts are loaded at once.
template <typename Part> __device__ __forceinline__ Part over_parts(const Part begin, const Part *parts, long long count)
{
    Part own = begin;
    for (long long k = threadIdx.x; k < count; k += 4 * blockDim.x) {
        Part found[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            found[n] = k + n * blockDim.x < count ? parts[k + n * blockDim.x] : begin;
#pragma unroll
        for (int n = 0; n < 4; n++)
            join(own, found[n]);
    }
    return over_whole_block(own);
}

// How many elements of a parameter are reduced to one part, given the smallest such number.
__device__ __forceinline__ long long reduced_chunk_of(long long elements, long long least)
{
    long long chunk = least;
    while (elements > MOST_PARTS * chunk)
        chunk *= 2;
    return chunk;
}

// Places of elements -----------------------------------------------------------------------------------------------------

// Divisions of 32 bits are several times faster.
__device__ __forceinline__ long long divided(long long a, long long b)
{
    return (a | b) >> 31 ? a / b : (long long)((unsigned int)a / (unsigned int)b);
}
