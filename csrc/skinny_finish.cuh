// What becomes of the products of skinny_gemm.cu: one element of a tile a thread, or two of
// them where the kind pairs outputs. What an element's end needs from memory is fetched before
// or while the products are computed.
#pragma once

#include "common.cuh"
#include "kv_layout.cuh"
#include "skinny_gemm.h"

namespace skinny {

constexpr int kTileOutputs = SKINNY_OUTPUTS_MULTIPLE;
constexpr int kHalfTile = kTileOutputs / 2;

// Whether a thread takes two of a tile's outputs, half a tile apart.
template <int KIND> constexpr bool kPairs = KIND == SKINNY_SWIGLU || KIND == SKINNY_QKV;
// Threads for one row of a tile.
template <int KIND> constexpr int kElements = kPairs<KIND> ? kHalfTile : kTileOutputs;

template <int KIND> int tiles_of(const SkinnyParams &p)
{
    return p.outputs / (KIND == SKINNY_SWIGLU ? kHalfTile : kTileOutputs);
}

// Where the pair of a QKV tile lies: the numbers `column` and `column + head_dim / 2` of a head
// rotate together.
struct HeadPair {
    int head, column;
};

__device__ __forceinline__ HeadPair head_pair(const SkinnyParams &p, int tile, int element)
{
    const int tiles = p.qkv.head_dim / kTileOutputs;
    return {tile / tiles, tile % tiles * kHalfTile + element};
}

// The weight row behind row `row` of a tile.
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

// As csrc/swiglu.cu, bit for bit: both factors are rounded to bf16 before.
__device__ __forceinline__ ss::bf16 swiglu(float gate, float up)
{
    const float rounded = __bfloat162float(__float2bfloat16(gate));
    return __float2bfloat16(ss::silu(rounded) * __bfloat162float(__float2bfloat16(up)));
}

__device__ __forceinline__ float bf16_at(const uint16_t *from)
{
    return __bfloat162float(*reinterpret_cast<const ss::bf16 *>(from));
}

// What ends a thread's element of a row. The constructor reads what no kernel of the pass
// writes, `fetch` what earlier ones wrote; all threads of a warp call each.
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

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float second)
    {
        if (!active) return;
        if (KIND == SKINNY_F32)
            static_cast<float *>(p.y)[at] = first;
        else
            static_cast<ss::bf16 *>(p.y)[at] = KIND == SKINNY_SWIGLU ? swiglu(first, second) : __float2bfloat16(first);
    }
};

// Adds to the residual stream; the next norm's weight and sum of squares.
template <> class Finish<SKINNY_RESIDUAL>
{
    int64_t at, square_at;
    bool active, sums;
    float weight = 0.f, before = 0.f;

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
        : at(static_cast<int64_t>(row) * p.outputs + tile * kTileOutputs + element),
          square_at(static_cast<int64_t>(row) * (p.outputs / SKINNY_SQUARES_WIDTH) + tile), active(row < p.rows),
          sums(active && element == 0)
    {
        if (active) weight = bf16_at(p.norm_weight + tile * kTileOutputs + element);
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &p)
    {
        if (active) before = __ldcg(p.residual + at);
    }

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float)
    {
        const float residual = active ? before + first : 0.f;
        float square = residual * residual;
        // Among the 16 neighbours that hold a tile's row, in a fixed order.
#pragma unroll
        for (int step = kTileOutputs / 2; step > 0; step /= 2) square += __shfl_xor_sync(ss::kFullMask, square, step);
        if (!active) return;
        p.residual[at] = residual;
        static_cast<ss::bf16 *>(p.y)[at] = __float2bfloat16(residual * weight);
        if (sums) p.y_squares[square_at] = square;
    }
};

