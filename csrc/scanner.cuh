// One warp's share of the first pass over a row of logits.
//
// A CTA keeps the leaders of its slice in shared memory as ranking keys; entering one takes two
// atomic minima, whose result does not depend on the order. A token that cannot be a leader
// costs only the arithmetic below. A warp examines its batch of eight tokens per lane exactly
// only after a vote, a few times per slice.
//
// Scores: the sum of a batch's exponentials bounds the largest of them, so the sum, which is
// needed anyway, tells whether a score can reach the second best.
//
// Noise: with G = -ln E and E > w, where w is the token's uniform variate, score + G can reach
// the bar only if w < exp(score - bar). This reuses the exponential of the sum and takes w from
// the random word's upper bits; logarithms are left to the exact examination. Since w is at
// least 2^-32, a batch whose exponentials are all small relative to the bar needs no random
// words.
//
// The exact examination matters most at the start of a slice, where all warps perform it at
// once. It raises the bar to what the batch is certain to reach, so that few tokens need exact
// keys.
#pragma once

#include "sampling_core.cuh"

namespace ss {

constexpr float kLog2E = 1.44269504f;

// Quantities that a pass computes; flags.
enum Wanted { kWantTops = 1, kWantSum = 2, kWantRace = 4 };

// The best keys of a CTA so far; in shared memory.
struct Leaders {
    Best tops;  // of the scores
    Best race;  // of the scores with noise
};

// Result of a warp besides leaders; the same in all lanes.
struct Tally {
    float sum;     // of 2^(score * log2 e - offset)
    float offset;
    bool bad;  // whether a score was not finite
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

// Enters a key; safe for any number of concurrent threads. The key displaced from `first`
// continues to `second`, so that both end up as the best of all entered keys.
__device__ __forceinline__ void enter(Best &shared, u64 key, bool two)
{
    if (key == kNoKey) return;
    const u64 before = atomicMin(&shared.first, key);
    if (two) atomicMin(&shared.second, max(before, key));
}

// The score in the high half of a key that other warps may be changing, as seen by the first lane.
__device__ __forceinline__ float watched_score(const u64 &key)
{
    const volatile uint32_t *high = reinterpret_cast<const volatile uint32_t *>(&key) + 1;
    const uint32_t bits = __shfl_sync(kFullMask, *high, 0);
    return bits == 0xffffffffu ? -INFINITY : key_score(static_cast<u64>(bits) << 32);
}

// One warp's share of a slice. `kWants`: flags of the needed quantities; `kTwo`: whether the
// second best is needed as well.
template <int kWants, bool kTwo>
class Scanner
{
    static constexpr bool kTops = kWants & kWantTops, kSum = kWants & kWantSum, kRace = kWants & kWantRace;
    static constexpr bool kExponentials = kSum || kRace;
    // Groups of four tokens per lane that are processed together.
    static constexpr int kGroups = kExponentials ? 2 : 4;
    static constexpr int kStride = kGroups * kSweep;

    const SampleParams &p;
    const SamplingRow &row;
    const float *logits;
    const int vocab;
    Leaders &leaders;
    PhiloxKeys keys;

    // Bars: scores that a token must reach.
    float top_bar = -INFINITY, race_bar = -INFINITY;
    // Exponentials are 2^(score * log2 e - offset). The offset is treated as exact, so that sums
    // with different offsets combine without error.
    float offset = 0.f;
    // Factor from an exponential to a bound of w.
    float chance = INFINITY;
    // Thresholds on the sum of a batch's exponentials: below the first there is no new leader
    // among the scores, below the second none at all.
    float top_look = 0.f, look = 0.f;
    float sum = 0.f;
    float products = 0.f;  // of neighbouring scores: not finite if a score is not

  public:
    __device__ __forceinline__ Scanner(const SampleParams &p, const SamplingRow &row, const float *logits,
                                       Leaders &leaders)
        : p(p), row(row), logits(logits), vocab(p.vocab), leaders(leaders), keys(row.seed)
    {
        if (kRace) keys.hold();
    }

    __device__ __forceinline__ Tally run(const Slice &slice)
    {
        const int whole_end = min(slice.end, vocab / kSweep * kSweep);
        const int batches = max(0, whole_end - slice.begin) / kStride;
        int at = slice.begin + 4 * static_cast<int>(threadIdx.x);
        const float *from = logits + at;
        float4 ahead[kGroups];
        if (batches > 0) load(ahead, from);
#pragma unroll 1
        for (int batch = 0; batch < batches; ++batch, at += kStride) {
            float score[4 * kGroups];
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const float logit[4] = {ahead[g].x, ahead[g].y, ahead[g].z, ahead[g].w};
#pragma unroll
                for (int i = 0; i < 4; ++i) score[4 * g + i] = __fmul_rn(logit[i], row.scale);
            }
            // The last batch is loaded again; a condition would cost register copies.
            from += batch + 1 < batches ? kStride : 0;
            load(ahead, from);
            scan_batch(score, at);
        }
        // The remainder: less than a batch, and the unaligned end of the vocabulary.
#pragma unroll 1
        for (; at - 4 * static_cast<int>(threadIdx.x) < slice.end; at += kSweep) {
            const float4 four = load_logits(logits, at, vocab);
            float score[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool inside = at + i < vocab;
                score[i] = inside ? __fmul_rn(score[i], row.scale) : -INFINITY;
                if (inside) products = fmaf(score[i], 0.f, products);
            }
            look_closely(score, at);
        }
        const bool doubtful = __any_sync(kFullMask, !(fabsf(products) < INFINITY));
        const float all = warp_sum(sum);
        // A warp that saw forbidden tokens only has no offset that others may have to scale to.
        return {all, all > 0.f ? offset : -FLT_MAX, doubtful && any_not_finite(slice)};
    }

