// Scalars of a step, in float64.

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

// A number in the device's memory, of a dtype that the launch says.
__device__ __forceinline__ double number_at(const void *at, long long dtype)
{
    switch (dtype) {
    case 0:
        return *(const double *)at;
    case 1:
        return *(const float *)at;
    case 2:
        return float16_to_float32(*(const float16_word *)at);
    case 3:
        return bfloat16_to_float32(*(const bfloat16_word *)at);
    case 4:
        return (double)*(const long long *)at;
    default:
        return *(const int *)at;
    }
}
