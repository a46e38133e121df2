// Kernels of draft heads that are bound by launches and by memory: copies with a norm, a gather or
// a rounding.
//
// Design: a CTA per row (and feature), 16-byte accesses, sums in fp32 with a fixed order, so that a
// row's result does not depend on the batch. A row is read twice where it is normed; the second
// time it comes out of L1 or L2. Kernels that begin a pass do not let the next one start early,
// as embedding_kernel (rmsnorm.cu): attention prefetches KV blocks of earlier passes.
//
// Oracles: tests/cuda_kernels/draft_head.rs, in f64. Bytes: each array of the parameters is read or
// written once (draft_head.h has the shapes); for an 8B's head all together are below 1 % of the
// weights that it reads for a draft. Its share of the ceiling is that of the whole pass, docs/kernels.md.
#include "common.cuh"

namespace ss {
namespace {

constexpr int kPiece = 8;
constexpr int kThreads = 256;

struct Eight {
    float value[kPiece];
};

__device__ __forceinline__ Eight load(const float *from)
{
    Eight piece;
    reinterpret_cast<float4 *>(piece.value)[0] = reinterpret_cast<const float4 *>(from)[0];
    reinterpret_cast<float4 *>(piece.value)[1] = reinterpret_cast<const float4 *>(from)[1];
    return piece;
}

__device__ __forceinline__ Eight load(const uint16_t *from)
{
    Eight piece;
    unpack(*reinterpret_cast<const Bf16x8 *>(from), piece.value);
    return piece;
}

__device__ __forceinline__ void store(float *to, const Eight &piece)
{
    reinterpret_cast<float4 *>(to)[0] = reinterpret_cast<const float4 *>(piece.value)[0];
    reinterpret_cast<float4 *>(to)[1] = reinterpret_cast<const float4 *>(piece.value)[1];
}

__device__ __forceinline__ void store(uint16_t *to, const Eight &piece)
{
    *reinterpret_cast<Bf16x8 *>(to) = pack(piece.value);
}

// Calls `visit(at)` for each piece of a row of `width` numbers, over the threads of the CTA.
template <typename Visit> __device__ __forceinline__ void for_pieces(int width, Visit visit)
{
    for (int at = threadIdx.x * kPiece; at < width; at += kThreads * kPiece) visit(at);
}

// 1 / sqrt(mean of squares + eps) of a row whose pieces `piece_at` gives, in every thread.
template <typename PieceAt>
__device__ __forceinline__ float norm_scale(int width, float eps, float *scratch, PieceAt piece_at)
{
    float squares = 0.f;
    for_pieces(width, [&](int at) {
        const Eight piece = piece_at(at);
#pragma unroll
        for (int i = 0; i < kPiece; ++i) squares = fmaf(piece.value[i], piece.value[i], squares);
    });
    const float total = block_sum(squares, scratch, kThreads / kWarp);
    return rsqrtf(total / static_cast<float>(width) + eps);
}

__device__ __forceinline__ Eight scaled(const Eight &piece, float scale, const uint16_t *weight)
{
    Eight result = load(weight);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) result.value[i] *= piece.value[i] * scale;
    return result;
}

__device__ __forceinline__ Eight sum(const float *residual, const uint16_t *delta)
{
    Eight result = load(residual);
    if (!delta) return result;
    const Eight more = load(delta);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) result.value[i] += more.value[i];
    return result;
}

__global__ void __launch_bounds__(kThreads) take_states_kernel(const TakeStatesParams p)
{
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= p.span[1]) return;
    const int64_t from = static_cast<int64_t>(row) * p.hidden;
    uint16_t *to = p.states + (p.span[0] + static_cast<int64_t>(row)) * p.stride;
    for_pieces(p.hidden, [&](int at) { store(to + at, load(p.residual + from + at)); });
}

