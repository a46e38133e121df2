// Selects the tokens that a row's filters keep and takes their Gumbel argmax: by one CTA, on a
// list in shared memory or on the whole row. Mass is summed in integers, so results do not
// depend on the order of summation.
#pragma once

#include "sampling_core.cuh"

namespace ss {

// Keys that the last CTA of a row selects from: the gathered candidates, or the whole row.
struct KeySource {
    const u64 *list;  // shared memory, or null
    int count;        // of the list, or the vocabulary
    const float *logits;
    float scale;

    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const
    {
        for (int i = threadIdx.x; i < count; i += kSampleThreads) {
            if (list) {
                visit(list[i]);
                continue;
            }
            const float score = __fmul_rn(__ldcg(logits + i), scale);
            if (score > -INFINITY) visit(rank_key(score, i));  // else forbidden
        }
    }
};

struct SelectSpace {
    u64 mass[256];
    uint32_t count[256];
    u64 before;  // mass of the buckets before the chosen one
    u64 cut;     // of a sorted list
    int bucket;
    uint32_t inside;  // keys in the chosen bucket
    u64 total[kSampleWarps];
};

// Sum over the CTA.
inline __device__ u64 block_sum_u64(u64 value, SelectSpace &space)
{
    value = warp_sum_u64(value);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) space.total[threadIdx.x / kWarp] = value;
    __syncthreads();
    u64 total = 0;
    for (int warp = 0; warp < kSampleWarps; ++warp) total += space.total[warp];
    return total;
}

// Finds the first bucket at which the running mass reaches `wanted`. Called by the first warp.
inline __device__ void find_bucket(SelectSpace &space, u64 wanted)
{
    constexpr int kEach = 256 / kWarp;
    const int lane = threadIdx.x;
    u64 own = 0;
    for (int i = 0; i < kEach; ++i) own += space.mass[lane * kEach + i];
    u64 until = own;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const u64 lower = __shfl_up_sync(kFullMask, until, step);
        if (lane >= step) until += lower;
    }
    const unsigned reached = __ballot_sync(kFullMask, until >= wanted);
    const int chosen = reached ? __ffs(reached) - 1 : kWarp - 1;
    if (lane != chosen) return;
    u64 before = until - own;
    int bucket = lane * kEach;
    while (bucket < lane * kEach + kEach - 1 && before + space.mass[bucket] < wanted) before += space.mass[bucket++];
    space.before = before;
    space.bucket = bucket;
    space.inside = space.count[bucket];
}

// Returns the smallest key such that keys up to it, none above `limit`, have at least `wanted`
// mass; with `counting`, each key has mass 1. Called by the whole CTA.
inline __device__ u64 select_cut(const KeySource &source, u64 limit, u64 wanted, bool counting, float max_score,
                          SelectSpace &space)
{
    u64 prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        space.mass[threadIdx.x] = 0;
        space.count[threadIdx.x] = 0;
        __syncthreads();
        source.each([&](u64 key) {
            const bool inside = shift == 56 || key >> (shift + 8) == prefix;
            if (!inside || key > limit) return;
            const int bucket = static_cast<int>(key >> shift) & 255;
            atomicAdd(&space.mass[bucket], counting ? 1ull : static_cast<u64>(weight_of(key_score(key), max_score)));
            atomicAdd(&space.count[bucket], 1u);
        });
        __syncthreads();
        if (threadIdx.x < kWarp) find_bucket(space, wanted);
        __syncthreads();
        prefix = prefix << 8 | static_cast<u64>(space.bucket);
        wanted -= space.before;
        if (space.inside == 1) return min(limit, prefix << shift | ((1ull << shift) - 1));
    }
    return min(limit, prefix);
}

__device__ __forceinline__ u64 top_p_target(float top_p, u64 mass)
{
    const double target = ceil(__dmul_rn(static_cast<double>(top_p), __ull2double_rn(mass)));
    return target < 1.0 ? 1 : static_cast<u64>(target);
}

// The set of keys that the filters keep.
struct Kept {
    u64 cut;
    float min_score;
    float max_score;

    __device__ __forceinline__ bool operator()(u64 key) const
    {
        return key <= cut && __fsub_rn(key_score(key), max_score) >= min_score;
    }
};

