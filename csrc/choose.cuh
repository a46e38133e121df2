// Chooses one token per row of logits: the largest score plus Gumbel noise over the tokens
// that the row's filters keep, exactly as src/sampling/sampler.rs does.
//
// First pass (scan_kernel): a row is cut into slices for several CTAs, so that one row still
// fills the chip. Each reads its logits once, 16 bytes a thread, and keeps per warp the best
// two scores, the best two scores with noise and the sum of exponentials. A warp compares
// four tokens a lane with the CTA's second best by one vote, so the bookkeeping runs a few
// times per slice. The noise's logarithms are computed only where a token has a chance: with
// noise G = -ln E and E > w, w the token's uniform number, score + G can reach the bar only
// if w < exp(score - bar). That takes the exponential that the sum needs anyway, and w from
// the random word's upper bits. The last CTA of a row merges the slices.
//
// Second pass (filter_kernel), only for rows with top-k, top-p or min-p: slices add up the
// integer mass and gather the tokens within a window of the best; the last CTA finds the cut
// by sorting these (or by radix selection in the whole row, should the window be too small or
// too full) and lets the kept tokens race. Mass is counted in integers, so no result depends on
// the order of a sum or on how rows are cut.
//
// The includer's `Sink` says what happens to a row's result; its functions are called by all
// lanes of one warp.
#pragma once

#include "sampling_core.cuh"

