// Epilogues of skinny_gemm.cu: one element of a tile per thread, or two if the kind pairs
// outputs. Memory operands of the epilogue are fetched before or during the products.
#pragma once

#include "common.cuh"
#include "kv_layout.cuh"
#include "skinny_gemm.h"

namespace skinny {

constexpr int kTileOutputs = SKINNY_OUTPUTS_MULTIPLE;
constexpr int kHalfTile = kTileOutputs / 2;

// Whether a thread handles two outputs of a tile, half a tile apart.
template <int KIND> constexpr bool kPairs = KIND == SKINNY_SWIGLU || KIND == SKINNY_QKV;
// Whether products may be multiplied by the scale of the preceding norm. Other kinds do not pay
// for the option.
template <int KIND> constexpr bool kScales = KIND == SKINNY_SWIGLU || KIND == SKINNY_QKV;
// Threads per row of a tile.
template <int KIND> constexpr int kElements = kPairs<KIND> ? kHalfTile : kTileOutputs;

template <int KIND> int tiles_of(const SkinnyParams &p)
{
    return p.outputs / (KIND == SKINNY_SWIGLU ? kHalfTile : kTileOutputs);
}

// Location of a pair of a QKV tile: elements `column` and `column + head_dim / 2` of a head
// rotate together.
struct HeadPair {
    int head, column;
};

__device__ __forceinline__ HeadPair head_pair(const SkinnyParams &p, int tile, int element)
{
    const int tiles = p.qkv.head_dim / kTileOutputs;
    return {tile / tiles, tile % tiles * kHalfTile + element};
}

// Weight row of row `row` of a tile.
template <int KIND> __device__ __forceinline__ int64_t weight_row(const SkinnyParams &p, int tile, int row)
{
    const int low = row % kHalfTile;
    if (KIND == SKINNY_SWIGLU)
        return static_cast<int64_t>(tile) * kHalfTile + low + (row < kHalfTile ? 0 : p.outputs);
    if (KIND == SKINNY_QKV) {
        const HeadPair pair = head_pair(p, tile, low);
        return static_cast<int64_t>(pair.head) * p.qkv.head_dim + pair.column + (row < kHalfTile ? 0 : p.qkv.head_dim / 2);
    }
    return static_cast<int64_t>(tile) * kTileOutputs + row;
}

// A sum of products, rounded as if stored to memory.
template <int KIND> __device__ __forceinline__ float rounded(float sum)
{
    return KIND == SKINNY_F32 || KIND == SKINNY_ADD_F32 ? sum : __bfloat162float(__float2bfloat16(sum));
}

__device__ __forceinline__ float bf16_of(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Epilogue of a thread's element. The constructor loads what no kernel of the pass writes,
// `fetch` loads what earlier kernels wrote, and `resolve`, a little later, loads through
// fetched indices; no load blocks an earlier one. Each is called by all threads of a warp.
template <int KIND> class Finish
{
    int64_t at;
    bool active;

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
        : at(static_cast<int64_t>(row) * p.outputs + tile * kElements<KIND> + element), active(row < p.rows)
    {
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &) {}
    __device__ __forceinline__ void resolve(const SkinnyParams &) {}

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float second)
    {
        if (!active) return;
        if (KIND == SKINNY_F32)
            static_cast<float *>(p.y)[at] = first;
        else
            static_cast<ss::bf16 *>(p.y)[at] = __float2bfloat16(KIND == SKINNY_SWIGLU ? ss::silu(first) * second : first);
    }
};

// Adds to what is there.
template <> class Finish<SKINNY_ADD_F32>
{
    int64_t at;
    bool active;
    float before = 0.f;

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
        : at(static_cast<int64_t>(row) * p.outputs + tile * kTileOutputs + element), active(row < p.rows)
    {
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &p)
    {
        if (active) before = __ldcg(static_cast<const float *>(p.y) + at);
    }

    __device__ __forceinline__ void resolve(const SkinnyParams &) {}

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float)
    {
        if (active) static_cast<float *>(p.y)[at] = before + first;
    }
};

// Adds to the residual stream; applies the next norm's weight and sums the squares.
template <> class Finish<SKINNY_RESIDUAL>
{
    int64_t at, square_at;
    bool active, sums;
    uint16_t weight = 0;
    float before = 0.f;

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
        : at(static_cast<int64_t>(row) * p.outputs + tile * kTileOutputs + element),
          square_at(static_cast<int64_t>(row) * (p.outputs / SKINNY_SQUARES_WIDTH) + tile), active(row < p.rows),
          sums(active && element == 0)
    {
        if (active) weight = p.norm_weight[tile * kTileOutputs + element];
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &p)
    {
        if (active) before = __ldcg(p.residual + at);
    }

    __device__ __forceinline__ void resolve(const SkinnyParams &) {}

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float)
    {
        const float residual = active ? before + first : 0.f;
        float square = residual * residual;
        // Reduces over the 16 neighbouring lanes that hold a tile's row, in a fixed order.
#pragma unroll
        for (int step = kTileOutputs / 2; step > 0; step /= 2) square += __shfl_xor_sync(ss::kFullMask, square, step);
        if (!active) return;
        p.residual[at] = residual;
        static_cast<ss::bf16 *>(p.y)[at] = __float2bfloat16(residual * bf16_of(weight));
        if (sums) p.y_squares[square_at] = square;
    }
};

