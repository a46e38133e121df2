// RMSNorm fused with the preceding residual addition, and the embedding lookup that starts
// the residual stream.
//
// Design: one CTA per row. A thread owns one to four pieces of eight numbers, reads the delta
// (16 bytes) and the residual (2 x 16 bytes) of each once, keeps the sum in fp32 registers
// across the reduction and writes residual and result from there: nothing is read twice. The
// weight stays in L1. The sum of squares has a fixed order (thread, warp tree, warps in
// sequence), and the number of threads depends on the width alone, so a row's result does not
// depend on the batch. With deferred scales, the row is written before the sum is known.
//
// Bytes moved per row of width h: delta 2h + residual 4h read, residual 4h + result 2h
// written = 12h (6h without delta).
// Measured on an H100 80GB HBM3: 97 % of copy bandwidth at 4096 x 4096, 64 % at 256 rows, 3.5 us
// at 64 rows (docs/kernels.md).
#include "common.cuh"

namespace ss {
namespace {

constexpr int kPiece = 8;
constexpr int kThreadsMax = LAYER_HIDDEN_MAX / (4 * kPiece);

struct Piece {
    float value[kPiece];
};

__device__ __forceinline__ Piece load_piece(const float *from)
{
    Piece piece;
    reinterpret_cast<float4 *>(piece.value)[0] = reinterpret_cast<const float4 *>(from)[0];
    reinterpret_cast<float4 *>(piece.value)[1] = reinterpret_cast<const float4 *>(from)[1];
    return piece;
}

__device__ __forceinline__ void store_piece(float *to, const Piece &piece)
{
    reinterpret_cast<float4 *>(to)[0] = reinterpret_cast<const float4 *>(piece.value)[0];
    reinterpret_cast<float4 *>(to)[1] = reinterpret_cast<const float4 *>(piece.value)[1];
}

__device__ __forceinline__ void store_result(uint16_t *to, const float (&value)[kPiece])
{
    *reinterpret_cast<Bf16x8 *>(to) = pack(value);
}

__device__ void zero_row(uint16_t *out, int hidden)
{
    const float zeros[kPiece] = {};
    for (int at = threadIdx.x * kPiece; at < hidden; at += blockDim.x * kPiece) store_result(out + at, zeros);
}

template <int kPieces>
__global__ void __launch_bounds__(kThreadsMax) rmsnorm_kernel(const RmsNormParams p)
{
    __shared__ float scratch[kWarp];
    let_next_start();
    // Weights do not depend on earlier kernels: fetch them while the predecessor drains.
    Bf16x8 weight[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (i * blockDim.x + threadIdx.x) * kPiece;
        if (at < p.hidden) weight[i] = *reinterpret_cast<const Bf16x8 *>(p.weight + at);
    }
    wait_for_previous();

    const int source = p.gather ? p.gather[blockIdx.x] : static_cast<int>(blockIdx.x);
    uint16_t *out = p.out + static_cast<int64_t>(blockIdx.x) * p.hidden;
    if (source < 0) {
        zero_row(out, p.hidden);
        return;
    }
    float *residual = p.residual + static_cast<int64_t>(source) * p.hidden;
    const uint16_t *delta = p.delta ? p.delta + static_cast<int64_t>(source) * p.hidden : nullptr;

    Piece kept[kPieces];
    Bf16x8 added[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (i * blockDim.x + threadIdx.x) * kPiece;
        if (at >= p.hidden) continue;
        kept[i] = load_piece(residual + at);
        if (delta) added[i] = *reinterpret_cast<const Bf16x8 *>(delta + at);
    }
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (i * blockDim.x + threadIdx.x) * kPiece;
        if (at >= p.hidden) continue;
        if (delta) {
            float more[kPiece];
            unpack(added[i], more);
#pragma unroll
            for (int j = 0; j < kPiece; ++j) kept[i].value[j] += more[j];
        }
#pragma unroll
        for (int j = 0; j < kPiece; ++j) squares = fmaf(kept[i].value[j], kept[i].value[j], squares);
    }
    const auto scale_of_row = [&] {
        const float total = block_sum(squares, scratch, blockDim.x / kWarp);
        return rsqrtf(total / static_cast<float>(p.hidden) + p.eps);
    };
    const float scale = p.scales ? 1.f : scale_of_row();
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (i * blockDim.x + threadIdx.x) * kPiece;
        if (at >= p.hidden) continue;
        float scaled[kPiece];
        unpack(weight[i], scaled);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) scaled[j] *= kept[i].value[j] * scale;
        store_result(out + at, scaled);
        if (delta && !p.gather) store_piece(residual + at, kept[i]);
    }
    if (!p.scales) return;
    const float left_out = scale_of_row();
    if (threadIdx.x == 0) p.scales[blockIdx.x] = left_out;
}