namespace ss {

// What a row's choice came to.
struct Result {
    int token, runner_up;
    float probability, margin;
};

__device__ __forceinline__ Result result_of(const Best &podium)
{
    const int token = key_token(podium.first);
    return {token, podium.second == kNoKey ? token : key_token(podium.second), 0.f, 0.f};
}

// The bars of a CTA, which its warps raise together: what cannot be among the CTA's best is
// passed over by all. As integers that sort like the scores.
struct Bars {
    uint32_t top;   // the largest of the warps' second best scores
    uint32_t race;  // the same with noise, or of the best ones where one is enough
};

__device__ __forceinline__ uint32_t sortable(float score)
{
    const uint32_t bits = __float_as_uint(score);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unsortable(uint32_t bits)
{
    return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// What a warp knows; the same in every lane but for `sum` and `finite`.
struct ScanState {
    Best tops = Best::none(), race = Best::none();
    Bars seen;                   // the CTA's bars when they were last looked at
    float top_bar = -INFINITY;
    float race_bar = -INFINITY;
    float chance = INFINITY;     // exp(reference - race_bar), a little more
    float sum = 0.f;             // of exp(score - reference)
    float reference = -FLT_MAX;  // at least every score so far
    float finite = 0.f;          // turns NaN at the first score that is not finite
};

// What exp(score - reference) is multiplied by to bound w. The margin and the slack cover the
// roundings of both factors and of score + G. Infinite while there is no bar, and where the
// product could vanish although the token has a chance (w is at least 2^-32).
__device__ __forceinline__ float chance_of(const ScanState &state)
{
    constexpr float kMargin = 1.001f, kLargest = 1e27f, kSlack = 4.f / 16777216.f;
    const float slack = (fabsf(state.reference) + fabsf(state.race_bar)) * kSlack;
    const float chance = __expf(state.reference - state.race_bar + slack) * kMargin;
    return chance < kLargest ? chance : INFINITY;
}

// Whether a token with exp(score - reference) = e may reach the bar; also when a factor is
// NaN. The word's upper 23 bits are w or a little less, put behind 1 as a float.
__device__ __forceinline__ bool has_chance(const ScanState &state, float e, uint32_t word)
{
    return !(__uint_as_float(__funnelshift_r(word, 0x7fu, 9)) > fmaf(e, state.chance, 1.f));
}

__device__ __forceinline__ void raise_reference(ScanState &state, float to)
{
    if (to > state.reference) {
        state.sum *= __expf(state.reference - to);
        state.reference = to;
    }
}

// Takes over what other warps have found.
__device__ __forceinline__ void follow_bars(ScanState &state, const Bars &bars)
{
    state.seen = bars;
    state.top_bar = fmaxf(state.top_bar, unsortable(bars.top));
    state.race_bar = fmaxf(state.race_bar, unsortable(bars.race));
    raise_reference(state, state.top_bar);
    state.chance = chance_of(state);
}

__device__ __forceinline__ void raise_tops(ScanState &state, Bars &bars, const float (&score)[4], int at)
{
    Best fresh = Best::none();
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (score[i] >= state.top_bar && score[i] > -INFINITY) fresh.add(rank_key(score[i], at + i));
    fresh.merge_warp();
    state.tops.merge(fresh);
    const float second = key_score(state.tops.second);
    if (second > state.top_bar) {
        state.top_bar = second;
        if (threadIdx.x % kWarp == 0) atomicMax(&bars.top, sortable(second));
    }
    raise_reference(state, key_score(state.tops.first));
    state.chance = chance_of(state);
}

template <bool kTwo>
__device__ __forceinline__ void raise_race(ScanState &state, Bars &bars, const float (&score)[4],
                                           const uint32_t (&word)[4], int at)
{
    Best fresh = Best::none();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (score[i] > -INFINITY && __fadd_rn(score[i], gumbel_bound(word[i])) >= state.race_bar)
            fresh.add(rank_key(__fadd_rn(score[i], gumbel(word[i])), at + i));
    }
    fresh.merge_warp();
    state.race.merge(fresh);
    const float bar = key_score(kTwo ? state.race.second : state.race.first);
    if (bar > state.race_bar) {
        state.race_bar = bar;
        state.chance = chance_of(state);
        if (threadIdx.x % kWarp == 0) atomicMax(&bars.race, sortable(bar));
    }
}

struct ScanTask {
    float scale;
    uint64_t seed;
    uint32_t position;
    int vocab;
    bool race, sum;
};

__device__ __forceinline__ float4 load_logits(const float *logits, int at, int vocab)
{
    if (at + 4 <= vocab) return __ldcg(reinterpret_cast<const float4 *>(logits + at));
    float4 value = {};
    if (at < vocab) value.x = logits[at];
    if (at + 1 < vocab) value.y = logits[at + 1];
    if (at + 2 < vocab) value.z = logits[at + 2];
    return value;
}

// Four tokens per lane, of one whole warp.
template <bool kTwo>
__device__ __forceinline__ void scan_four(ScanState &state, const ScanTask &task, Bars &bars, const float4 &logit,
                                          int at)
{
    const Bars now = {*const_cast<volatile uint32_t *>(&bars.top), *const_cast<volatile uint32_t *>(&bars.race)};
    if (__any_sync(kFullMask, now.top != state.seen.top || now.race != state.seen.race)) {
        // Lanes may have read different states; they follow the first lane's.
        follow_bars(state, {__shfl_sync(kFullMask, now.top, 0), __shfl_sync(kFullMask, now.race, 0)});
    }
    float score[4] = {__fmul_rn(logit.x, task.scale), __fmul_rn(logit.y, task.scale), __fmul_rn(logit.z, task.scale),
                      __fmul_rn(logit.w, task.scale)};
#pragma unroll
    for (int i = 0; i < 4; ++i) state.finite = fmaf(score[i], 0.f, state.finite);
    if (at + 4 > task.vocab) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (at + i >= task.vocab) score[i] = -INFINITY;
    }
    const float most = fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3]));
    if (__any_sync(kFullMask, most >= state.top_bar)) raise_tops(state, bars, score, at);
    if (!task.race && !task.sum) return;
    float e[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) e[i] = __expf(score[i] - state.reference);
    if (task.sum) state.sum += (e[0] + e[1]) + (e[2] + e[3]);
    if (!task.race) return;
    const uint4 block = philox(at / 4, task.position, task.seed);
    const uint32_t word[4] = {block.x, block.y, block.z, block.w};
    bool hope = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) hope |= has_chance(state, e[i], word[i]);
    if (__any_sync(kFullMask, hope)) raise_race<kTwo>(state, bars, score, word, at);
}

// Merges parts with different references.
__device__ __forceinline__ void merge_part(SlicePart &into, const SlicePart &from)
{
    into.tops.merge(from.tops);
    into.race.merge(from.race);
    const float reference = fmaxf(into.reference, from.reference);
    into.sum = into.sum * __expf(into.reference - reference) + from.sum * __expf(from.reference - reference);
    into.reference = reference;
    into.bad |= from.bad;
}