// Adds bias and rotates a pair; writes queries to y, keys and values to their slot.
template <> class Finish<SKINNY_QKV>
{
    HeadPair pair;
    int row, slot = -1, position = 0;  // slot -1: padding, or no row
    uint16_t bias[2] = {};
    float2 turn = {1.f, 0.f};  // cosine and sine; values are not turned

    __device__ __forceinline__ uint16_t *destination(const SkinnyParams &p) const
    {
        const QkvParams &q = p.qkv;
        const int key_head = pair.head - q.heads, value_head = key_head - q.kv_heads;
        if (key_head < 0)
            return static_cast<uint16_t *>(p.y) + static_cast<int64_t>(row) * p.outputs + pair.head * q.head_dim;
        if (value_head < 0) return q.kv + kv_key_offset(slot, q.kv_heads, key_head, q.head_dim);
        return q.kv + kv_value_offset(slot, q.kv_heads, value_head, q.head_dim);
    }

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
        : pair(head_pair(p, tile, element)), row(row)
    {
        if (row >= p.rows) return;
        const QkvParams &q = p.qkv;
        slot = q.slots[row];
        position = q.positions[row];
        if (!q.bias) return;
        const uint16_t *low = q.bias + pair.head * q.head_dim + pair.column;
        bias[0] = low[0];
        bias[1] = low[q.head_dim / 2];
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &) {}

    __device__ __forceinline__ void resolve(const SkinnyParams &p)
    {
        const QkvParams &q = p.qkv;
        if (slot < 0 || pair.head >= q.heads + q.kv_heads) return;
        const int64_t at = static_cast<int64_t>(position) * (q.head_dim / 2) + pair.column;
        turn = reinterpret_cast<const float2 *>(q.rotations)[at];
    }

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float second)
    {
        if (slot < 0) return;
        const float low = first + bf16_of(bias[0]), high = second + bf16_of(bias[1]);
        ss::bf16 *to = reinterpret_cast<ss::bf16 *>(destination(p)) + pair.column;
        to[0] = __float2bfloat16(low * turn.x - high * turn.y);
        to[p.qkv.head_dim / 2] = __float2bfloat16(high * turn.x + low * turn.y);
    }
};

// Factor on the products of each row: 1, or the scale of the preceding norm. A warp sums a
// row's squares, in an order fixed by the row's length.
template <int ROWS, int WARPS>
__device__ __forceinline__ void put_scales(const SkinnyParams &p, int warp, int lane, float (&scales)[ROWS])
{
    const int count = p.inputs / SKINNY_SQUARES_WIDTH;
#pragma unroll
    for (int row = warp; row < ROWS; row += WARPS) {
        float scale = 1.f;
        if (p.x_squares && row < p.rows) {
            float sum = 0.f;
#pragma unroll 8
            for (int at = lane; at < count; at += ss::kWarp)
                sum += __ldcg(p.x_squares + static_cast<int64_t>(row) * count + at);
            scale = rsqrtf(ss::warp_sum(sum) / static_cast<float>(p.inputs) + p.x_eps);
        }
        if (lane == 0) scales[row] = scale;
    }
}

inline bool valid_qkv(const SkinnyParams &p)
{
    const QkvParams &q = p.qkv;
    return (q.head_dim == 64 || q.head_dim == 128) && q.heads > 0 && q.kv_heads > 0 &&
           p.outputs == (q.heads + 2 * q.kv_heads) * q.head_dim && !q.q_norm && !q.k_norm;
}

inline bool valid(const SkinnyParams &p)
{
    return p.outputs > 0 && p.outputs % SKINNY_OUTPUTS_MULTIPLE == 0 && p.inputs > 0 &&
           p.inputs % SKINNY_INPUTS_MULTIPLE == 0 && p.rows > 0 && p.rows <= SKINNY_ROWS_MAX &&
           p.kind >= SKINNY_BF16 && p.kind <= SKINNY_ADD_F32 &&
           (!p.x_squares || p.kind == SKINNY_SWIGLU || p.kind == SKINNY_QKV) && (p.kind != SKINNY_QKV || valid_qkv(p));
}

}  // namespace skinny
