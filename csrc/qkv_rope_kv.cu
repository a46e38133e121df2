// Epilogue of the fused QKV projection in one launch: scale of the preceding norm, bias,
// RMSNorm of query and key heads (if the model has it), rotary embedding, and the write of
// keys and values to the paged cache.
//
// Design: head_dim / 16 threads per (row, head). A thread owns eight numbers of the first
// half of the head and their partners in the second (half-split rotation), so the rotation
// needs no exchange, every access is 16 bytes, and the norm is a shuffle among the head's
// threads. Queries go back in place; keys and values go to the row's slot; slot -1 is
// padding. Cosines and sines come from an fp32 table that the host computes in fp64: at
// position 100,000 an fp32 angle would be off by up to 0.006.
//
// Bytes moved per row: 2 * 2 * (heads + 2 kv_heads) * head_dim, and 4 * head_dim of the
// table.
// Measured on an H100 80GB HBM3: 86 % of copy bandwidth at 4096 rows of an 8B Llama, 79 % at 1024
// (docs/kernels.md).
#include "common.cuh"
#include "kv_layout.cuh"

namespace ss {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = 8;

enum class Part { kQuery, kKey, kValue };

struct Head {
    Part part;
    int number;  // among the KV heads, for keys and values
};

__device__ __forceinline__ Head head_of(const QkvParams &p, int head)
{
    if (head < p.heads) return {Part::kQuery, head};
    head -= p.heads;
    if (head < p.kv_heads) return {Part::kKey, head};
    return {Part::kValue, head - p.kv_heads};
}

__device__ __forceinline__ void multiply(float (&values)[kPiece], float by)
{
#pragma unroll
    for (int i = 0; i < kPiece; ++i) values[i] *= by;
}

__device__ __forceinline__ void add_bias(float (&low)[kPiece], float (&high)[kPiece], const uint16_t *bias, int half)
{
    float more[kPiece];
    unpack(*reinterpret_cast<const Bf16x8 *>(bias), more);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) low[i] += more[i];
    unpack(*reinterpret_cast<const Bf16x8 *>(bias + half), more);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) high[i] += more[i];
}

// `lanes` neighbouring threads hold one head; all threads of the warp take part.
__device__ __forceinline__ void normalise(float (&low)[kPiece], float (&high)[kPiece], const uint16_t *weight,
                                          int half, int lanes, float eps)
{
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) squares += low[i] * low[i] + high[i] * high[i];
    for (int step = lanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(kFullMask, squares, step);
    if (!weight) return;
    const float scale = rsqrtf(squares / static_cast<float>(2 * half) + eps);
    float weights[kPiece];
    unpack(*reinterpret_cast<const Bf16x8 *>(weight), weights);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) low[i] *= scale * weights[i];
    unpack(*reinterpret_cast<const Bf16x8 *>(weight + half), weights);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) high[i] *= scale * weights[i];
}

__device__ __forceinline__ void rotate(float (&low)[kPiece], float (&high)[kPiece], const float *rotations)
{
#pragma unroll
    for (int i = 0; i < kPiece; i += 2) {
        // cosine and sine of two pairs
        const float4 turn = *reinterpret_cast<const float4 *>(rotations + 2 * i);
        const float a = low[i], b = low[i + 1];
        low[i] = a * turn.x - high[i] * turn.y;
        high[i] = high[i] * turn.x + a * turn.y;
        low[i + 1] = b * turn.z - high[i + 1] * turn.w;
        high[i + 1] = high[i + 1] * turn.z + b * turn.w;
    }
}

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) qkv_kernel(const QkvParams p)
{
    constexpr int kHalf = kHeadDim / 2;
    constexpr int kLanes = kHalf / kPiece;
    let_next_start();
    wait_for_previous();
    const int heads_all = p.heads + 2 * p.kv_heads;
    const int64_t item = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kLanes;
    const bool inside = item < static_cast<int64_t>(p.rows) * heads_all;
    const int row = inside ? static_cast<int>(item / heads_all) : 0;
    const int head_index = inside ? static_cast<int>(item % heads_all) : 0;
    const Head head = head_of(p, head_index);
    const int at = threadIdx.x % kLanes * kPiece;
    uint16_t *from = p.qkv + (static_cast<int64_t>(row) * heads_all + head_index) * kHeadDim + at;

    // All independent loads first, including those of padding rows.
    const Bf16x8 low_bits = *reinterpret_cast<const Bf16x8 *>(from);
    const Bf16x8 high_bits = *reinterpret_cast<const Bf16x8 *>(from + kHalf);
    const int slot = p.slots[row], position = p.positions[row];
    const float scale = p.scales ? p.scales[row] : 1.f;
    const bool active = inside && slot >= 0;
    float low[kPiece] = {}, high[kPiece] = {};
    if (active) {
        unpack(low_bits, low);
        unpack(high_bits, high);
        multiply(low, scale);
        multiply(high, scale);
        if (p.bias) add_bias(low, high, p.bias + head_index * kHeadDim + at, kHalf);
    }
    if (p.q_norm || p.k_norm) {
        const uint16_t *weight = head.part == Part::kQuery ? p.q_norm : head.part == Part::kKey ? p.k_norm : nullptr;
        normalise(low, high, weight ? weight + at : nullptr, kHalf, kLanes, p.eps);
    }
    if (!active) return;
    if (head.part != Part::kValue)
        rotate(low, high, p.rotations + (static_cast<int64_t>(position) * kHalf + at) * 2);
    uint16_t *to = from;
    if (head.part == Part::kKey) to = p.kv + kv_key_offset(slot, p.kv_heads, head.number, kHeadDim) + at;
    if (head.part == Part::kValue) to = p.kv + kv_value_offset(slot, p.kv_heads, head.number, kHeadDim) + at;
    *reinterpret_cast<Bf16x8 *>(to) = pack(low);
    *reinterpret_cast<Bf16x8 *>(to + kHalf) = pack(high);
}