// Begins a pass.
__global__ void __launch_bounds__(kThreads) fuse_input_kernel(const FuseInputParams p)
{
    __shared__ float scratch[kWarp];
    wait_for_previous();
    const int all = p.features * p.width;
    const int width = p.joint ? all : p.width;
    const int first = blockIdx.y * width;
    const int source = p.sources[blockIdx.x];
    uint16_t *to = p.out + static_cast<int64_t>(blockIdx.x) * all + first;
    if (source < 0) {
        for_pieces(width, [&](int at) { store(to + at, Eight{}); });
        return;
    }
    const uint16_t *from = p.states + static_cast<int64_t>(source) * all + first;
    if (!p.weight) {
        for_pieces(width, [&](int at) { store(to + at, load(from + at)); });
        return;
    }
    const float scale = norm_scale(width, p.eps, scratch, [&](int at) { return load(from + at); });
    for_pieces(width, [&](int at) { store(to + at, scaled(load(from + at), scale, p.weight + first + at)); });
}

// Begins a pass, or follows the fusion.
__global__ void __launch_bounds__(kThreads) chain_input_kernel(const ChainInputParams p)
{
    __shared__ float scratch[2][kWarp];
    wait_for_previous();
    const int row = blockIdx.x;
    const int token = p.tokens[row];
    const int source = p.sources ? p.sources[row] : row;
    const bool known = token >= 0 && token < p.vocab;
    const uint16_t *embedding = p.table + static_cast<int64_t>(known ? token : 0) * p.hidden;
    const float *state = p.states + static_cast<int64_t>(source < 0 ? 0 : source) * p.hidden;
    const auto embedding_at = [&](int at) { return known ? load(embedding + at) : Eight{}; };
    const auto state_at = [&](int at) { return source >= 0 ? load(state + at) : Eight{}; };
    const float embedding_scale = norm_scale(p.hidden, p.eps, scratch[0], embedding_at);
    const float state_scale = norm_scale(p.hidden, p.eps, scratch[1], state_at);
    uint16_t *out = p.out + static_cast<int64_t>(row) * 2 * p.hidden;
    float *residual = p.residual + static_cast<int64_t>(row) * p.hidden;
    for_pieces(p.hidden, [&](int at) {
        const Eight before = state_at(at);
        const Eight normed = scaled(before, state_scale, p.state_norm + at);
        store(out + at, scaled(embedding_at(at), embedding_scale, p.embedding_norm + at));
        store(out + p.hidden + at, normed);
        store(residual + at, p.normed_residual ? normed : before);
    });
}

__global__ void __launch_bounds__(kThreads) take_links_kernel(const TakeLinksParams p)
{
    let_next_start();
    wait_for_previous();
    const int64_t to = blockIdx.x, from = p.gather[blockIdx.x];
    for_pieces(p.width, [&](int at) {
        store(p.attended_out + to * p.width + at, from < 0 ? Eight{} : load(p.attended + from * p.width + at));
    });
    for_pieces(p.hidden, [&](int at) {
        store(p.residual + to * p.hidden + at, from < 0 ? Eight{} : load(p.stream + from * p.hidden + at));
    });
}

__global__ void __launch_bounds__(kThreads) chain_output_kernel(const ChainOutputParams p)
{
    __shared__ float scratch[kWarp];
    let_next_start();
    wait_for_previous();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * p.hidden;
    const auto output_at = [&](int at) { return sum(p.residual + row + at, p.delta ? p.delta + row + at : nullptr); };
    const float scale = norm_scale(p.hidden, p.eps, scratch, output_at);
    for_pieces(p.hidden, [&](int at) {
        const Eight output = output_at(at);
        const Eight normed = scaled(output, scale, p.weight + at);
        store(p.out + row + at, normed);
        store(p.carried + row + at, p.carry_normed ? normed : output);
    });
}

__global__ void __launch_bounds__(kThreads) spread_logits_kernel(const SpreadLogitsParams p)
{
    let_next_start();
    wait_for_previous();
    const int at = (blockIdx.x * kThreads + threadIdx.x) * 4;
    if (at >= p.vocab) return;
    const float *logits = p.logits + static_cast<int64_t>(blockIdx.y) * p.draft_tokens;
    const int4 draft = *reinterpret_cast<const int4 *>(p.draft_of + at);
    const auto logit = [&](int token, int draft) {
        return draft < 0 ? DRAFT_LOGIT_NONE - token * DRAFT_LOGIT_NONE_FALL : logits[draft];
    };
    *reinterpret_cast<float4 *>(p.out + static_cast<int64_t>(blockIdx.y) * p.vocab + at) =
        make_float4(logit(at, draft.x), logit(at + 1, draft.y), logit(at + 2, draft.z), logit(at + 3, draft.w));
}

