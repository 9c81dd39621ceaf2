// A block of threads for two compilers. nvcc makes GPU kernels of what includes this; any other compiler makes functions
// that do the same, bit for bit, one thread after the other, so that the kernels are tested where there is no GPU.
//
// A kernel is written in phases: what EACH_THREAD is in front of runs for every thread of the block, SYNC stands between
// phases, and only SHARED and PER_THREAD variables live from one phase to the next. Code outside of a phase is the same
// for all threads. Nothing is included, so that NVRTC, which has no headers of its own, compiles it too.
#pragma once

#define THREADS 256

#ifdef __CUDACC__

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define SHARED __shared__
#define EACH_THREAD
#define SYNC __syncthreads()
#define PER_THREAD(type, name, count) type name[count]
#define OWN(name) name
// A kernel NAME that takes one struct and calls BODY.
#define KERNEL(NAME, ARGUMENTS, BODY) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const ARGUMENTS arguments) { BODY(arguments); }

DEVICE float exponential(float value) { return expf(value); }
DEVICE float as_float(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned as_bits(float value) { return __float_as_uint(value); }

#else

struct Index { unsigned x, y; };
static thread_local Index threadIdx, blockIdx, gridDim;

#define DEVICE static inline
#define DEVICE_MEMBER
#define SHARED static thread_local
#define EACH_THREAD for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x)
#define SYNC static_cast<void>(0)
#define PER_THREAD(type, name, count) static thread_local type name[THREADS][count]
#define OWN(name) name[threadIdx.x]
// A function NAME that runs a grid of blocks one after the other.
#define KERNEL(NAME, ARGUMENTS, BODY)                                                \
    extern "C" void NAME(unsigned columns, unsigned rows, const ARGUMENTS* arguments) { \
        gridDim = {columns, rows};                                                   \
        for (blockIdx.y = 0; blockIdx.y < rows; ++blockIdx.y)                        \
            for (blockIdx.x = 0; blockIdx.x < columns; ++blockIdx.x) BODY(*arguments); \
    }

DEVICE float exponential(float value) { return __builtin_expf(value); }
DEVICE float as_float(unsigned bits) { float value; __builtin_memcpy(&value, &bits, 4); return value; }
DEVICE unsigned as_bits(float value) { unsigned bits; __builtin_memcpy(&bits, &value, 4); return bits; }
DEVICE unsigned atomicAdd(unsigned* counter, unsigned more) { unsigned before = *counter; *counter += more; return before; }

#endif

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }
