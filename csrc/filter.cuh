// Second pass, for rows with top-k, top-p or min-p only. Slices sum the integer mass and gather
// the tokens within a window of the best. The last CTA of a row finds the cut by sorting these
// (or by radix selection over the whole row, if the window is too small or too full) and takes
// the Gumbel argmax of the kept tokens.
#pragma once

#include "scan.cuh"
#include "select.cuh"

namespace ss {

// Candidates within this many nats of the best are gathered for the filters.
constexpr float kWindow = 10.f;
// exp(-21.5) is below half a unit of mass.
constexpr float kMassless = -21.5f;

// One CTA's slice in the second pass.
__device__ __forceinline__ void gather_slice(const SampleParams &p, const Scratch &scratch, const SamplingRow &row,
                                             const float *logits, const Slice &slice, int row_index, float max_score,
                                             SelectSpace &space)
{
    const bool by_count = row.top_k > 0 && row.top_k < p.vocab;
    const bool by_mass = row.top_p < 1.f;
    const float window = by_count || by_mass ? -kWindow : row.min_score;
    u64 *candidates = scratch.candidates + static_cast<int64_t>(row_index) * SAMPLE_CANDIDATES_MAX;
    u64 mass = 0;
    const auto take = [&](const float4 &logit, int at) {
        const float value[4] = {logit.x, logit.y, logit.z, logit.w};
        float score[4], below[4], nearest = -INFINITY;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            score[i] = __fmul_rn(value[i], row.scale);
            below[i] = at + i < p.vocab ? __fsub_rn(score[i], max_score) : -INFINITY;
            if (by_mass && !by_count && below[i] > kMassless) mass += weight_of(score[i], max_score);
            nearest = fmaxf(nearest, below[i]);
        }
        if (!__any_sync(kFullMask, nearest >= window)) return;
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool near = below[i] >= window && at + i < p.vocab;
            const unsigned found = __ballot_sync(kFullMask, near);
            if (!found) continue;
            uint32_t index = 0;
            if (lane == 0) index = atomicAdd(scratch.gathered + row_index, static_cast<uint32_t>(__popc(found)));
            index = __shfl_sync(kFullMask, index, 0) + __popc(found & ((1u << lane) - 1));
            if (near && index < SAMPLE_CANDIDATES_MAX) candidates[index] = rank_key(score[i], at + i);
        }
    };
    // Loads run two iterations ahead.
    const int end = min(p.vocab, slice.end);
    int at = slice.begin + 4 * threadIdx.x;
    float4 next = load_logits(logits, at, end), after_next = load_logits(logits, at + kSweep, end);
#pragma unroll 1
    for (; at < slice.end; at += kSweep) {
        const float4 now = next;
        next = after_next;
        after_next = load_logits(logits, at + 2 * kSweep, end);
        take(now, at);
    }
    mass = block_sum_u64(mass, space);
    if (threadIdx.x == 0 && mass > 0) atomicAdd(scratch.mass + row_index, mass);
}

constexpr int kNotEnough = -1;

// Copies candidates to `list`: those in the narrowest of a few windows that contains every cut,
// because sorting dominates the time. Returns the count, or kNotEnough. Called by the whole CTA.
inline __device__ int narrow(const u64 *candidates, int gathered, const SamplingRow &row, int vocab, u64 mass_of_all,
                             float max_score, u64 *list, SelectSpace &space)
{
    constexpr int kWindows = 3, kCountShift = 44;  // 2^12 masses of up to 2^30 lie below
    const float windows[kWindows] = {-0.25f * kWindow, -0.5f * kWindow, -INFINITY};
    const bool by_count = row.top_k > 0 && row.top_k < vocab, by_mass = row.top_p < 1.f;
    u64 own[kWindows] = {};
    for (int i = threadIdx.x; i < gathered; i += kSampleThreads) {
        const float score = key_score(__ldcg(candidates + i));
        const u64 one = weight_of(score, max_score) | 1ull << kCountShift;
#pragma unroll
        for (int j = 0; j < kWindows; ++j) own[j] += __fsub_rn(score, max_score) >= windows[j] ? one : 0;
    }
    const u64 mass_wanted = by_mass && !by_count ? top_p_target(row.top_p, mass_of_all) : 0;
    const int first = by_count || by_mass ? 0 : kWindows - 1;
    float window = INFINITY;
    int count = kNotEnough;
#pragma unroll
    for (int j = 0; j < kWindows; ++j) {
        const u64 total = block_sum_u64(own[j], space);
        const int inside = static_cast<int>(total >> kCountShift);
        const u64 mass = total & ((1ull << kCountShift) - 1);
        const bool enough = j >= first && mass >= mass_wanted && (!by_count || inside >= row.top_k);
        if (enough && count == kNotEnough) {
            count = inside;
            window = windows[j];
        }
    }
    if (count == kNotEnough) return count;
    __syncthreads();
    if (threadIdx.x == 0) space.inside = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < gathered; i += kSampleThreads) {
        const u64 key = __ldcg(candidates + i);
        if (__fsub_rn(key_score(key), max_score) >= window) list[atomicAdd(&space.inside, 1u)] = key;
    }
    __syncthreads();
    return count;
}