  private:
    static __device__ __forceinline__ void load(float4 (&to)[kGroups], const float *from)
    {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) to[g] = __ldcg(reinterpret_cast<const float4 *>(from + g * kSweep));
    }

    __device__ __forceinline__ float exponential(float score) const
    {
        return power_of_two(fmaf(score, kLog2E, -offset));
    }

    __device__ __forceinline__ uint4 words(int at) const
    {
        return philox(static_cast<uint32_t>(at) / 4, static_cast<uint32_t>(row.position), keys);
    }

    // A lane's scores of one batch, all within the vocabulary.
    __device__ __forceinline__ void scan_batch(const float (&score)[4 * kGroups], int at)
    {
#pragma unroll
        for (int i = 0; i < 4 * kGroups; i += 2) products = fmaf(score[i], score[i + 1], products);
        if constexpr (kExponentials) {
            scan_exponentials(score, at);
        } else if (__any_sync(kFullMask, largest(score) >= top_bar)) {
            look_closely(score, at);
        }
    }

    __device__ __forceinline__ void scan_exponentials(const float (&score)[8], int at)
    {
        float e[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) e[i] = exponential(score[i]);
        const float all = ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]));
        bool closely = !(all < look);
        if (kRace && __any_sync(kFullMask, closely)) {
            closely = kTops && !(all < top_look);
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const uint4 block = words(at + g * kSweep);
                // Not `||`: four tests are cheaper than branches around them.
                const bool one = has_chance(e[4 * g], block.x) | has_chance(e[4 * g + 1], block.y);
                const bool other = has_chance(e[4 * g + 2], block.z) | has_chance(e[4 * g + 3], block.w);
                closely |= one | other;
            }
        }
        if (__any_sync(kFullMask, closely)) {
            look_closely(score, at);
        } else if (kSum) {
            sum += all;
        }
    }

    template <int kTokens> static __device__ __forceinline__ float largest(const float (&of)[kTokens])
    {
        float most = of[0];
#pragma unroll
        for (int i = 1; i < kTokens; ++i) most = fmaxf(most, of[i]);
        return most;
    }

    // Whether a token with this exponential may reach the bar; true if a factor is NaN. The word's
    // upper 23 bits, as the fraction of a float in [1, 2), are w or slightly less.
    __device__ __forceinline__ bool has_chance(float e, uint32_t word) const
    {
        return !(__uint_as_float(__funnelshift_r(word, 0x7fu, 9)) > fmaf(e, chance, 1.f));
    }

    // Determines exactly which of these tokens are leaders. Entries past the vocabulary hold -infinity.
    template <int kTokens> __device__ __forceinline__ void look_closely(const float (&score)[kTokens], int at)
    {
        follow();
        bool entered = false;
        if (kTops) entered |= enter_tops(score, at);
        if (kRace) entered |= enter_race(score, at);
        if (entered) follow();
        if (kSum)
#pragma unroll
            for (int i = 0; i < kTokens; ++i) sum += exponential(score[i]);
    }

    // Token id of a lane's element `i`, counted from `at`.
    static __device__ __forceinline__ int token(int at, int i) { return at + i / 4 * kSweep + i % 4; }

    template <int kTokens> static __device__ __forceinline__ float pick(const float (&from)[kTokens], int i)
    {
        float value = from[0];
#pragma unroll
        for (int j = 1; j < kTokens; ++j) value = i == j ? from[j] : value;
        return value;
    }

    // Best value over the warp's lanes, or that of the second best lane.
    static __device__ __forceinline__ float reached(float lane_best)
    {
        const uint32_t bits = ascending_bits(lane_best), most = __reduce_max_sync(kFullMask, bits);
        if (!kTwo) return from_ascending_bits(most);
        const bool shared = __popc(__ballot_sync(kFullMask, bits == most)) > 1;
        const uint32_t second = __reduce_max_sync(kFullMask, bits == most ? 0u : bits);
        return from_ascending_bits(shared ? most : second);
    }

    template <int kTokens> __device__ __forceinline__ bool enter_tops(const float (&score)[kTokens], int at)
    {
        const float most = largest(score);
        if (!__any_sync(kFullMask, most > -INFINITY && most >= top_bar)) return false;
        const float bar = fmaxf(top_bar, reached(most));
        unsigned candidates = 0;
#pragma unroll
        for (int i = 0; i < kTokens; ++i)
            if (score[i] > -INFINITY && score[i] >= bar) candidates |= 1u << i;
        Best fresh = Best::none();
        for (; candidates != 0; candidates &= candidates - 1) {
            const int i = __ffs(candidates) - 1;
            fresh.add(rank_key(pick(score, i), token(at, i)));
        }
        __syncwarp();
        enter_all(leaders.tops, fresh);
        return true;
    }

    template <int kTokens> __device__ __forceinline__ bool enter_race(const float (&score)[kTokens], int at)
    {
        float above[kTokens], least = -INFINITY;  // bounds of score + G
#pragma unroll
        for (int g = 0; g < kTokens / 4; ++g) {
            const uint4 block = words(at + g * kSweep);
            const uint32_t word[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                above[4 * g + i] = __fadd_rn(score[4 * g + i], gumbel_bound(word[i]));
                least = fmaxf(least, above[4 * g + i] - gumbel_bound_slack(word[i]));
            }
        }
        const float most = largest(above);
        if (!__any_sync(kFullMask, most > -INFINITY && most >= race_bar)) return false;
        // Minus a margin for the rounding of large scores.
        const float sure = reached(least), bar = fmaxf(race_bar, sure - fabsf(sure) * (4.f / 16777216.f));
        unsigned runners = 0;
#pragma unroll
        for (int i = 0; i < kTokens; ++i)
            if (above[i] > -INFINITY && above[i] >= bar) runners |= 1u << i;
        Best fresh = Best::none();
        for (; runners != 0; runners &= runners - 1) {
            const int i = __ffs(runners) - 1;
            const uint4 block = words(token(at, i));
            const uint32_t word = i % 4 == 0 ? block.x : i % 4 == 1 ? block.y : i % 4 == 2 ? block.z : block.w;
            fresh.add(rank_key(__fadd_rn(pick(score, i), gumbel(word)), token(at, i)));
        }
        __syncwarp();
        enter_all(leaders.race, fresh);
        return true;
    }

    __device__ __forceinline__ void enter_all(Best &shared, Best &fresh) const
    {
        fresh.merge_warp();
        const int lane = threadIdx.x % kWarp;
        if (lane < (kTwo ? 2 : 1)) enter(shared, lane == 0 ? fresh.first : fresh.second, kTwo);
        __syncwarp();
    }

    // Reads the CTA's leaders and derives the bounds from them. The margins cover the rounding of
    // scores, offsets, exponentials and score + G.
    __device__ __forceinline__ void follow()
    {
        constexpr float kSlack = 8.f / 16777216.f, kTiny = 7.9e-31f;  // 2^-100
        float reference = -INFINITY;
        if (kTops) {
            const float first = watched_score(leaders.tops.first);
            top_bar = kTwo ? watched_score(leaders.tops.second) : first;
            // Not the first: exponentials far below the reference stay above 0, and that of the first
            // does not overflow.
            reference = fmaxf(top_bar * kLog2E, first * kLog2E - 100.f);
        }
        if (kRace) {
            race_bar = watched_score(kTwo ? leaders.race.second : leaders.race.first);
            if (!kTops) reference = race_bar * kLog2E;
        }
        if (!kExponentials || !(reference > -INFINITY)) return;
        if (kSum && sum > 0.f) sum *= power_of_two(offset - reference);
        offset = reference;

        const float size = fabsf(offset) + 64.f;
        look = INFINITY;
        if (kTops) {
            const float slack = (size + fabsf(top_bar)) * kSlack;
            top_look = power_of_two(fmaf(top_bar, kLog2E, -offset) - slack) * 0.999f;
            if (!(top_look > kTiny)) top_look = 0.f;  // too small to decide
            look = top_look;
        }
        if (kRace) {
            constexpr float kLargest = 1e27f, kLeast = 1.16e-10f;  // less than 2^-33
            const float slack = (size + fabsf(race_bar)) * kSlack;
            chance = power_of_two(offset - race_bar * kLog2E + slack) * 1.001f;
            // So large that even an exponential of 0 may belong to a contender.
            if (!(chance < kLargest)) chance = INFINITY;
            look = fminf(look, __fdividef(kLeast, chance));
        }
    }

    // Whether the score of an allowed token of any lane is NaN or infinite.
    __device__ bool any_not_finite(const Slice &slice) const
    {
        bool found = false;
        for (int at = slice.begin + 4 * static_cast<int>(threadIdx.x); at < slice.end; at += kSweep) {
            const float4 four = load_logits(logits, at, vocab);
            const float logit[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (at + i < vocab && !isfinite(__fmul_rn(logit[i], row.scale))) found |= is_allowed(p, row, at + i);
        }
        return __any_sync(kFullMask, found);
    }
};

}  // namespace ss
