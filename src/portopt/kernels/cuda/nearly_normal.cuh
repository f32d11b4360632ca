// A normally distributed number less exactly than it is defined, by contracted and approximate operations: off by less than
// MOST_OFF of its magnitude. So hardly a float32 number needs more, whose last bit is 2^17 times as large.
// Not for words of which the first has ones only: their number may be zero.

#define MOST_OFF 0x1p-41

#ifdef __CUDA_ARCH__
// Off by less than 2^-22 of their magnitudes.
__device__ __forceinline__ float near_reciprocal(float x)
{
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}

__device__ __forceinline__ float near_reciprocal_root(float x)
{
    float found;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
#else
__device__ __forceinline__ float near_reciprocal(float x) { return 1.0f / x; }
__device__ __forceinline__ float near_reciprocal_root(float x) { return 1.0f / sqrtf(x); }
#endif

// -2 log x for an integer x, in units of 2^-53, below 1. With x = m 2^k and m from sqrt(1/2) to sqrt(2), log m is 2 artanh s,
// s = (m - 1) / (m + 1); the polynomial is off by 2^-45 of it.
__device__ __forceinline__ double near_minus_twice_log(long long x)
{
    const long long word = __double_as_longlong((double)x);
    const unsigned int exponent = (unsigned int)((word >> 32) - 0x3fe6a09e) >> 20;
    const double m = __longlong_as_double(word - ((unsigned long long)(exponent << 20) << 32));
    // 2^52 and the exponent of x, whose units are 2^-53, from which 2^52 + 53 is taken.
    const double k = __longlong_as_double(0x4330000000000000ull | exponent) - 0x1.0000000000035p+52;
    const double below = m - 1.0, above = m + 1.0;
    const double reciprocal = near_reciprocal((float)above), near = below * reciprocal;
    const double s = fma(fma(-near, above, below), reciprocal, near), square = s * s;
    double series = -0x1.919814f4d7982p-2;
    series = fma(series, square, -0x1.c6208cbe2cd57p-2);
    series = fma(series, square, -0x1.24943960a52a1p-1);
    series = fma(series, square, -0x1.99999628a5325p-1);
    series = fma(series, square, -0x1.5555555672df4p+0);
    series = fma(series, square, -0x1.fffffffffff10p+1);
    return fma(k, -0x1.62e42fefa39efp+0, s * series);
}

// The root of x, by one step of Newton's method.
__device__ __forceinline__ double near_root(double x)
{
    const double reciprocal = near_reciprocal_root((float)x), near = x * reciprocal;
    return fma(fma(-near, near, x), 0.5 * reciprocal, near);
}

__device__ __forceinline__ double near_normal_of(const Words &words)
{
    const double radius = near_root(near_minus_twice_log(bits_of(words.word[0], words.word[1]) + 1));
    // Twice the angle, in turns: 1 and the lower 52 bits of the 53, from which 1 is taken where the upper one is not set.
    const bool is_lower = words.word[2] < 0x80000000u;
    const long long bits = bits_of(words.word[2] & 0x7fffffffu, words.word[3]);
    const double turns = __longlong_as_double(0x3ff0000000000000ll | bits) - (is_lower ? 1.0 : 0.0);
    // The angle as it is defined, rounded once, from the middle of its half turn: cos x = -sin(x - pi/2) = sin(x - 3 pi/2). Of
    // a sine that is small all bits of the middle matter. The polynomial is off by 2^-43.8 of it.
    const double angle = turns * 0x1.921fb54442d18p+1;
    const double r = (angle - (is_lower ? 0x1.921fb54442d18p+0 : 0x1.2d97c7f3321d2p+2))
        - (is_lower ? 0x1.1a62633145c07p-54 : 0x1.a79394c9e8a0ap-53);
    const double square = r * r;
    double series = 0x1.52ace0b6f1343p-33;
    series = fma(series, square, -0x1.ae00fce8dfd39p-26);
    series = fma(series, square, 0x1.71dce5a98e538p-19);
    series = fma(series, square, -0x1.a019fce965acfp-13);
    series = fma(series, square, 0x1.111111090ed1dp-7);
    series = fma(series, square, -0x1.5555555540b89p-3);
    series = fma(series, square, 0x1.ffffffffffdcep-1);
    return (is_lower ? -radius : radius) * r * series;
}