template <typename Sink>
__global__ void __launch_bounds__(kSampleThreads) filter_kernel(const SampleParams p, const Sink sink)
{
    __shared__ SelectSpace space;
    __shared__ SlicePart warps[kSampleWarps];
    __shared__ u64 list[SAMPLE_CANDIDATES_MAX];
    __shared__ bool last;
    wait_for_previous();
    const int row_index = blockIdx.y, split = blockIdx.x, splits = gridDim.x;
    const SamplingRow row = p.rows[row_index];
    if (row.position < 0 || !is_filtered(row, p.vocab)) return;
    const Scratch scratch(p.scratch, p.row_count, splits);
    const RowScan scan = scratch.scans[row_index];
    if (scan.bad) return;
    const float *logits = p.logits + row_index * p.stride;
    const float max_score = key_score(scan.top);
    gather_slice(p, scratch, row, logits, slice_of(p.vocab, split, splits), row_index, max_score, space);
    __threadfence();
    __syncthreads();
    if (threadIdx.x < kWarp) {
        const bool is_last = arrive_last(scratch.filtered + row_index, splits);
        if (threadIdx.x == 0) last = is_last;
    }
    __syncthreads();
    if (!last) return;

    const uint32_t gathered = __ldcg(scratch.gathered + row_index);
    const u64 mass_of_all = __ldcg(scratch.mass + row_index);
    const u64 *candidates = scratch.candidates + static_cast<int64_t>(row_index) * SAMPLE_CANDIDATES_MAX;
    const int listed = gathered <= SAMPLE_CANDIDATES_MAX
                           ? narrow(candidates, gathered, row, p.vocab, mass_of_all, max_score, list, space)
                           : kNotEnough;
    const bool enough = listed != kNotEnough;
    __syncthreads();  // all have read the counters
    if (threadIdx.x == 0) {
        scratch.gathered[row_index] = 0;
        scratch.mass[row_index] = 0;
    }
    const KeySource source = {enough ? list : nullptr, enough ? listed : p.vocab, logits, row.scale};
    const Kept kept = enough
                          ? find_kept_in_list(list, listed, row, p.vocab, mass_of_all, max_score, space)
                          : find_kept_in_row(source, row, p.vocab, mass_of_all, max_score, space);
    const Best podium = race_kept(source, row, kept, warps);

    Result result = result_of(podium);
    if (Sink::kProposes) {
        u64 own = 0;
        source.each([&](u64 key) { own += kept(key) ? weight_of(key_score(key), max_score) : 0; });
        const float mass = __ull2float_rn(block_sum_u64(own, space));
        const float score = __fmul_rn(__ldcg(logits + result.token), row.scale);
        const float second = podium.second == kNoKey ? 0.f : __uint2float_rn(weight_of(key_score(scan.second), max_score));
        result.probability = __uint2float_rn(weight_of(score, max_score)) / mass;
        result.margin = (1073741824.f - second) / mass;
    }
    if (threadIdx.x < kWarp) sink.finish(p, scratch, row_index, result);
}

}  // namespace ss
