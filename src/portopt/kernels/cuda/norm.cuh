// The norm of all gradients, as portopt.reductions computes it: every sum is exact, so no order matters.

struct GradientNorm {
    unsigned long long largest;  // the bits of max |g|, as a double: an integer maximum has NaN above infinity
    double sums[3];              // of the three passes, over (g / u)**2 with u the power of two in `largest`
};

#define INFINITY_WORD 0x7ff0000000000000ull

__device__ __forceinline__ double power_of_two(int exponent)
{
    return __longlong_as_double((long long)(exponent + 1023) << 52);
}

__device__ __forceinline__ int exponent_of(unsigned long long word) { return (int)(word >> 52) - 1023; }

// u is split in two powers of two; the reciprocal of the whole could be subnormal. An arithmetic shift rounds down.
__device__ __forceinline__ int first_exponent(int exponent) { return exponent >> 1; }
__device__ __forceinline__ int second_exponent(int exponent) { return exponent - (exponent >> 1); }

__device__ __forceinline__ double norm_of(const GradientNorm *norm)
{
    const unsigned long long largest = norm->largest;
    if (largest == 0 || largest >= INFINITY_WORD)
        return __longlong_as_double((long long)largest);
    const double root = square_root(flush(norm->sums[0] + flush(norm->sums[1] + norm->sums[2])));
    const int exponent = exponent_of(largest);
    return product(product(root, power_of_two(first_exponent(exponent))), power_of_two(second_exponent(exponent)));
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
