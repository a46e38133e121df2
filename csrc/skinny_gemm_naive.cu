// Naive reference of skinny_gemm.cu: a thread computes whole products, one weight after the
// other, and their epilogues.
#include "skinny_finish.cuh"

namespace skinny {
namespace {

struct Naive {
    const SkinnyParams &p;
    int64_t row;
    float scale;

    __device__ Naive(const SkinnyParams &p, int64_t row) : p(p), row(row), scale(1.f)
    {
        if (!p.x_squares) return;
        const int count = p.inputs / SKINNY_SQUARES_WIDTH;
        float sum = 0.f;
        for (int i = 0; i < count; ++i) sum += p.x_squares[row * count + i];
        scale = rsqrtf(sum / static_cast<float>(p.inputs) + p.x_eps);
    }

    __device__ float product(int64_t weight_row) const
    {
        float sum = 0.f;
        for (int i = 0; i < p.inputs; ++i)
            sum = fmaf(bf16_of(p.weights[weight_row * p.inputs + i]), bf16_of(p.x[row * p.inputs + i]), sum);
        return (p.kind == SKINNY_F32 || p.kind == SKINNY_ADD_F32 ? sum : rounded<SKINNY_BF16>(sum)) * scale;
    }

    __device__ void residual(int64_t tile) const
    {
        float squares = 0.f;
        for (int64_t output = tile * kTileOutputs; output < (tile + 1) * kTileOutputs; ++output) {
            float &at = p.residual[row * p.outputs + output];
            at += product(output);
            squares += at * at;
            static_cast<ss::bf16 *>(p.y)[row * p.outputs + output] = __float2bfloat16(at * bf16_of(p.norm_weight[output]));
        }
        p.y_squares[row * (p.outputs / SKINNY_SQUARES_WIDTH) + tile] = squares;
    }

    __device__ void qkv(int64_t number) const
    {
        const int tile = static_cast<int>(number / kHalfTile), element = static_cast<int>(number % kHalfTile);
        const float low = product(weight_row<SKINNY_QKV>(p, tile, element));
        const float high = product(weight_row<SKINNY_QKV>(p, tile, element + kHalfTile));
        Finish<SKINNY_QKV> finish(p, tile, element, static_cast<int>(row));
        finish.resolve(p);
        finish.store(p, low, high);
    }
};

// Threads per row.
__host__ __device__ int per_row(const SkinnyParams &p)
{
    if (p.kind == SKINNY_RESIDUAL) return p.outputs / kTileOutputs;
    return p.kind == SKINNY_QKV ? p.outputs / 2 : p.outputs;
}

__global__ void multiply_naive(const __grid_constant__ SkinnyParams p)
{
    ss::wait_for_previous();
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t row = index / per_row(p), at = index % per_row(p);
    if (row >= p.rows) return;
    const Naive naive(p, row);
    if (p.kind == SKINNY_F32)
        static_cast<float *>(p.y)[index] = naive.product(at);
    else if (p.kind == SKINNY_ADD_F32)
        static_cast<float *>(p.y)[index] += naive.product(at);
    else if (p.kind == SKINNY_BF16)
        static_cast<ss::bf16 *>(p.y)[index] = __float2bfloat16(naive.product(at));
    else if (p.kind == SKINNY_SWIGLU)
        static_cast<ss::bf16 *>(p.y)[index] = __float2bfloat16(ss::silu(naive.product(at)) * naive.product(at + p.outputs));
    else if (p.kind == SKINNY_RESIDUAL)
        naive.residual(at);
    else
        naive.qkv(at);
}

}  // namespace
}  // namespace skinny

extern "C" int specserve_skinny_gemm_naive(const SkinnyParams *p, CUstream_st *stream)
{
    SS_REQUIRE(skinny::valid(*p));
    constexpr int kThreads = 256;
    const int64_t threads = static_cast<int64_t>(skinny::per_row(*p)) * p->rows;
    const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
    return ss::launch(skinny::multiply_naive, grid, dim3(kThreads), 0, stream, *p);
}
