// Bit-exact port of the noise in src/sampling/noise.rs and of the logarithm and exponential
// in src/sampling/float.rs. Every operation is rounded to nearest individually, so the
// compiler must not fuse any; hence the intrinsics.
#pragma once

#include <stdint.h>

namespace ss {

// Both halves of a product. Written out, because the compiler emits an extra addition for a
// shift of the 64-bit product.
__device__ __forceinline__ void multiply_wide(uint32_t a, uint32_t b, uint32_t &high, uint32_t &low)
{
    asm("{ .reg .u64 product; mul.wide.u32 product, %2, %3; mov.b64 {%0, %1}, product; }"
        : "=r"(low), "=r"(high)
        : "r"(a), "r"(b));
}

// Keys of the ten rounds.
struct PhiloxKeys {
    uint32_t low[10], high[10];

    __device__ __forceinline__ explicit PhiloxKeys(uint64_t seed)
    {
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            low[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
            high[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
        }
    }

    // Keeps the compiler from recomputing them for every block.
    __device__ __forceinline__ void hold()
    {
#pragma unroll
        for (int round = 0; round < 10; ++round) asm volatile("" : "+r"(low[round]), "+r"(high[round]));
    }
};

// One Philox 4x32-10 block with counter (block, position, 0, 0).
__device__ __forceinline__ uint4 philox(uint32_t block, uint32_t position, const PhiloxKeys &keys)
{
    constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
    // First round; the second product is 0 because the counter word is.
    uint32_t high, low;
    multiply_wide(kMultiplier0, block, high, low);
    uint32_t c0 = position ^ keys.low[0], c1 = 0, c2 = high ^ keys.high[0], c3 = low;
#pragma unroll
    for (int round = 1; round < 10; ++round) {
        uint32_t high0, low0, high1, low1;
        multiply_wide(kMultiplier0, c0, high0, low0);
        multiply_wide(kMultiplier1, c2, high1, low1);
        c0 = high1 ^ c1 ^ keys.low[round];
        c1 = low1;
        c2 = high0 ^ c3 ^ keys.high[round];
        c3 = low0;
    }
    return make_uint4(c0, c1, c2, c3);
}

__device__ __forceinline__ uint4 philox(uint32_t block, uint32_t position, uint64_t seed)
{
    return philox(block, position, PhiloxKeys(seed));
}

constexpr float kLn2High = 0.69311523f;
constexpr float kLn2Low = 3.1946183e-5f;

struct Decomposed {
    float k, f;  // x = 2^k (1 + f)
};

__device__ __forceinline__ Decomposed decompose(float x)
{
    const uint32_t bits = __float_as_uint(x);
    const int k = static_cast<int>(bits - 0x3F3504F3u) >> 23;
    const float m = __uint_as_float(bits - (static_cast<uint32_t>(k) << 23));
    return {static_cast<float>(k), __fsub_rn(m, 1.0f)};
}

// k ln 2 + ln(1 + f)
__device__ __forceinline__ float assemble(float k, float f)
{
    constexpr float kCoefficients[8] = {0.33333316f, -0.25000796f, 0.20002283f, -0.16624969f,
                                        0.14181419f, -0.13125293f, 0.12879206f, -0.078654625f};
    float p = kCoefficients[7];
#pragma unroll
    for (int i = 6; i >= 0; --i) p = __fadd_rn(__fmul_rn(p, f), kCoefficients[i]);
    const float f2 = __fmul_rn(f, f);
    const float cubic = __fmul_rn(__fmul_rn(f2, f), p);
    const float tail = __fadd_rn(__fsub_rn(cubic, __fmul_rn(0.5f, f2)), __fmul_rn(k, kLn2Low));
    return __fadd_rn(__fmul_rn(k, kLn2High), __fadd_rn(f, tail));
}

__device__ __forceinline__ float exact_ln(float x)
{
    const Decomposed d = decompose(x);
    return assemble(d.k, d.f);
}

__device__ __forceinline__ float minus_ln_one_minus(float w)
{
    const Decomposed d = decompose(__fsub_rn(1.0f, w));
    return -assemble(d.k, d.k == 0.0f ? -w : d.f);
}

__device__ __forceinline__ float exact_exp(float x)
{
    constexpr float kRoundingShift = 12582912.0f;
    constexpr float kCoefficients[5] = {0.5f, 0.1666652f, 0.04166621f, 0.008368822f, 0.0013950338f};
    x = x > -87.0f ? x : -87.0f;
    const float shifted = __fadd_rn(__fmul_rn(x, 1.442695f), kRoundingShift);
    const float n = __fsub_rn(shifted, kRoundingShift);
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, kLn2High)), __fmul_rn(n, kLn2Low));
    float p = kCoefficients[4];
#pragma unroll
    for (int i = 3; i >= 0; --i) p = __fadd_rn(__fmul_rn(p, r), kCoefficients[i]);
    const float e = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), p)));
    return __uint_as_float(__float_as_uint(e) + (__float_as_uint(shifted) << 23));
}

__device__ __forceinline__ float uniform(uint32_t word)
{
    constexpr float kMax = 1.0f - 1.0f / 16777216.0f;
    const float w = __fmul_rn(__fadd_rn(static_cast<float>(static_cast<int>(word >> 1)), 0.5f), 1.0f / 2147483648.0f);
    return w < kMax ? w : kMax;
}

__device__ __forceinline__ float gumbel(uint32_t word) { return -exact_ln(minus_ln_one_minus(uniform(word))); }

// Upper bound of gumbel(word) in a few instructions: w >= 2^-(zeros + 1), where `zeros` counts
// the word's leading zeros, so G < -ln w <= (zeros + 1) ln 2. The factor slightly exceeds ln 2.
__device__ __forceinline__ float gumbel_bound(uint32_t word)
{
    return static_cast<float>(__clz(word) + 1) * 0.6932f;
}

// gumbel(word) exceeds gumbel_bound(word) minus this: for w < 1/2, E < 1.3863 w and
// w <= 2^-zeros; otherwise G > -2.82.
__device__ __forceinline__ float gumbel_bound_slack(uint32_t word) { return word >> 31 ? 3.52f : 1.03f; }

// Mass of a token in units of 2^-30 of the most probable token's, rounded to nearest.
__device__ __forceinline__ uint32_t weight_of(float score, float max_score)
{
    return static_cast<uint32_t>(__float2int_rn(__fmul_rn(exact_exp(__fsub_rn(score, max_score)), 1073741824.0f)));
}

}  // namespace ss
