// The norm of all gradients, as portopt.program.bins defines it: sums of integers, so no order matters.

struct GradientNorm {
    unsigned long long largest;  // the bits of max |g|, as a double: an integer maximum has NaN above infinity
    unsigned long long sums[3];  // of the integers in each bin, signed ones, that stand for the squares
};

#define INFINITY_WORD 0x7ff0000000000000ull

__device__ __forceinline__ double power_of_two(int exponent)
{
    return __longlong_as_double((long long)(exponent + 1023) << 52);
}

// The exponent of what numbers are divided by before they are squared.
__device__ __forceinline__ int scaling_of(unsigned long long largest)
{
    const double magnitude = __longlong_as_double((long long)largest);
    return magnitude >= power_of_two(UNSCALED) ? SCALING : magnitude < power_of_two(-UNSCALED) ? -SCALING : 0;
}

// The smallest exponent of bins that is not below an integer.
__device__ __forceinline__ int exponent_from(int least)
{
    return ((least - BIN_OFFSET + BIN_WIDTH - 1) & -BIN_WIDTH) + BIN_OFFSET;
}

// The exponent of the bins of squares, once these are scaled.
__device__ __forceinline__ int bins_of(unsigned long long largest)
{
    const double scaled = __longlong_as_double((long long)largest) * power_of_two(-scaling_of(largest));
    return exponent_from((int)(__double_as_longlong(scaled * scaled) >> 52) - 1022);
}

// An integer in units of a bin as a multiple of the next one, and a rest between minus and plus half of that.
__device__ __forceinline__ long long carry_of(long long integer) { return (integer + 0x80000000ll) >> 32; }
__device__ __forceinline__ long long rest_of(long long integer) { return integer - (carry_of(integer) << 32); }

__device__ __forceinline__ double norm_of(const GradientNorm *norm)
{
    const unsigned long long largest = norm->largest;
    if (largest == 0 || largest >= INFINITY_WORD)
        return __longlong_as_double((long long)largest);
    const long long third = (long long)norm->sums[2];
    const long long second = (long long)norm->sums[1] + carry_of(third);
    const long long first = (long long)norm->sums[0] + carry_of(second);
    const double rest = (double)rest_of(third) * 0x1p-64 + (double)rest_of(second) * 0x1p-32;
    const double sum = (rest + (double)first) * power_of_two(bins_of(largest) - 31);
    return product(square_root(sum), power_of_two(scaling_of(largest)));
}

// Scalars that follow from it ------------------------------------------------------------------------------------

__device__ __forceinline__ float round_to_float32(double x) { return float64_to_float32(x); }

__device__ __forceinline__ double round_to_float64(double x) { return x; }

__device__ __forceinline__ double integer_power(double base, long long exponent)
{
    double result = 1.0;
    for (long long n = exponent < 0 ? -exponent : exponent; n > 0; n >>= 1) {
        if (n & 1)
            result = product(result, base);
        if (n > 1)
            base = product(base, base);
    }
    return exponent < 0 ? quotient(1.0, result) : result;
}

__device__ __forceinline__ long long floor_divide(long long a, long long b)
{
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
