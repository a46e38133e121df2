// First pass over a row of logits: the best two scores, the sum of exponentials, and the best
// two scores with Gumbel noise, each only if needed.
//
// A row is split into slices for several CTAs, so that a single row fills the device. Each warp
// scans its share of a slice (scanner.cuh) with 16-byte loads, prefetching the next batch; the
// last CTA of a row merges the slices.
#pragma once

#include "scanner.cuh"

namespace ss {

__device__ __forceinline__ SlicePart empty_part() { return {Best::none(), Best::none(), 0.f, -FLT_MAX, 0, 0}; }

// Merges parts with different offsets.
__device__ __forceinline__ void merge_part(SlicePart &into, const SlicePart &from)
{
    into.tops.merge(from.tops);
    into.race.merge(from.race);
    const float offset = fmaxf(into.offset, from.offset);
    into.sum = into.sum * power_of_two(into.offset - offset) + from.sum * power_of_two(from.offset - offset);
    into.offset = offset;
    into.bad |= from.bad;
}

// Merges one part per lane; the same result in every lane.
__device__ __forceinline__ void merge_warp(SlicePart &part)
{
    part.tops.merge_warp();
    part.race.merge_warp();
    const float offset = warp_max(part.offset);
    part.sum = warp_sum(part.sum * power_of_two(part.offset - offset));
    part.offset = offset;
    part.bad = __any_sync(kFullMask, part.bad);
}

// Result of a merged row without filters. `logits` is the row.
template <bool kProposes>
__device__ __forceinline__ Result unfiltered_result(const SlicePart &all, const SamplingRow &row, const float *logits)
{
    const Best podium = row.greedy ? all.tops : all.race;
    Result result = result_of(podium);
    if (!kProposes) return result;
    const auto share = [&](float score) { return power_of_two(fmaf(score, kLog2E, -all.offset)) / all.sum; };
    result.probability = share(__fmul_rn(__ldcg(logits + result.token), row.scale));
    result.margin = share(key_score(all.tops.first)) - share(key_score(all.tops.second));
    return result;
}

// Scans a slice for what the row's parameters need.
template <bool kProposes>
__device__ __forceinline__ Tally scan_slice(const SampleParams &p, const SamplingRow &row, const float *logits,
                                            const Slice &slice, Leaders &leaders)
{
    constexpr int kSum = kProposes ? kWantTops | kWantSum : kWantTops;
    constexpr int kRace = kProposes ? kWantTops | kWantSum | kWantRace : kWantRace;
    const bool filtered = is_filtered(row, p.vocab);
    if (!row.greedy && !filtered) return Scanner<kRace, kProposes>(p, row, logits, leaders).run(slice);
    if (kProposes && !filtered) return Scanner<kSum, kProposes>(p, row, logits, leaders).run(slice);
    return Scanner<kWantTops, kProposes>(p, row, logits, leaders).run(slice);
}

template <typename Sink>
__global__ void __launch_bounds__(kSampleThreads, kWaves) scan_kernel(const SampleParams p, const Sink sink)
{
    __shared__ Leaders leaders;
    __shared__ Tally tallies[kSampleWarps];
    if (threadIdx.x == 0) leaders = {Best::none(), Best::none()};
    __syncthreads();
    let_next_start();
    wait_for_previous();
    const int row_index = blockIdx.y, split = blockIdx.x, splits = gridDim.x;
    const SamplingRow row = p.rows[row_index];
    const Scratch scratch(p.scratch, p.row_count, splits);
    if (row.position < 0) {
        if (split == 0 && threadIdx.x < kWarp) sink.skip(p, scratch, row_index);
        return;
    }
    float *logits = p.logits + row_index * p.stride;
    const Slice slice = slice_of(p.vocab, split, splits);
    adjust(p, row, logits, slice.begin, slice.end);

    const Tally tally = scan_slice<Sink::kProposes>(p, row, logits, slice, leaders);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (lane == 0) tallies[warp] = tally;
    __syncthreads();
    if (warp != 0) return;

    SlicePart part = empty_part();
    if (lane < kSampleWarps) {
        const Tally own = tallies[lane];
        part = {leaders.tops, leaders.race, own.sum, own.offset, own.bad, 0};
    }
    merge_warp(part);
    SlicePart *parts = scratch.parts + row_index * splits;
    if (lane == 0) parts[split] = part;
    if (!arrive_last(scratch.scanned + row_index, splits)) return;

    part = empty_part();
    for (int i = lane; i < splits; i += kWarp) merge_part(part, load_part(parts + i));
    merge_warp(part);
    if (part.tops.first == kNoKey && part.race.first == kNoKey) part.bad = 1;  // nothing is allowed
    const bool filtered = is_filtered(row, p.vocab);
    if (filtered && lane == 0) scratch.scans[row_index] = {part.tops.first, part.tops.second, part.bad};
    if (part.bad) {
        sink.fail(p, scratch, row_index);
    } else if (!filtered) {
        sink.finish(p, scratch, row_index, unfiltered_result<Sink::kProposes>(part, row, logits));
    }
}

}  // namespace ss