// Bias and rotation of a pair; queries to y, keys and values to their slot.
template <> class Finish<SKINNY_QKV>
{
    uint16_t *to = nullptr;  // null: padding
    float2 turn = {1.f, 0.f};  // cosine and sine; values are not turned
    float bias[2] = {};

  public:
    __device__ __forceinline__ Finish(const SkinnyParams &p, int tile, int element, int row)
    {
        const QkvParams &q = p.qkv;
        const int slot = row < p.rows ? q.slots[row] : -1;
        if (slot < 0) return;
        const int half = q.head_dim / 2;
        const HeadPair pair = head_pair(p, tile, element);
        if (q.bias) {
            bias[0] = bf16_at(q.bias + pair.head * q.head_dim + pair.column);
            bias[1] = bf16_at(q.bias + pair.head * q.head_dim + pair.column + half);
        }
        const int key_head = pair.head - q.heads, value_head = key_head - q.kv_heads;
        if (value_head < 0)
            turn = reinterpret_cast<const float2 *>(q.rotations)[static_cast<int64_t>(q.positions[row]) * half + pair.column];
        if (key_head < 0)
            to = static_cast<uint16_t *>(p.y) + static_cast<int64_t>(row) * p.outputs + pair.head * q.head_dim;
        else if (value_head < 0)
            to = q.kv + kv_key_offset(slot, q.kv_heads, key_head, q.head_dim);
        else
            to = q.kv + kv_value_offset(slot, q.kv_heads, value_head, q.head_dim);
        to += pair.column;
    }

    __device__ __forceinline__ void fetch(const SkinnyParams &) {}

    __device__ __forceinline__ void store(const SkinnyParams &p, float first, float second)
    {
        if (!to) return;
        const float low = first + bias[0], high = second + bias[1];
        ss::bf16 *out = reinterpret_cast<ss::bf16 *>(to);
        out[0] = __float2bfloat16(low * turn.x - high * turn.y);
        out[p.qkv.head_dim / 2] = __float2bfloat16(high * turn.x + low * turn.y);
    }
};

// What the products of each row are multiplied by: 1, or one over x's root mean square before
// the norm's weight. A warp sums a row's squares, in an order fixed by the row's length.
template <int ROWS, int WARPS> class RowScales
{
    static constexpr int kRows = (ROWS + WARPS - 1) / WARPS;
    // Sums of a row that a lane holds while the product is computed: all, up to 4,096 inputs.
    static constexpr int kHeld = 8;
    float held[kRows][kHeld];

    static __device__ __forceinline__ float sum_at(const SkinnyParams &p, int row, int at)
    {
        const int count = p.inputs / SKINNY_SQUARES_WIDTH;
        return row < p.rows && at < count ? __ldcg(p.x_squares + static_cast<int64_t>(row) * count + at) : 0.f;
    }

  public:
    __device__ __forceinline__ RowScales(const SkinnyParams &p, int warp, int lane)
    {
        if (!p.x_squares) return;
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int i = 0; i < kHeld; ++i) held[r][i] = sum_at(p, warp + r * WARPS, i * ss::kWarp + lane);
    }

    // Before the barrier behind which the scales are read.
    __device__ __forceinline__ void put(const SkinnyParams &p, int warp, int lane, float (&scales)[ROWS]) const
    {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const int row = warp + r * WARPS;
            if (row >= ROWS) continue;
            float scale = 1.f;
            if (p.x_squares) {
                float sum = 0.f;
#pragma unroll
                for (int i = 0; i < kHeld; ++i) sum += held[r][i];
                for (int at = kHeld * ss::kWarp + lane; at < p.inputs / SKINNY_SQUARES_WIDTH; at += ss::kWarp)
                    sum += sum_at(p, row, at);
                scale = rsqrtf(ss::warp_sum(sum) / static_cast<float>(p.inputs) + p.x_eps);
            }
            if (lane == 0) scales[row] = scale;
        }
    }
};

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
           p.kind >= SKINNY_BF16 && p.kind <= SKINNY_QKV && (p.kind != SKINNY_QKV || valid_qkv(p));
}

}  // namespace skinny
