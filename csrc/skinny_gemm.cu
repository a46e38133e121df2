// Matrix products of 1 to 16 rows: weights are streamed once for any number of rows.
//
// Design. A CTA computes 16 outputs for all rows; its warps split the inputs. A warp
// multiplies 16 weight rows by 8 or 16 rows of x with mma.sync m16n8k16. The order of the
// inputs within a product is free as long as both sides agree, so each thread reads 16
// contiguous bytes of a row and no fragment needs a shuffle. Weights are copied by cp.async into
// slots that the same thread reads back: no barrier, and a constant number of bytes in flight.
// They do not depend on the preceding kernel, so the first stages are issued before it ends.
//
// Row-local work around the product is fused: the epilogue (skinny_finish.cuh), and the division
// by a row's root mean square, which commutes with the product. It is computed during the
// product, so no norm is launched in between.
//
// Rows do not interact: a column of the product depends on its own row of x only, in an order
// fixed by the number of inputs. A row has the same bits in a batch of 1 and of 16.
//
// Tried and rejected: a persistent grid with one stream of stages over all tiles (28672 x 4096:
// 92 us instead of 82; it delays the next kernel's first stages), and CTA clusters that split
// the inputs of small matrices (1536 x 8960: 15.3 us instead of 13.3).
//
// Bytes: weights once, x from L1 and L2. The roofline is the copy bandwidth, of which an H100 80GB
// HBM3 reaches 97 to 105 % for the large matrices of an 8B at one row, 90 to 100 % at 16, 75 % for
// 1536 x 8960 (docs/kernels.md).
#include "async_copy.cuh"
#include "common.cuh"
#include "mma.cuh"
#include "skinny_finish.cuh"

namespace skinny {
namespace {

// Warps per CTA: more if there are so few tiles that most SMs get only one.
constexpr int kWarpsMany = 8, kWarpsFew = 16;
constexpr int kStageInputs = SKINNY_INPUTS_MULTIPLE;
// A thread's pieces of one stage: two rows, two 16-byte pieces each.
constexpr int kPieces = 4;
constexpr int kStageBytes = kPieces * 16 * ss::kWarp;
// Stages of a warp's ring: few leave L1 to x, many keep more bytes in flight if x would not fit
// there anyway. The smallest number is for devices with little shared memory. Results do not
// depend on it.
constexpr int kStagesFew = SKINNY_STAGES_FEW, kStagesShort = 4, kStagesLong = 6;
constexpr int kInputsShort = 4096;
// Number of tiles that leaves most SMs of a large device with at most one.
constexpr int kTilesFew = 132;
// Stride between two rows of sums; avoids bank conflicts of writes and reads.
constexpr int kSumStride = kTileOutputs + 4;
constexpr int shared_bytes(int warps, int stages) { return warps * stages * kStageBytes; }

// The two weight rows of a thread: tile rows lane / 4 and lane / 4 + 8.
template <int KIND>
__device__ __forceinline__ void weight_rows(const SkinnyParams &p, int lane, const uint16_t *(&rows)[2])
{
    const int g = lane >> 2;
#pragma unroll
    for (int half = 0; half < 2; ++half)
        rows[half] = p.weights + weight_row<KIND>(p, blockIdx.x, g + 8 * half) * p.inputs;
}

// Multiplies one 16-byte piece of each side: 32 inputs of the warp.
__device__ __forceinline__ void multiply_piece(float (&sum)[4], const uint4 &low, const uint4 &high, const uint4 &x)
{
    const uint32_t first[4] = {low.x, high.x, low.y, high.y};
    ss::mma(sum, first, x.x, x.y);
    const uint32_t second[4] = {low.z, high.z, low.w, high.w};
    ss::mma(sum, second, x.z, x.w);
}

// TILES: tiles of 8 rows of x.
template <int TILES, int KIND, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * ss::kWarp, kWarps == kWarpsMany ? 2 : 1)
    multiply(const __grid_constant__ SkinnyParams p)
{
    constexpr int kRows = 8 * TILES;
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ float sums[kWarps][kRows][kSumStride];
    __shared__ float scales[kRows];
    ss::let_next_start();
    const int warp = threadIdx.x / ss::kWarp, lane = threadIdx.x % ss::kWarp;
    const int stages = p.inputs / kStageInputs;
    const int share = (stages + kWarps - 1) / kWarps;
    const int begin = min(warp * share, stages), count = min(share, stages - begin);
    const int offset = begin * kStageInputs + (lane & 3) * 8;
    const uint16_t *weights[2];
    weight_rows<KIND>(p, lane, weights);
    uint8_t *ring = shared + warp * kStages * kStageBytes + lane * 16;

    const auto fetch = [&](int stage) {
        if (stage < count) {
            const uint32_t to = ss::shared_address(ring + (stage % kStages) * kStageBytes);
#pragma unroll
            for (int piece = 0; piece < kPieces; ++piece)
                ss::copy16(to + piece * 16 * ss::kWarp,
                                  weights[piece & 1] + offset + stage * kStageInputs + (piece >> 1) * 32, true);
        }
        ss::copies_commit();
    };
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
    // A thread's element of the tile, or pair of elements.
    const int element = threadIdx.x % kElements<KIND>, element_row = threadIdx.x / kElements<KIND>;
    Finish<KIND> finish(p, blockIdx.x, element, element_row);
    ss::wait_for_previous();
    finish.fetch(p);

    // The next stage of x is prefetched while one is multiplied.
    const auto load = [&](uint4(&x)[TILES][2], int stage) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int row = tile * 8 + (lane >> 2);
            const uint16_t *from = p.x + (int64_t)row * p.inputs + offset + stage * kStageInputs;
            const bool there = row < p.rows && stage < count;
#pragma unroll
            for (int half = 0; half < 2; ++half)
                x[tile][half] = there ? *reinterpret_cast<const uint4 *>(from + half * 32) : make_uint4(0, 0, 0, 0);
        }
    };
    uint4 ahead[TILES][2];
    load(ahead, 0);
    if (kScales<KIND>) put_scales<kRows, kWarps>(p, warp, lane, scales);
    finish.resolve(p);
    float sum[TILES][4] = {};