__global__ void rmsnorm_naive_kernel(const RmsNormParams p)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    const int source = p.gather ? p.gather[row] : row;
    bf16 *out = reinterpret_cast<bf16 *>(p.out) + static_cast<int64_t>(row) * p.hidden;
    float squares = 0.f;
    for (int i = 0; i < p.hidden && source >= 0; ++i) {
        const int64_t at = static_cast<int64_t>(source) * p.hidden + i;
        const float sum =
            p.residual[at] + (p.delta ? __bfloat162float(reinterpret_cast<const bf16 *>(p.delta)[at]) : 0.f);
        squares += sum * sum;
    }
    const float full_scale = rsqrtf(squares / static_cast<float>(p.hidden) + p.eps);
    const float scale = p.scales ? 1.f : full_scale;
    if (p.scales) p.scales[row] = full_scale;
    for (int i = 0; i < p.hidden; ++i) {
        if (source < 0) {
            out[i] = __float2bfloat16(0.f);
            continue;
        }
        const int64_t at = static_cast<int64_t>(source) * p.hidden + i;
        const float sum =
            p.residual[at] + (p.delta ? __bfloat162float(reinterpret_cast<const bf16 *>(p.delta)[at]) : 0.f);
        out[i] = __float2bfloat16(sum * scale * __bfloat162float(reinterpret_cast<const bf16 *>(p.weight)[i]));
        if (p.delta && !p.gather) p.residual[at] = sum;
    }
}

// Does not allow the next kernel to start early. A pass begins only after everything before
// it has completed; later kernels rely on this when they prefetch KV blocks of earlier passes.
__global__ void embedding_kernel(const EmbeddingParams p)
{
    wait_for_previous();
    const int at = (blockIdx.x * blockDim.x + threadIdx.x) * kPiece;
    if (at >= p.hidden) return;
    const int token = p.tokens[blockIdx.y];
    Piece piece = {};
    if (token >= 0 && token < p.vocab) {
        unpack(*reinterpret_cast<const Bf16x8 *>(p.table + static_cast<int64_t>(token) * p.hidden + at), piece.value);
    }
    store_piece(p.residual + static_cast<int64_t>(blockIdx.y) * p.hidden + at, piece);
}

__global__ void embedding_naive_kernel(const EmbeddingParams p)
{
    const int64_t at = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (at >= static_cast<int64_t>(p.rows) * p.hidden) return;
    const int token = p.tokens[at / p.hidden];
    const bool known = token >= 0 && token < p.vocab;
    const bf16 *table = reinterpret_cast<const bf16 *>(p.table);
    p.residual[at] = known ? __bfloat162float(table[static_cast<int64_t>(token) * p.hidden + at % p.hidden]) : 0.f;
}

bool valid_width(int hidden) { return hidden > 0 && hidden % kPiece == 0 && hidden <= LAYER_HIDDEN_MAX; }

bool valid(const RmsNormParams *p) { return valid_width(p->hidden) && p->rows >= 0 && !(p->gather && p->scales); }

// Threads that cover a row with `pieces` each, in whole warps.
int threads_for(int hidden, int pieces) { return ceil_div(ceil_div(hidden, kPiece * pieces), kWarp) * kWarp; }

}  // namespace
}  // namespace ss

extern "C" int specserve_rmsnorm(const RmsNormParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid(p));
    if (p->rows == 0) return 0;
    // Four pieces per thread for wide rows: their loads overlap, and fewer warps take part in the
    // reduction.
    constexpr int kWanted = 128;
    const int pieces = threads_for(p->hidden, 1) <= kWanted ? 1 : threads_for(p->hidden, 2) <= kWanted ? 2 : 4;
    const int threads = threads_for(p->hidden, pieces);
    auto kernel = pieces == 1 ? rmsnorm_kernel<1> : pieces == 2 ? rmsnorm_kernel<2> : rmsnorm_kernel<4>;
    return launch(kernel, p->rows, threads, 0, stream, *p);
}

extern "C" int specserve_rmsnorm_naive(const RmsNormParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid(p));
    if (p->rows == 0) return 0;
    ss::rmsnorm_naive_kernel<<<ss::ceil_div(p->rows, 64), 64, 0, stream>>>(*p);
    return static_cast<int>(cudaGetLastError());
}

extern "C" int specserve_embedding(const EmbeddingParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid_width(p->hidden) && p->rows >= 0 && p->vocab > 0);
    if (p->rows == 0) return 0;
    constexpr int kThreads = 128;
    const dim3 grid(ceil_div(p->hidden, kThreads * kPiece), p->rows);
    return launch(embedding_kernel, grid, kThreads, 0, stream, *p);
}

extern "C" int specserve_embedding_naive(const EmbeddingParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid_width(p->hidden) && p->rows >= 0 && p->vocab > 0);
    if (p->rows == 0) return 0;
    const int64_t numbers = static_cast<int64_t>(p->rows) * p->hidden;
    ss::embedding_naive_kernel<<<static_cast<unsigned>((numbers + 255) / 256), 256, 0, stream>>>(*p);
    return static_cast<int>(cudaGetLastError());
}