// Radix selection on the whole row. Called by the whole CTA.
inline __device__ Kept find_kept_in_row(const KeySource &source, const SamplingRow &row, int vocab, u64 mass_of_all,
                                        float max_score, SelectSpace &space)
{
    Kept kept = {kNoKey, row.min_score, max_score};
    const bool by_count = row.top_k > 0 && row.top_k < vocab;
    if (by_count) kept.cut = select_cut(source, kNoKey, row.top_k, true, max_score, space);
    if (row.top_p < 1.f) {
        u64 mass = mass_of_all;
        if (by_count) {
            u64 own = 0;
            source.each([&](u64 key) { own += key <= kept.cut ? weight_of(key_score(key), max_score) : 0; });
            mass = block_sum_u64(own, space);
        }
        kept.cut = select_cut(source, kept.cut, top_p_target(row.top_p, mass), false, max_score, space);
    }
    return kept;
}

// Ascending bitonic sort of a list in shared memory, padded to a power of two. Returns the
// padded length. Called by the whole CTA.
inline __device__ int sort_list(u64 *list, int count)
{
    int padded = kSampleThreads;
    while (padded < count) padded *= 2;
    for (int i = count + threadIdx.x; i < padded; i += kSampleThreads) list[i] = kNoKey;
    __syncthreads();
    for (int run = 2; run <= padded; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int i = threadIdx.x; i < padded / 2; i += kSampleThreads) {
                const int low = (i & ~(apart - 1)) << 1 | (i & (apart - 1)), high = low + apart;
                const u64 a = list[low], b = list[high];
                const bool ascending = (low & run) == 0;
                if ((a > b) == ascending) {
                    list[low] = b;
                    list[high] = a;
                }
            }
            __syncthreads();
        }
    }
    return padded;
}

// The same by sorting, for a list that is a prefix of the ranking and contains every cut.
inline __device__ Kept find_kept_in_list(u64 *list, int count, const SamplingRow &row, int vocab, u64 mass_of_all,
                                         float max_score, SelectSpace &space)
{
    Kept kept = {kNoKey, row.min_score, max_score};
    const bool by_count = row.top_k > 0 && row.top_k < vocab;
    if (!by_count && row.top_p >= 1.f) return kept;
    const int padded = sort_list(list, count);
    int length = count;
    if (by_count) {
        length = row.top_k;
        kept.cut = list[length - 1];
    }
    if (row.top_p >= 1.f) return kept;

    // Each thread owns a run of keys; the mass before the run determines which one holds the cut.
    const int each = padded / kSampleThreads, begin = threadIdx.x * each;
    u64 own = 0;
    for (int i = begin; i < begin + each && i < length; ++i) own += weight_of(key_score(list[i]), max_score);
    u64 until = own;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const u64 lower = __shfl_up_sync(kFullMask, until, step);
        if (lane >= step) until += lower;
    }
    if (lane == kWarp - 1) space.total[warp] = until;
    __syncthreads();
    u64 mass = 0;
    for (int i = 0; i < kSampleWarps; ++i) {
        if (i == warp) until += mass;
        mass += space.total[i];
    }
    const u64 target = top_p_target(row.top_p, by_count ? mass : mass_of_all);
    u64 before = until - own;
    if (before < target && until >= target) {
        int i = begin - 1;
        while (before < target) before += weight_of(key_score(list[++i]), max_score);
        space.cut = list[i];
    }
    __syncthreads();
    kept.cut = space.cut;
    return kept;
}

// Gumbel top 2 of the kept tokens; the same result in every thread of the first warp.
inline __device__ Best race_kept(const KeySource &source, const SamplingRow &row, const Kept &kept, SlicePart *warps)
{
    Best own = Best::none();
    source.each([&](u64 key) {
        if (!kept(key)) return;
        const int token = key_token(key);
        const uint4 block = philox(token / 4, row.position, row.seed);
        const uint32_t word = token % 4 == 0 ? block.x : token % 4 == 1 ? block.y : token % 4 == 2 ? block.z : block.w;
        own.add(rank_key(__fadd_rn(key_score(key), gumbel(word)), token));
    });
    own.merge_warp();
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp].race = own;
    __syncthreads();
    Best all = Best::none();
    for (int warp = 0; warp < kSampleWarps; ++warp) all.merge(warps[warp].race);
    return all;
}

}  // namespace ss
