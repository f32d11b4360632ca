// The arithmetic contract in CUDA C: one rounding per operation, subnormals are zero.
// Compile with contraction off (--fmad=false) and without --ftz. Nothing here needs a header, so that NVRTC needs none.

// Subnormals -----------------------------------------------------------------------------------------------------

// A GPU's instructions for float32 flush by themselves if they are told to. A sum that is subnormal is exact, so nobody asks when it
// is tiny. Products decide that after rounding, as they must, on the generation of GPUs on which it was tried.
#ifdef __CUDA_ARCH__
#define FLUSHED(instruction, result, a, b) asm(instruction ".rn.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b))

__device__ __forceinline__ float flush(float x)
{
    float result;
    FLUSHED("mul", result, x, 1.0f);
    return result;
}

__device__ __forceinline__ float plus(float a, float b)
{
    float result;
    FLUSHED("add", result, a, b);
    return result;
}

__device__ __forceinline__ float minus(float a, float b)
{
    float result;
    FLUSHED("sub", result, a, b);
    return result;
}
#else
__device__ __forceinline__ float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
__device__ __forceinline__ float plus(float a, float b) { return flush(a + b); }
__device__ __forceinline__ float minus(float a, float b) { return flush(a - b); }
#endif

__device__ __forceinline__ double flush(double x) { return fabs(x) < 0x1p-1022 ? copysign(0.0, x) : x; }
__device__ __forceinline__ double plus(double a, double b) { return flush(a + b); }
__device__ __forceinline__ double minus(double a, double b) { return flush(a - b); }

// Products and quotients: tininess is decided after rounding. A result below the smallest normal number is tiny. One that is
// that number may be less and have been rounded up: the scaled result is rounded with full precision however small it is, so it
// tells. Hardly an element needs to know, zeros do not; the question is a function of its own, so that the compiler does not
// compute parts of it for all.

__device__ __noinline__ bool product_is_tiny(float a, float b) { return fabsf((a * 0x1p64f) * b) < 0x1p-62f; }
__device__ __noinline__ bool product_is_tiny(double a, double b) { return fabs((a * 0x1p512) * b) < 0x1p-510; }
__device__ __noinline__ bool quotient_is_tiny(float a, float b) { return fabsf((a * 0x1p64f) / b) < 0x1p-62f; }
__device__ __noinline__ bool quotient_is_tiny(double a, double b) { return fabs((a * 0x1p512) / b) < 0x1p-510; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
__device__ __forceinline__ float product(float a, float b)
{
    float result;
    FLUSHED("mul", result, a, b);
    return result;
}
#else
__device__ __forceinline__ float product(float a, float b)
{
    const float x = a * b;
    const bool is_tiny = (fabsf(x) < 0x1p-126f) | (fabsf(x) == 0x1p-126f && product_is_tiny(a, b));
    return is_tiny ? copysignf(0.0f, x) : x;
}
#endif

__device__ __forceinline__ double product(double a, double b)
{
    const double x = a * b;
    const bool is_tiny = (fabs(x) < 0x1p-1022) | (fabs(x) == 0x1p-1022 && product_is_tiny(a, b));
    return is_tiny ? copysign(0.0, x) : x;
}

__device__ __forceinline__ float quotient(float a, float b)
{
    const float x = a / b;
    const bool is_tiny = (fabsf(x) < 0x1p-126f) | (fabsf(x) == 0x1p-126f && quotient_is_tiny(a, b));
    return is_tiny ? copysignf(0.0f, x) : x;
}

__device__ __forceinline__ double quotient(double a, double b)
{
    const double x = a / b;
    const bool is_tiny = (fabs(x) < 0x1p-1022) | (fabs(x) == 0x1p-1022 && quotient_is_tiny(a, b));
    return is_tiny ? copysign(0.0, x) : x;
}

__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }

// Storage of 16 bits, held in words ------------------------------------------------------------------------------

typedef unsigned short float16_word;
typedef unsigned short bfloat16_word;

__device__ __forceinline__ float bfloat16_to_float32(bfloat16_word word)
{
    return __uint_as_float((unsigned int)word << 16);
}

__device__ __forceinline__ bfloat16_word float32_to_bfloat16(float x)
{
    const unsigned int bits = __float_as_uint(x);
    const unsigned int rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bfloat16_word)(x == x ? rounded : 0x7fc0u);
}

__device__ __forceinline__ float float16_to_float32(float16_word word)
{
    const unsigned int sign = ((unsigned int)word & 0x8000u) << 16;
    const unsigned int magnitude = (unsigned int)word & 0x7fffu;
    const unsigned int shifted = magnitude << 13;
    // A float16 subnormal is an integer number of 2**-24.
    const unsigned int subnormal = __float_as_uint((float)(int)magnitude * 0x1p-24f);
    const unsigned int finite = magnitude < 0x0400u ? subnormal : shifted + (112u << 23);
    return __uint_as_float((magnitude >= 0x7c00u ? shifted + (224u << 23) : finite) | sign);
}

__device__ __forceinline__ float16_word float32_to_float16(float x)
{
    const unsigned int bits = __float_as_uint(x);
    const unsigned int sign = (bits >> 16) & 0x8000u;
    const unsigned int magnitude = bits & 0x7fffffffu;
    const unsigned int normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Adding 0.5 rounds to a multiple of 2**-24, the unit of float16 subnormals, into the low bits.
    const unsigned int subnormal = __float_as_uint(fabsf(x) + 0.5f) - 0x3f000000u;
    unsigned int result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;
    result = x == x ? result : 0x7e00u;
    return (float16_word)(result | sign);
}

// Gradients of another dtype than their parameter's ------------------------------------------------------------------

// As a scalar is rounded: what is below the smallest normal number when rounded with full precision is zero.
__device__ __forceinline__ float float64_to_float32(double x)
{
    return (float)(fabs(x) < 0x1.ffffffp-127 ? copysign(0.0, x) : x);
}

__device__ __forceinline__ double float32_to_float64(float x) { return (double)x; }
__device__ __forceinline__ double float16_to_float64(float16_word word) { return (double)float16_to_float32(word); }
__device__ __forceinline__ double bfloat16_to_float64(bfloat16_word word) { return (double)bfloat16_to_float32(word); }
