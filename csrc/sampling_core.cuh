// Shared parts of the sampling kernels: integer ranking keys of tokens, the best two of a set,
// the split of rows into slices, and scratch memory.
#pragma once

#include <float.h>
#include <limits.h>

#include "common.cuh"
#include "philox.cuh"

namespace ss {

using u64 = unsigned long long;

constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / kWarp;
// Tokens per CTA and sweep: four per thread, one Philox block.
constexpr int kSweep = 4 * kSampleThreads;
// Target number of CTAs per SM.
constexpr int kWaves = 4;

// Maps a float's bits to an integer with the same order.
__device__ __forceinline__ uint32_t ascending_bits(float number)
{
    const uint32_t bits = __float_as_uint(number);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ascending_bits(uint32_t bits)
{
    return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// Ranking key of a token, smaller is better: larger scores first, then lower ids. High half:
// the score's bits, mapped to descending order; low half: the id.
__device__ __forceinline__ u64 rank_key(float score, int token)
{
    const uint32_t ascending = ascending_bits(__fadd_rn(score, 0.0f));  // -0 and 0 tie
    return static_cast<u64>(~ascending) << 32 | static_cast<uint32_t>(token);
}

constexpr u64 kNoKey = ~0ull;

__device__ __forceinline__ float key_score(u64 key)
{
    return key == kNoKey ? -INFINITY : from_ascending_bits(~static_cast<uint32_t>(key >> 32));
}

__device__ __forceinline__ int key_token(u64 key) { return static_cast<int>(static_cast<uint32_t>(key)); }

__device__ __forceinline__ u64 warp_min_u64(u64 value)
{
    const uint32_t high = static_cast<uint32_t>(value >> 32), low = static_cast<uint32_t>(value);
    const uint32_t least = __reduce_min_sync(kFullMask, high);
    return static_cast<u64>(least) << 32 | __reduce_min_sync(kFullMask, high == least ? low : ~0u);
}

// The best two keys of a set.
struct Best {
    u64 first, second;

    __device__ static __forceinline__ Best none() { return {kNoKey, kNoKey}; }

    __device__ __forceinline__ void add(u64 key)
    {
        second = min(second, max(first, key));
        first = min(first, key);
    }

    // The sets must be disjoint.
    __device__ __forceinline__ void merge(const Best &other)
    {
        second = min(max(first, other.first), min(second, other.second));
        first = min(first, other.first);
    }

    // The same result in every lane.
    __device__ __forceinline__ void merge_warp()
    {
        const u64 best = warp_min_u64(first);
        second = warp_min_u64(first == best ? second : first);
        first = best;
    }
};

__device__ __forceinline__ u64 warp_sum_u64(u64 value)
{
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
    return value;
}

// Result of one CTA for its slice of a row.
struct alignas(16) SlicePart {
    Best tops;  // of the scores
    Best race;  // of the scores with noise
    float sum;  // of 2^(score * log2 e - offset)
    float offset;
    int bad;  // whether a score was not finite
    int unused;
};

// Bypasses L1, which may hold stale data of other CTAs.
__device__ __forceinline__ SlicePart load_part(const SlicePart *from)
{
    SlicePart part;
    static_assert(sizeof(SlicePart) == 3 * sizeof(uint4), "three 16-byte loads");
#pragma unroll
    for (int i = 0; i < 3; ++i)
        reinterpret_cast<uint4 *>(&part)[i] = __ldcg(reinterpret_cast<const uint4 *>(from) + i);
    return part;
}

// Result of one row.
struct Result {
    int token, runner_up;
    float probability, margin;
};

__device__ __forceinline__ Result result_of(const Best &podium)
{
    const int token = key_token(podium.first);
    return {token, podium.second == kNoKey ? token : key_token(podium.second), 0.f, 0.f};
}

// State that the first pass leaves for the filters.
struct RowScan {
    u64 top, second;
    int bad;
};

struct SampledToken {
    int token;
    int finite;
};

// Scratch memory. Counters come first, at offsets that do not depend on the call, because they
// are zero between calls.
struct Scratch {
    uint32_t *scanned;     // [SAMPLE_ROWS_MAX] CTAs that have finished a row's first pass
    uint32_t *filtered;    // [SAMPLE_ROWS_MAX] the same for the second pass
    uint32_t *sampled;     // [SAMPLE_ROWS_MAX] sampled rows of a sequence
    uint32_t *gathered;    // [SAMPLE_ROWS_MAX] candidates of a row
    u64 *mass;             // [SAMPLE_ROWS_MAX] of a row
    RowScan *scans;        // [rows]
    SampledToken *samples; // [rows]
    SlicePart *parts;      // [rows][splits]
    u64 *candidates;       // [rows][SAMPLE_CANDIDATES_MAX]

    __host__ __device__ Scratch(void *base, int rows, int splits)
    {
        char *at = static_cast<char *>(base);
        auto take = [&at](size_t bytes) {
            char *taken = at;
            at += (bytes + 15) / 16 * 16;
            return taken;
        };
        scanned = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * SAMPLE_ROWS_MAX));
        filtered = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * SAMPLE_ROWS_MAX));
        sampled = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * SAMPLE_ROWS_MAX));
        gathered = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * SAMPLE_ROWS_MAX));
        mass = reinterpret_cast<u64 *>(take(sizeof(u64) * SAMPLE_ROWS_MAX));
        scans = reinterpret_cast<RowScan *>(take(sizeof(RowScan) * rows));
        samples = reinterpret_cast<SampledToken *>(take(sizeof(SampledToken) * rows));
        parts = reinterpret_cast<SlicePart *>(take(sizeof(SlicePart) * rows * splits));
        candidates = reinterpret_cast<u64 *>(take(sizeof(u64) * rows * SAMPLE_CANDIDATES_MAX));
        bytes = static_cast<size_t>(at - static_cast<char *>(base));
    }

    size_t bytes;
};