__device__ __forceinline__ SlicePart empty_part()
{
    return {Best::none(), Best::none(), 0.f, -FLT_MAX, 0, 0};
}

// Merges one part per lane; the same result in every lane.
__device__ __forceinline__ void merge_warp(SlicePart &part)
{
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        SlicePart other = empty_part();
        other.tops.first = __shfl_xor_sync(kFullMask, part.tops.first, step);
        other.tops.second = __shfl_xor_sync(kFullMask, part.tops.second, step);
        other.race.first = __shfl_xor_sync(kFullMask, part.race.first, step);
        other.race.second = __shfl_xor_sync(kFullMask, part.race.second, step);
        other.sum = __shfl_xor_sync(kFullMask, part.sum, step);
        other.reference = __shfl_xor_sync(kFullMask, part.reference, step);
        other.bad = __shfl_xor_sync(kFullMask, part.bad, step);
        merge_part(part, other);
    }
}

// From the merged row to its result; the row has no filters. `logits` is the row.
template <bool kProposes>
__device__ __forceinline__ Result unfiltered_result(const SlicePart &all, const SamplingRow &row, const float *logits)
{
    const Best podium = row.greedy ? all.tops : all.race;
    Result result = result_of(podium);
    if (!kProposes) return result;
    const float best = key_score(all.tops.first), second = key_score(all.tops.second);
    result.probability = __expf(__fmul_rn(__ldcg(logits + result.token), row.scale) - best) / all.sum;
    result.margin = (1.f - __expf(second - best)) / all.sum;
    return result;
}

template <typename Sink>
__global__ void __launch_bounds__(kSampleThreads, kWaves) scan_kernel(const SampleParams p, const Sink sink)
{
    __shared__ SlicePart warps[kSampleWarps];
    __shared__ Bars bars;
    if (threadIdx.x == 0) bars = {sortable(-INFINITY), sortable(-INFINITY)};
    __syncthreads();
    wait_for_previous();
    const int row_index = blockIdx.y, split = blockIdx.x, splits = gridDim.x;
    const SamplingRow row = p.rows[row_index];
    const Scratch scratch(p.scratch, p.row_count, splits);
    if (row.position < 0) {
        if (split == 0 && threadIdx.x < kWarp) sink.skip(p, scratch, row_index);
        return;
    }
    const bool filtered = is_filtered(row, p.vocab);
    const ScanTask task = {row.scale,
                           row.seed,
                           static_cast<uint32_t>(row.position),
                           p.vocab,
                           !row.greedy && !filtered,
                           Sink::kProposes && !filtered};
    float *logits = p.logits + row_index * p.stride;
    const Slice slice = slice_of(p.vocab, split, splits);
    adjust(p, row, logits, slice.begin, slice.end);

    ScanState state;
    state.seen = {sortable(-INFINITY), sortable(-INFINITY)};
    // Two loads ahead of the one that is looked at; one copy of the code, which is long.
    int at = slice.begin + 4 * threadIdx.x;
    auto load = [&](int at) { return load_logits(logits, at, min(p.vocab, slice.end)); };
    float4 next = load(at), after_next = load(at + kSweep);
#pragma unroll 1
    for (; at < slice.end; at += kSweep) {
        const float4 current = next;
        next = after_next;
        after_next = load(at + 2 * kSweep);
        scan_four<Sink::kProposes>(state, task, bars, current, at);
    }

    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const float sum = warp_sum(state.sum);
    const bool bad = __any_sync(kFullMask, !(state.finite == 0.f));
    if (lane == 0) warps[warp] = {state.tops, state.race, sum, state.reference, bad, 0};
    __syncthreads();
    if (warp != 0) return;

    SlicePart part = lane < kSampleWarps ? warps[lane] : empty_part();
    merge_warp(part);
    SlicePart *parts = scratch.parts + row_index * splits;
    if (lane == 0) parts[split] = part;
    if (!arrive_last(scratch.scanned + row_index, splits)) return;

    part = empty_part();
    for (int i = lane; i < splits; i += kWarp) merge_part(part, load_part(parts + i));
    merge_warp(part);
    if (filtered) {
        if (lane == 0) scratch.scans[row_index] = {part.tops.first, part.tops.second, part.bad};
        if (part.bad) sink.fail(p, scratch, row_index);
    } else if (part.bad) {
        sink.fail(p, scratch, row_index);
    } else {
        sink.finish(p, scratch, row_index, unfiltered_result<Sink::kProposes>(part, row, logits));
    }
}

