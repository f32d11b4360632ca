// CUDA C as C++ on the host: each thread of a block is a thread, which says with set_position which one it is.

#include <math.h>
#include <pthread.h>
#include <string.h>

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct Position {
    unsigned int x;
};

static thread_local Position blockIdx, gridDim, threadIdx, blockDim;
static pthread_barrier_t block_barrier;
static pthread_mutex_t atomic_lock = PTHREAD_MUTEX_INITIALIZER;

extern "C" void set_position(unsigned int block, unsigned int blocks, unsigned int thread, unsigned int threads)
{
    blockIdx.x = block;
    gridDim.x = blocks;
    threadIdx.x = thread;
    blockDim.x = threads;
}

extern "C" void begin_block(unsigned int threads) { pthread_barrier_init(&block_barrier, 0, threads); }
extern "C" void end_block() { pthread_barrier_destroy(&block_barrier); }

static inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }

// A block here has fewer threads than a warp.
template <typename T> static inline T __shfl_xor_sync(unsigned int, T own, unsigned int further)
{
    static T of_lanes[32];
    of_lanes[threadIdx.x] = own;
    __syncthreads();
    const T found = of_lanes[threadIdx.x ^ further];
    __syncthreads();
    return found;
}

template <typename To, typename From> static inline To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "a word has the size of its float");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned int __float_as_uint(float x) { return bits_as<unsigned int>(x); }
static inline float __uint_as_float(unsigned int x) { return bits_as<float>(x); }
static inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
static inline double __longlong_as_double(long long x) { return bits_as<double>(x); }

static inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned long long)a * b >> 32; }

static inline void *__cvta_global_to_generic(unsigned long long address) { return (void *)address; }

template <typename T> static inline T __ldg(const T *place) { return *place; }

struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

static inline void atomicMax(unsigned long long *target, unsigned long long value)
{
    pthread_mutex_lock(&atomic_lock);
    if (value > *target)
        *target = value;
    pthread_mutex_unlock(&atomic_lock);
}

static inline void atomicAdd(unsigned long long *target, unsigned long long value)
{
    pthread_mutex_lock(&atomic_lock);
    *target += value;
    pthread_mutex_unlock(&atomic_lock);
}