__global__ void qkv_naive_kernel(const QkvParams p)
{
    const int heads_all = p.heads + 2 * p.kv_heads;
    const int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.rows * heads_all) return;
    const int row = item / heads_all, half = p.head_dim / 2;
    const int64_t slot = p.slots[row];
    if (slot < 0) return;
    const Head head = head_of(p, item % heads_all);
    bf16 *from = reinterpret_cast<bf16 *>(p.qkv) + static_cast<int64_t>(item) * p.head_dim;
    const bf16 *bias = reinterpret_cast<const bf16 *>(p.bias);
    auto value = [&](int i) {
        return __bfloat162float(from[i]) * (p.scales ? p.scales[row] : 1.f) + (bias ? __bfloat162float(bias[item % heads_all * p.head_dim + i]) : 0.f);
    };
    const bf16 *weight = reinterpret_cast<const bf16 *>(head.part == Part::kQuery ? p.q_norm
                                                        : head.part == Part::kKey ? p.k_norm
                                                                                  : nullptr);
    float scale = 1.f;
    if (weight) {
        float squares = 0.f;
        for (int i = 0; i < p.head_dim; ++i) squares += value(i) * value(i);
        scale = rsqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
    }
    bf16 *pool = reinterpret_cast<bf16 *>(p.kv);
    bf16 *to = head.part == Part::kQuery ? from
               : head.part == Part::kKey ? pool + kv_key_offset(slot, p.kv_heads, head.number, p.head_dim)
                                         : pool + kv_value_offset(slot, p.kv_heads, head.number, p.head_dim);
    for (int i = 0; i < half; ++i) {
        const float low = value(i) * (weight ? scale * __bfloat162float(weight[i]) : 1.f);
        const float high = value(i + half) * (weight ? scale * __bfloat162float(weight[i + half]) : 1.f);
        const float *turn = p.rotations + (static_cast<int64_t>(p.positions[row]) * half + i) * 2;
        const float cosine = head.part == Part::kValue ? 1.f : turn[0];
        const float sine = head.part == Part::kValue ? 0.f : turn[1];
        to[i] = __float2bfloat16(low * cosine - high * sine);
        to[i + half] = __float2bfloat16(high * cosine + low * sine);
    }
}

bool valid(const QkvParams *p)
{
    return p->rows >= 0 && p->heads >= 0 && p->kv_heads > 0 && (p->head_dim == 64 || p->head_dim == 128);
}

}  // namespace
}  // namespace ss

extern "C" int specserve_qkv(const QkvParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid(p));
    if (p->rows == 0) return 0;
    const int64_t threads = static_cast<int64_t>(p->rows) * (p->heads + 2 * p->kv_heads) * (p->head_dim / 16);
    const unsigned grid = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    return launch(p->head_dim == 64 ? qkv_kernel<64> : qkv_kernel<128>, grid, kThreads, 0, stream, *p);
}

extern "C" int specserve_qkv_naive(const QkvParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid(p));
    if (p->rows == 0) return 0;
    const int items = p->rows * (p->heads + 2 * p->kv_heads);
    ss::qkv_naive_kernel<<<ss::ceil_div(items, 64), 64, 0, stream>>>(*p);
    return static_cast<int>(cudaGetLastError());
}