// Candidates within this many nats of the best are gathered for the filters.
constexpr float kWindow = 10.f;
// exp(-21.5) is below half a unit of mass.
constexpr float kMassless = -21.5f;

// The keys that the last CTA of a row selects from: the gathered ones, or the whole row.
struct KeySource {
    const u64 *list;  // shared memory, or null
    int count;        // of the list, or the vocabulary
    const float *logits;
    float scale;

    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const
    {
        for (int i = threadIdx.x; i < count; i += kSampleThreads)
            visit(list ? list[i] : rank_key(__fmul_rn(__ldcg(logits + i), scale), i));
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

// By the first warp: the first bucket at which the running mass reaches `wanted`.
inline __device__ void choose_bucket(SelectSpace &space, u64 wanted)
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

// The smallest key such that keys up to it, none above `limit`, have at least `wanted` mass;
// with `counting` each key's mass is 1. By the whole CTA.
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
        if (threadIdx.x < kWarp) choose_bucket(space, wanted);
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

// Which keys the filters keep.
struct Kept {
    u64 cut;
    float min_score;
    float max_score;

    __device__ __forceinline__ bool operator()(u64 key) const
    {
        return key <= cut && __fsub_rn(key_score(key), max_score) >= min_score;
    }
};

// By radix selection in the whole row; by the whole CTA.
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

// Bitonic sort of a list in shared memory, ascending, padded to a power of two; by the whole
// CTA. Returns the padded length.
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

// The same by sorting a list that holds a prefix of the ranking behind every cut.
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

    // Each thread owns a run of neighbours; the running mass before it decides who has the cut.
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

// The kept tokens race; the result is the same in every thread of the first warp.
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
    for (int at = slice.begin + 4 * threadIdx.x; at < slice.end; at += kSweep) {
        const float4 logit = load_logits(logits, at, p.vocab);
        const float value[4] = {logit.x, logit.y, logit.z, logit.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float score = __fmul_rn(value[i], row.scale);
            const float below = at + i < p.vocab ? __fsub_rn(score, max_score) : -INFINITY;
            if (by_mass && !by_count && below > kMassless) mass += weight_of(score, max_score);
            const bool near = below >= window && at + i < p.vocab;
            const unsigned found = __ballot_sync(kFullMask, near);
            if (!found) continue;
            uint32_t place = 0;
            const int lane = threadIdx.x % kWarp;
            if (lane == 0) place = atomicAdd(scratch.gathered + row_index, static_cast<uint32_t>(__popc(found)));
            place = __shfl_sync(kFullMask, place, 0) + __popc(found & ((1u << lane) - 1));
            if (near && place < SAMPLE_CANDIDATES_MAX) candidates[place] = rank_key(score, at + i);
        }
    }
    mass = block_sum_u64(mass, space);
    if (threadIdx.x == 0 && mass > 0) atomicAdd(scratch.mass + row_index, mass);
}

constexpr int kNotEnough = -1;

// Copies candidates to `list`: those in the narrowest of a few windows that holds every cut,
// because sorting is what takes the time. Returns how many, or kNotEnough. By the whole CTA.
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

template <typename Sink>
int choose(const SampleParams &p, const Sink &sink, CUstream_st *stream)
{
    const dim3 grid(splits_for(p.row_count, p.vocab), p.row_count);
    const int status = launch(scan_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
    if (status != 0 || !p.filtered) return status;
    return launch(filter_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
}

// The plain version: one CTA per row, a pass over the logits for every question, a binary
// search for every cut.
template <typename Sink>
__global__ void __launch_bounds__(kSampleThreads) choose_naive_kernel(const SampleParams p, const Sink sink)
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
    for (int i = threadIdx.x; i < p.vocab; i += kSampleThreads) bad += !isfinite(__fmul_rn(logits[i], row.scale));
    if (block_sum_u64(bad, space) > 0) {
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
