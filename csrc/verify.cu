// Verification: samples the target's token at every node of every sequence (sample_rows.cuh), then
// walks from the last committed token to the draft that equals the sample, for as long as there
// is one (src/sampling/verify.rs). One launch (two with filters), no host round trip: the CTA
// that finishes a sequence's last row walks it.
//
// Bytes moved: the logits once, 4 * vocab per row; with filters a second time, mostly
// out of L2.
// Measured on an H100 80GB HBM3, 320 x 128,256: 89 % of copy bandwidth greedy, 78 % with noise
// (docs/kernels.md).
#include "sample_rows.cuh"

namespace ss {
namespace {

constexpr int kNodesMax = VERIFY_DRAFTS_MAX + 1;

// A sequence's nodes, in shared memory: 0 is the last committed token, j is draft j - 1.
struct Nodes {
    SampledToken sampled[kNodesMax];
    int draft[kNodesMax];   // at j: token of draft j - 1
    int parent[kNodesMax];  // at j: node that draft j - 1 hangs on
};

// Records each row's sample; walks a sequence once its last row is finished.
struct VerdictSink {
    static constexpr bool kProposes = false;
    const VerifySequence *sequences;
    const int32_t *sequence_of;
    const int32_t *drafts;
    const int32_t *parents;
    VerifyOutcome *outcomes;
    int32_t *tokens;
    int32_t *path;

    __device__ void skip(const SampleParams &p, const Scratch &scratch, int row) const { note(scratch, row, {0, 0}); }

    __device__ void fail(const SampleParams &p, const Scratch &scratch, int row) const { note(scratch, row, {0, 0}); }

    __device__ void finish(const SampleParams &p, const Scratch &scratch, int row, const Result &result) const
    {
        note(scratch, row, {result.token, 1});
    }

    __device__ void note(const Scratch &scratch, int row, const SampledToken &sampled) const
    {
        const int index = sequence_of[row];
        if (index < 0) return;  // a padding row
        if (threadIdx.x == 0) scratch.samples[row] = sampled;
        VerifySequence sequence = sequences[index];
        sequence.drafts = min(sequence.drafts, VERIFY_DRAFTS_MAX);
        if (arrive_last(scratch.sampled + index, sequence.drafts + 1)) walk(scratch, index, sequence);
    }

    __device__ void load(const Scratch &scratch, const VerifySequence &sequence, Nodes &nodes) const
    {
        for (int j = threadIdx.x; j <= sequence.drafts; j += kWarp) {
            const int row = sequence.first_row + j;
            const int2 sampled = __ldcg(reinterpret_cast<const int2 *>(scratch.samples + row));
            nodes.sampled[j] = {sampled.x, sampled.y};
            nodes.draft[j] = j > 0 ? drafts[row] : -1;
            nodes.parent[j] = j == 0 ? -1 : sequence.tree ? parents[row] : j - 1;
        }
        __syncwarp();
    }

    // Called by one warp.
    __device__ void walk(const Scratch &scratch, int index, const VerifySequence &sequence) const
    {
        __shared__ Nodes nodes;
        load(scratch, sequence, nodes);
        int node = 0, accepted = 0;
        bool finite = true;
        while (true) {
            const SampledToken sampled = nodes.sampled[node];
            finite = sampled.finite;
            if (!finite) break;
            if (threadIdx.x == 0) tokens[sequence.first_row + accepted] = sampled.token;
            const int child = find_child(nodes, sequence.drafts, node, sampled.token);
            if (child < 0) break;
            if (threadIdx.x == 0) path[sequence.first_row + accepted] = child - 1;
            ++accepted;
            node = child;
        }
        if (threadIdx.x == 0) outcomes[index] = {finite ? accepted : 0, finite ? 1 : 0};
    }

    // The first node behind `node` that hangs on it and holds `token`; -1 if there is none.
    __device__ static int find_child(const Nodes &nodes, int drafts, int node, int token)
    {
        for (int begin = node + 1; begin <= drafts; begin += kWarp) {
            const int j = begin + static_cast<int>(threadIdx.x);
            const bool match = j <= drafts && nodes.parent[j] == node && nodes.draft[j] == token;
            const unsigned matches = __ballot_sync(kFullMask, match);
            if (matches) return begin + __ffs(matches) - 1;
        }
        return -1;
    }
};

VerdictSink sink_of(const VerifyParams &p)
{
    return {p.sequences, p.sequence_of, p.drafts, p.parents, p.outcomes, p.tokens, p.path};
}

bool valid(const VerifyParams &p)
{
    return valid_sample(p.sample) && p.sequence_count >= 0 && p.sequence_count <= SAMPLE_ROWS_MAX;
}

}  // namespace
}  // namespace ss

extern "C" int specserve_verify(const VerifyParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid(*p));
    if (p->sample.row_count == 0) return 0;
    return ss::sample_rows(p->sample, ss::sink_of(*p), stream);
}

extern "C" int specserve_verify_naive(const VerifyParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid(*p));
    if (p->sample.row_count == 0) return 0;
    sample_rows_naive_kernel<<<p->sample.row_count, kSampleThreads, 0, stream>>>(p->sample, sink_of(*p));
    return static_cast<int>(cudaGetLastError());
}
