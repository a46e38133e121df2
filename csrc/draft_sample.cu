// Draft sampling: each row's proposal under the request's noise, its runner-up, its
// probability and the margin between the two most probable tokens. Design: sample_rows.cuh.
//
// Bytes moved: the logits once, 4 * vocab per row; with filters a second time, mostly
// out of L2.
// Measured on an H100 80GB HBM3, 256 x 128,256: 89 % of copy bandwidth greedy, 71 % with noise
// (docs/kernels.md).
#include "sample_rows.cuh"

namespace ss {
namespace {

// Writes one proposal per row.
struct ProposalSink {
    static constexpr bool kProposes = true;
    DraftProposal *proposals;
    int32_t *tokens;

    __device__ void skip(const SampleParams &, const Scratch &, int row) const { write(row, {}); }

    __device__ void fail(const SampleParams &, const Scratch &, int row) const { write(row, {}); }

    __device__ void finish(const SampleParams &, const Scratch &, int row, const Result &result) const
    {
        write(row, {result.token, result.runner_up, result.probability, result.margin, 1});
    }

    __device__ void write(int row, const DraftProposal &proposal) const
    {
        if (threadIdx.x != 0) return;
        proposals[row] = proposal;
        tokens[row] = proposal.token;
    }
};

__global__ void noise_kernel(uint64_t seed, uint32_t position, int count, float *out)
{
    const int block_index = blockIdx.x * blockDim.x + threadIdx.x;
    const uint4 block = philox(block_index, position, seed);
    const uint32_t word[4] = {block.x, block.y, block.z, block.w};
    for (int i = 0; i < 4; ++i)
        if (4 * block_index + i < count) out[4 * block_index + i] = gumbel(word[i]);
}

}  // namespace
}  // namespace ss

extern "C" size_t specserve_sample_scratch_bytes(int rows)
{
    using namespace ss;
    if (rows < 0 || rows > SAMPLE_ROWS_MAX) return 0;
    return Scratch(nullptr, rows, SAMPLE_SPLITS_MAX).bytes;
}

extern "C" int specserve_draft_sample(const DraftSampleParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_sample(p->sample));
    if (p->sample.row_count == 0) return 0;
    return sample_rows(p->sample, ProposalSink{p->proposals, p->tokens}, stream);
}

extern "C" int specserve_draft_sample_naive(const DraftSampleParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_sample(p->sample));
    if (p->sample.row_count == 0) return 0;
    const ProposalSink sink{p->proposals, p->tokens};
    sample_rows_naive_kernel<<<p->sample.row_count, kSampleThreads, 0, stream>>>(p->sample, sink);
    return static_cast<int>(cudaGetLastError());
}

extern "C" int specserve_noise(uint64_t seed, uint32_t position, int count, float *out, CUstream_st *stream)
{
    SS_REQUIRE(count >= 0);
    if (count == 0) return 0;
    ss::noise_kernel<<<ss::ceil_div(ss::ceil_div(count, 4), 128), 128, 0, stream>>>(seed, position, count, out);
    return static_cast<int>(cudaGetLastError());
}