__global__ void __launch_bounds__(kThreads) take_rows_kernel(const TakeRowsParams p)
{
    let_next_start();
    wait_for_previous();
    const int token = p.tokens[blockIdx.x];
    const bool known = token >= 0 && token < p.vocab;
    const uint16_t *from = p.table + static_cast<int64_t>(known ? token : 0) * p.width;
    uint16_t *to = p.out + static_cast<int64_t>(blockIdx.x) * p.width;
    for_pieces(p.width, [&](int at) { store(to + at, known ? load(from + at) : Eight{}); });
}

__global__ void __launch_bounds__(kThreads) confidence_kernel(const ConfidenceParams p)
{
    __shared__ float scratch[kWarp];
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x;
    const uint16_t *state = p.states + static_cast<int64_t>(row) * p.hidden;
    float score = 0.f;
    for (int at = threadIdx.x; at < p.hidden; at += kThreads)
        score = fmaf(__bfloat162float(reinterpret_cast<const bf16 *>(state)[at]), p.weight[at], score);
    const int before = row < p.sequences ? p.anchors[row] : p.proposals[row - p.sequences].token;
    if (before >= 0 && before < p.vocab) {
        const bf16 *feature = reinterpret_cast<const bf16 *>(p.features) + static_cast<int64_t>(before) * p.rank;
        for (int at = threadIdx.x; at < p.rank; at += kThreads)
            score = fmaf(__bfloat162float(feature[at]), p.weight[p.hidden + at], score);
    }
    const float total = block_sum(score, scratch, kThreads / kWarp) + p.bias;
    if (threadIdx.x == 0 && p.proposals[row].finite) p.proposals[row].probability = 1.f / (1.f + expf(-total));
}

bool valid_width(int width) { return width > 0 && width % kPiece == 0; }

}  // namespace
}  // namespace ss

extern "C" int specserve_take_states(const TakeStatesParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->hidden) && p->rows >= 0 && p->stride >= p->hidden);
    if (p->rows == 0) return 0;
    return launch(take_states_kernel, p->rows, kThreads, 0, stream, *p);
}

extern "C" int specserve_fuse_input(const FuseInputParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->width) && p->rows >= 0 && p->features > 0);
    if (p->rows == 0) return 0;
    const dim3 grid(p->rows, p->joint ? 1 : p->features);
    return launch(fuse_input_kernel, grid, kThreads, 0, stream, *p);
}

extern "C" int specserve_chain_input(const ChainInputParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->hidden) && p->rows >= 0 && p->vocab > 0 && p->states != p->residual);
    if (p->rows == 0) return 0;
    return launch(chain_input_kernel, p->rows, kThreads, 0, stream, *p);
}

extern "C" int specserve_take_links(const TakeLinksParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->width) && valid_width(p->hidden) && p->rows >= 0 && p->stream != p->residual);
    if (p->rows == 0) return 0;
    return launch(take_links_kernel, p->rows, kThreads, 0, stream, *p);
}

extern "C" int specserve_chain_output(const ChainOutputParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->hidden) && p->rows >= 0);
    if (p->rows == 0) return 0;
    return launch(chain_output_kernel, p->rows, kThreads, 0, stream, *p);
}

extern "C" int specserve_spread_logits(const SpreadLogitsParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(p->rows >= 0 && p->draft_tokens > 0 && p->vocab > 0 && p->vocab % 4 == 0);
    if (p->rows == 0) return 0;
    const dim3 grid(ceil_div(p->vocab, 4 * kThreads), p->rows);
    return launch(spread_logits_kernel, grid, kThreads, 0, stream, *p);
}

extern "C" int specserve_take_rows(const TakeRowsParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->width) && p->rows >= 0 && p->vocab > 0);
    if (p->rows == 0) return 0;
    return launch(take_rows_kernel, p->rows, kThreads, 0, stream, *p);
}

extern "C" int specserve_confidence(const ConfidenceParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(p->hidden > 0 && p->rank >= 0 && p->slots >= 0 && p->sequences >= 0 && p->vocab > 0);
    if (p->slots * p->sequences == 0) return 0;
    return launch(confidence_kernel, p->slots * p->sequences, kThreads, 0, stream, *p);
}