#pragma unroll 2
    for (int stage = 0; stage < count; ++stage) {
        uint4 x[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) x[tile][0] = ahead[tile][0], x[tile][1] = ahead[tile][1];
        load(ahead, stage + 1);
        ss::copies_wait<kStages - 2>();
        uint4 w[kPieces];
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece)
            w[piece] = *reinterpret_cast<const uint4 *>(ring + (stage % kStages) * kStageBytes + piece * 16 * ss::kWarp);
        fetch(stage + kStages - 1);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            multiply_piece(sum[tile], w[0], w[1], x[tile][0]);
            multiply_piece(sum[tile], w[2], w[3], x[tile][1]);
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sums[warp][tile * 8 + (lane & 3) * 2 + (i & 1)][(lane >> 2) + (i >> 1) * 8] = sum[tile][i];
    __syncthreads();
    if (warp * ss::kWarp / kElements<KIND> >= p.rows) return;  // whole warps
    const auto total = [&](int output) {
        float all = 0.f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) all += sums[w][element_row][output];
        return kScales<KIND> ? rounded<KIND>(all) * scales[element_row] : rounded<KIND>(all);
    };
    finish.store(p, total(element), kPairs<KIND> ? total(element + kHalfTile) : 0.f);
}

template <int TILES, int KIND, int WARPS, int STAGES> int launch_shape(const SkinnyParams &p, CUstream_st *stream)
{
    const auto kernel = multiply<TILES, KIND, WARPS, STAGES>;
    constexpr int kBytes = shared_bytes(WARPS, STAGES);
    static const bool fits = ss::fits_shared(kernel, kBytes);
    if constexpr (STAGES != kStagesFew)
        if (!fits || p.few_stages) return launch_shape<TILES, KIND, WARPS, kStagesFew>(p, stream);
    static const cudaError_t prepared = ss::allow_shared(kernel, kBytes);
    if (prepared != cudaSuccess) return (int)prepared;
    return ss::launch(kernel, dim3(tiles_of<KIND>(p)), dim3(WARPS * ss::kWarp), kBytes, stream, p);
}

// The number of warps depends on the matrix only, so that rows have the same bits in any batch.
template <int TILES, int KIND> int launch(const SkinnyParams &p, CUstream_st *stream)
{
    if (tiles_of<KIND>(p) <= kTilesFew && p.inputs >= kWarpsFew * kStageInputs)
        return launch_shape<TILES, KIND, kWarpsFew, kStagesShort>(p, stream);
    if (p.inputs <= kInputsShort) return launch_shape<TILES, KIND, kWarpsMany, kStagesShort>(p, stream);
    return launch_shape<TILES, KIND, kWarpsMany, kStagesLong>(p, stream);
}

template <int TILES> int launch_kind(const SkinnyParams &p, CUstream_st *stream)
{
    switch (p.kind) {
    case SKINNY_BF16: return launch<TILES, SKINNY_BF16>(p, stream);
    case SKINNY_F32: return launch<TILES, SKINNY_F32>(p, stream);
    case SKINNY_SWIGLU: return launch<TILES, SKINNY_SWIGLU>(p, stream);
    case SKINNY_RESIDUAL: return launch<TILES, SKINNY_RESIDUAL>(p, stream);
    case SKINNY_ADD_F32: return launch<TILES, SKINNY_ADD_F32>(p, stream);
    default: return launch<TILES, SKINNY_QKV>(p, stream);
    }
}

}  // namespace
}  // namespace skinny

extern "C" int specserve_skinny_gemm(const SkinnyParams *p, CUstream_st *stream)
{
    SS_REQUIRE(skinny::valid(*p));
    return p->rows <= 8 ? skinny::launch_kind<1>(*p, stream) : skinny::launch_kind<2>(*p, stream);
}
