// Naive reference of token sampling.
#pragma once

#include "select.cuh"

namespace ss {

// One CTA per row, one pass over the logits per quantity, one binary search per cut.
template <typename Sink>
__global__ void __launch_bounds__(kSampleThreads) sample_rows_naive_kernel(const SampleParams p, const Sink sink)
{
    __shared__ SelectSpace space;
    __shared__ SlicePart warps[kSampleWarps];
    const int row_index = blockIdx.x;
    const SamplingRow row = p.rows[row_index];
    const Scratch scratch(p.scratch, p.row_count, 1);
    if (row.position < 0) {
        if (threadIdx.x < kWarp) sink.skip(p, scratch, row_index);
        return;
    }
    float *logits = p.logits + row_index * p.stride;
    adjust(p, row, logits, 0, p.vocab);
    const KeySource source = {nullptr, p.vocab, logits, row.scale};

    u64 bad = 0;
    u64 allowed = 0;
    for (int i = threadIdx.x; i < p.vocab; i += kSampleThreads) {
        if (!is_allowed(p, row, i)) continue;
        ++allowed;
        bad += !isfinite(__fmul_rn(logits[i], row.scale));
    }
    const bool none = block_sum_u64(allowed, space) == 0;
    if (block_sum_u64(bad, space) > 0 || none) {
        if (threadIdx.x < kWarp) sink.fail(p, scratch, row_index);
        return;
    }
    Best own = Best::none();
    source.each([&](u64 key) { own.add(key); });
    own.merge_warp();
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp].tops = own;
    __syncthreads();
    Best tops = Best::none();
    for (int warp = 0; warp < kSampleWarps; ++warp) tops.merge(warps[warp].tops);
    const float max_score = key_score(tops.first);

    auto mass_up_to = [&](u64 cut, bool counting) {
        u64 mass = 0;
        source.each([&](u64 key) {
            if (key <= cut) mass += counting ? 1 : weight_of(key_score(key), max_score);
        });
        return block_sum_u64(mass, space);
    };
    auto find_cut = [&](u64 limit, u64 wanted, bool counting) {
        u64 low = 0, high = limit;
        while (low < high) {
            const u64 middle = low + (high - low) / 2;
            if (mass_up_to(middle, counting) >= wanted) high = middle;
            else low = middle + 1;
        }
        return low;
    };
    Kept kept = {kNoKey, row.greedy ? -INFINITY : row.min_score, max_score};
    if (!row.greedy && row.top_k > 0 && row.top_k < p.vocab) kept.cut = find_cut(kNoKey, row.top_k, true);
    if (!row.greedy && row.top_p < 1.f)
        kept.cut = find_cut(kept.cut, top_p_target(row.top_p, mass_up_to(kept.cut, false)), false);

    const Best podium = row.greedy ? tops : race_kept(source, row, kept, warps);
    u64 mass = 0;
    source.each([&](u64 key) { mass += kept(key) ? weight_of(key_score(key), max_score) : 0; });
    const float all = __ull2float_rn(block_sum_u64(mass, space));
    Result result = result_of(podium);
    const float score = __fmul_rn(logits[result.token], row.scale);
    result.probability = __uint2float_rn(weight_of(score, max_score)) / all;
    const bool two = podium.second != kNoKey;
    result.margin =
        (1073741824.f - (two ? __uint2float_rn(weight_of(key_score(tops.second), max_score)) : 0.f)) / all;
    if (threadIdx.x < kWarp) sink.finish(p, scratch, row_index, result);
}

}  // namespace ss
