// SwiGLU: silu(gate) * up, both multiplied by the row's scale of the preceding norm.
//
// Design: 2-D grid, rows by pieces of a row, so that even a single row fills the SMs. A thread
// reads 16 bytes of gate and of up and writes 16 bytes.
//
// Bytes moved per row of width w: 4w read, 2w written.
// Measured on an H100 80GB HBM3: 99 % of copy bandwidth at 4096 x 14336, 82 % at 256 rows
// (docs/kernels.md).
#include "common.cuh"

namespace ss {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 8;
// CTAs per SM, by its number of threads; devices of capability 8.6 to 8.9 and 12 have fewer.
#if defined(__CUDA_ARCH__) && ((__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1200)
constexpr int kThreadsResident = 1536;
#else
constexpr int kThreadsResident = 2048;
#endif
constexpr int kResident = kThreadsResident / kThreads;

__global__ void __launch_bounds__(kThreads, kResident) swiglu_kernel(const SwigluParams p)
{
    let_next_start();
    wait_for_previous();
    const int at = (blockIdx.x * kThreads + threadIdx.x) * kPiece;
    if (at >= p.width) return;
    for (int row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const uint16_t *from = p.gate_up + static_cast<int64_t>(row) * 2 * p.width + at;
        const float scale = p.scales ? p.scales[row] : 1.f;
        const uint4 gate_bits = load_streaming(reinterpret_cast<const uint4 *>(from));
        const uint4 up_bits = load_streaming(reinterpret_cast<const uint4 *>(from + p.width));
        Bf16x8 out;
#pragma unroll
        for (int i = 0; i < kPiece / 2; ++i) {
            const float2 gate = __bfloat1622float2(reinterpret_cast<const Bf16x8 &>(gate_bits).pair[i]);
            const float2 up = __bfloat1622float2(reinterpret_cast<const Bf16x8 &>(up_bits).pair[i]);
            out.pair[i] = __floats2bfloat162_rn(silu(gate.x * scale) * (up.x * scale), silu(gate.y * scale) * (up.y * scale));
        }
        *reinterpret_cast<Bf16x8 *>(p.out + static_cast<int64_t>(row) * p.width + at) = out;
    }
}

__global__ void swiglu_naive_kernel(const SwigluParams p)
{
    const int64_t at = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (at >= static_cast<int64_t>(p.rows) * p.width) return;
    const int64_t row = at / p.width, column = at % p.width;
    const bf16 *gate = reinterpret_cast<const bf16 *>(p.gate_up) + row * 2 * p.width + column;
    const float scale = p.scales ? p.scales[row] : 1.f;
    const float value = silu(__bfloat162float(gate[0]) * scale) * (__bfloat162float(gate[p.width]) * scale);
    reinterpret_cast<bf16 *>(p.out)[at] = __float2bfloat16(value);
}

bool valid(const SwigluParams *p) { return p->width > 0 && p->width % kPiece == 0 && p->rows >= 0; }

}  // namespace
}  // namespace ss

extern "C" int specserve_swiglu(const SwigluParams *p, CUstream_st *stream)
{
    using namespace ss;
    constexpr int kGridRowsMax = 65535;
    SS_REQUIRE(valid(p));
    if (p->rows == 0) return 0;
    const dim3 grid(ceil_div(p->width, kThreads * kPiece), p->rows < kGridRowsMax ? p->rows : kGridRowsMax);
    return launch(swiglu_kernel, grid, kThreads, 0, stream, *p);
}

extern "C" int specserve_swiglu_naive(const SwigluParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid(p));
    if (p->rows == 0) return 0;
    const int64_t numbers = static_cast<int64_t>(p->rows) * p->width;
    ss::swiglu_naive_kernel<<<static_cast<unsigned>((numbers + 255) / 256), 256, 0, stream>>>(*p);
    return static_cast<int>(cudaGetLastError());
}
