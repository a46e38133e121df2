// Building blocks shared by all kernels: 16-byte vectors of bf16, warp and block
// reductions with a fixed order, launch checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels.h"

namespace ss {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

using bf16 = __nv_bfloat16;

// Eight bf16 values, the widest access of one thread.
struct alignas(16) Bf16x8 {
    __nv_bfloat162 pair[4];
};

__device__ __forceinline__ void unpack(const Bf16x8 &packed, float (&out)[8])
{
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 two = __bfloat1622float2(packed.pair[i]);
        out[2 * i] = two.x;
        out[2 * i + 1] = two.y;
    }
}

__device__ __forceinline__ Bf16x8 pack(const float (&in)[8])
{
    Bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.pair[i] = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
    return packed;
}

// Streaming loads: the data is read once, so they bypass L1.
__device__ __forceinline__ uint4 load_streaming(const uint4 *from)
{
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}

__device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value)
{
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(kFullMask, value, step));
    return value;
}

// 2^x to 2 ulp; 0 where the result would be denormal.
__device__ __forceinline__ float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// SiLU to 2 ulp of fp32; callers round the result to bf16.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

// Sum over a CTA of `warps` warps, bitwise equal in every thread. `scratch` holds `warps`
// floats of shared memory and must not be reused before the next barrier.
__device__ __forceinline__ float block_sum(float value, float *scratch, int warps)
{
    value = warp_sum(value);
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    float total = 0.f;
    for (int warp = 0; warp < warps; ++warp) total += scratch[warp];
    return total;
}

// Programmatic dependent launch: a kernel launched with ss::launch may start while its
// predecessor drains. It must not read the predecessor's output before wait_for_previous.
__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline int ceil_div(int value, int by) { return (value + by - 1) / by; }

// Number of SMs of the current device; cached.
inline int multiprocessors()
{
    static const int count = [] {
        int device = 0, value = 0;
        if (cudaGetDevice(&device) != cudaSuccess) return 1;
        if (cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
        return value;
    }();
    return count;
}

// Compute capability of the current device times ten (90 for Hopper); cached.
inline int compute_capability()
{
    static const int value = [] {
        int device = 0, major = 0, minor = 0;
        if (cudaGetDevice(&device) != cudaSuccess) return 0;
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
        return 10 * major + minor;
    }();
    return value;
}

// Shared memory limit of a CTA on the current device, in bytes; cached.
inline int shared_bytes_max()
{
    static const int value = [] {
        int device = 0, bytes = 0;
        if (cudaGetDevice(&device) != cudaSuccess) return 0;
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        return bytes;
    }();
    return value;
}

// Whether a kernel can have this much dynamic shared memory in addition to its static use.
template <typename... Parameters> bool fits_shared(void (*kernel)(Parameters...), int dynamic_bytes)
{
    cudaFuncAttributes attributes = {};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return false;
    return static_cast<int>(attributes.sharedSizeBytes) + dynamic_bytes <= shared_bytes_max();
}

template <typename... Parameters> cudaError_t allow_shared(void (*kernel)(Parameters...), int dynamic_bytes)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes);
}

// Launches with programmatic dependent launch where the device supports it. The kernel must call
// wait_for_previous before it touches memory that an earlier kernel wrote.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CUstream_st *stream,
           Arguments &&...arguments)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = compute_capability() >= 90 ? 1 : 0;
    return static_cast<int>(
        cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace ss

// For launchers: returns cudaErrorInvalidValue if an argument violates the contract.
#define SS_REQUIRE(condition)                                             \
    do {                                                                  \
        if (!(condition)) return static_cast<int>(cudaErrorInvalidValue); \
    } while (0)