struct Slice {
    int begin, end;  // multiples of kSweep; the end may exceed the vocabulary
};

__device__ __forceinline__ Slice slice_of(int vocab, int split, int splits)
{
    const int sweeps = (vocab + kSweep - 1) / kSweep;
    const int each = (sweeps + splits - 1) / splits;
    const int begin = min(split * each, sweeps), end = min(begin + each, sweeps);
    return {begin * kSweep, end * kSweep};
}

// Number of CTAs per row: minimises the sequential sweeps with kWaves CTAs per SM at a time,
// counting a few sweeps for a CTA's start and merge.
inline int splits_for(int rows, int vocab)
{
    constexpr int kOverheadSweeps = 4;
    const int sweeps = ceil_div(vocab, kSweep), slots = kWaves * multiprocessors();
    int best = 1, best_cost = INT_MAX;
    for (int splits = 1; splits <= sweeps && splits <= SAMPLE_SPLITS_MAX; ++splits) {
        const int cost = ceil_div(rows * splits, slots) * (ceil_div(sweeps, splits) + kOverheadSweeps);
        if (cost < best_cost) {
            best = splits;
            best_cost = cost;
        }
    }
    return best;
}

__device__ __forceinline__ bool is_filtered(const SamplingRow &row, int vocab)
{
    const bool top_k = row.top_k > 0 && row.top_k < vocab;
    return !row.greedy && (top_k || row.top_p < 1.f || row.min_score > -INFINITY);
}

__device__ __forceinline__ float adjusted(float logit, const LogitAdjustment &by)
{
    logit = logit < 0.f ? __fmul_rn(logit, by.repetition) : __fdiv_rn(logit, by.repetition);
    return __fadd_rn(__fsub_rn(__fsub_rn(logit, by.presence), by.frequency), by.bias);
}

// Whether a row may sample a token.
__device__ __forceinline__ bool is_allowed(const SampleParams &p, const SamplingRow &row, int token)
{
    return row.mask < 0 || (p.masks[row.mask + token / 32] >> token % 32 & 1) != 0;
}

// Gives the tokens of [begin, end) that a row forbids a logit of -infinity. No key of such a token
// is ever ranked. Called by the whole CTA.
__device__ __forceinline__ void forbid(const SampleParams &p, const SamplingRow &row, float *logits, int begin, int end)
{
    if (row.mask < 0) return;
    for (int token = begin + static_cast<int>(threadIdx.x); token < min(end, p.vocab); token += blockDim.x)
        if (!is_allowed(p, row, token)) logits[token] = -INFINITY;
    __syncthreads();
}

// Applies a row's adjustments and mask to tokens of [begin, end). Called by the whole CTA.
__device__ __forceinline__ void adjust(const SampleParams &p, const SamplingRow &row, float *logits, int begin, int end)
{
    if (row.adjustments > 0) {
        for (int i = threadIdx.x; i < row.adjustments; i += blockDim.x) {
            const LogitAdjustment by = p.adjustments[row.first_adjustment + i];
            if (by.token >= begin && by.token < min(end, p.vocab)) logits[by.token] = adjusted(logits[by.token], by);
        }
        __syncthreads();
    }
    forbid(p, row, logits, begin, end);
}

// Counts this CTA's arrival; true in all lanes of the first warp of the last of `expected` CTAs,
// to which the writes of the others are then visible. Called by the first warp, after thread 0
// has written.
__device__ __forceinline__ bool arrive_last(uint32_t *counter, uint32_t expected)
{
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1u) == expected - 1;
        if (last) *counter = 0;
        __threadfence();
    }
    last = __shfl_sync(kFullMask, last, 0);
    __syncwarp();
    return last;
}

inline bool valid_sample(const SampleParams &p)
{
    return p.row_count >= 0 && p.row_count <= SAMPLE_ROWS_MAX && p.vocab > 0 && p.stride >= p.vocab &&
           p.stride % 4 == 0;
}

}  // namespace ss
