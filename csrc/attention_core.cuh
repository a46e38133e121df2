// Shared parts of the attention kernels: asynchronous copies, swizzled shared memory, and one
// flash-attention step on the tensor cores (mma.sync m16n8k16, bf16 in, fp32 out).
//
// Query rows are packed: row r of a tile is query r / group, head r % group of the group
// that shares one KV head. So keys and values are read once for all heads of a group and all
// queries of a segment.
//
// A row's result depends only on its query and the positions it attends to, in an order
// fixed by position. Other rows of the tile and masked positions do not affect its bits: a
// masked position multiplies by exactly 0, an unchanged maximum by exactly 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "async_copy.cuh"
#include "attention.h"
#include "common.cuh"
#include "kv_layout.cuh"
#include "mma.cuh"

namespace attention {

using ss::copies_commit;
using ss::copies_wait;
using ss::copy16;
using ss::load_matrices;
using ss::load_matrices_transposed;
using ss::mma;
using ss::pack;
using ss::power_of_two;
using ss::shared_address;

constexpr int WARP = 32;
constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int BLOCK = KV_BLOCK_TOKENS;
constexpr float LOG2_E = 1.4426950408889634f;

// Byte offset of a 16-byte piece in a tile of rows of HD bf16. The low three bits of the
// piece are exclusive-ored with the row, so that the eight rows of one 8x8 matrix lie in
// eight different groups of banks.
template <int HD> __device__ __forceinline__ uint32_t swizzled(int row, int piece) {
    return (uint32_t)(row * HD * 2 + ((piece ^ (row & 7)) << 4));
}

// Running softmax and output of R * 16 query rows in one warp. A thread holds rows
// lane / 4 and lane / 4 + 8 of each 16, columns (lane % 4) * 2 and + 1 of each 8.
template <int HD, int R> struct Accumulator {
    float out[R][HD / 8][4];
    float maximum[R][2]; // of the scaled scores, base 2
    float sum[R][2];     // this thread's columns only, until `finish_sums`

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int n = 0; n < HD / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[r][n][i] = 0.f;
            maximum[r][0] = maximum[r][1] = -INFINITY;
            sum[r][0] = sum[r][1] = 0.f;
        }
    }

    __device__ __forceinline__ void finish_sums() {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                sum[r][h] += __shfl_xor_sync(~0u, sum[r][h], 1);
                sum[r][h] += __shfl_xor_sync(~0u, sum[r][h], 2);
            }
    }
};

// Scores of R * 16 queries (shared memory at `q`) against 16 * B keys (rows at `k`).
template <int HD, int R, int B>
__device__ __forceinline__ void scores(float (&s)[R][2 * B][4], uint32_t q, uint32_t k, int lane) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int n = 0; n < 2 * B; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[r][n][i] = 0.f;
    const int q_row = lane & 15, q_piece = lane >> 4;
    const int k_row = (lane & 7) + ((lane >> 4) << 3), k_piece = (lane >> 3) & 1;
#pragma unroll
    for (int step = 0; step < HD / 16; ++step) {
        uint32_t a[R][4];
#pragma unroll
        for (int r = 0; r < R; ++r) load_matrices(a[r], q + swizzled<HD>(r * 16 + q_row, 2 * step + q_piece));
#pragma unroll
        for (int b = 0; b < B; ++b) {
            uint32_t keys[4];
            load_matrices(keys, k + swizzled<HD>(b * 16 + k_row, 2 * step + k_piece));
#pragma unroll
            for (int r = 0; r < R; ++r) {
                mma(s[r][2 * b], a[r], keys[0], keys[1]);
                mma(s[r][2 * b + 1], a[r], keys[2], keys[3]);
            }
        }
    }
}

// Turns scores into weights in place and rescales the accumulated output.
template <int HD, int R, int B>
__device__ __forceinline__ void soften(Accumulator<HD, R> &acc, float (&s)[R][2 * B][4], float scale_log2) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
        float shrink[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < 2 * B; ++n) top = fmaxf(top, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const float maximum = fmaxf(acc.maximum[r][h], top * scale_log2);
            // No visible position yet: any finite reference yields weights of exactly 0.
            const float reference = maximum == -INFINITY ? 0.f : maximum;
            shrink[h] = power_of_two(acc.maximum[r][h] - reference);
            acc.maximum[r][h] = maximum;
            float sum = 0.f;
#pragma unroll
            for (int n = 0; n < 2 * B; ++n)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; ++i) {
                    s[r][n][i] = power_of_two(fmaf(s[r][n][i], scale_log2, -reference));
                    sum += s[r][n][i];
                }
            acc.sum[r][h] = fmaf(acc.sum[r][h], shrink[h], sum);
        }
        if (__any_sync(~0u, shrink[0] != 1.f || shrink[1] != 1.f)) {
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
                acc.out[r][n][0] *= shrink[0];
                acc.out[r][n][1] *= shrink[0];
                acc.out[r][n][2] *= shrink[1];
                acc.out[r][n][3] *= shrink[1];
            }
        }
    }
}

// Accumulates the weighted values (rows at `v`).
template <int HD, int R, int B>
__device__ __forceinline__ void gather(Accumulator<HD, R> &acc, const float (&s)[R][2 * B][4], uint32_t v, int lane) {
    const int v_row = lane & 15, v_piece = lane >> 4;
#pragma unroll
    for (int b = 0; b < B; ++b) {
        uint32_t a[R][4];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            a[r][0] = pack(s[r][2 * b][0], s[r][2 * b][1]);
            a[r][1] = pack(s[r][2 * b][2], s[r][2 * b][3]);
            a[r][2] = pack(s[r][2 * b + 1][0], s[r][2 * b + 1][1]);
            a[r][3] = pack(s[r][2 * b + 1][2], s[r][2 * b + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < HD / 16; ++n) {
            uint32_t values[4];
            load_matrices_transposed(values, v + swizzled<HD>(b * 16 + v_row, 2 * n + v_piece));
#pragma unroll
            for (int r = 0; r < R; ++r) {
                mma(acc.out[r][2 * n], a[r], values[0], values[1]);
                mma(acc.out[r][2 * n + 1], a[r], values[2], values[3]);
            }
        }
    }
}

// One step over 16 * B positions starting at `position`. `visible(r, h, position)` tells whether
// the thread's row h of row tile r attends to a position; called only if `masked`.
template <int HD, int R, int B, class Visible>
__device__ __forceinline__ void attend(Accumulator<HD, R> &acc, uint32_t q, uint32_t k, uint32_t v, float scale_log2,
                                       bool masked, int position, const Visible &visible, int lane) {
    float s[R][2 * B][4];
    scores<HD, R, B>(s, q, k, lane);
    if (masked) {
        const int column = position + (lane & 3) * 2;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < 2 * B; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (!visible(r, i >> 1, column + n * 8 + (i & 1))) s[r][n][i] = -INFINITY;
    }
    soften<HD, R, B>(acc, s, scale_log2);
    gather<HD, R, B>(acc, s, v, lane);
}

// Copies packed query rows row0 .. row0 + ROWS to swizzled shared memory; rows from `rows`
// on are zero.
template <int HD, int ROWS>
__device__ __forceinline__ void load_queries(uint8_t *shared, const AttentionParams &p, const AttentionSegment &segment,
                                             int kv_head, int group, int row0, int rows) {
    constexpr int PIECES = HD / 8;
    for (int e = threadIdx.x; e < ROWS * PIECES; e += THREADS) {
        const int row = e / PIECES, piece = e % PIECES;
        uint4 data = make_uint4(0, 0, 0, 0);
        if (row < rows) {
            const int query = (row0 + row) / group, head = kv_head * group + (row0 + row) % group;
            const uint16_t *from = p.q + (int64_t)(segment.first_row + query) * p.q_stride + head * HD + piece * 8;
            data = *reinterpret_cast<const uint4 *>(from);
        }
        *reinterpret_cast<uint4 *>(shared + swizzled<HD>(row, piece)) = data;
    }
}

// Reads an item as three 16-byte pieces.
__device__ __forceinline__ AttentionItem load_item(const AttentionItem *from) {
    static_assert(sizeof(AttentionItem) == 48, "three pieces");
    union {
        int4 pieces[3];
        AttentionItem item;
    } loaded;
#pragma unroll
    for (int i = 0; i < 3; ++i) loaded.pieces[i] = reinterpret_cast<const int4 *>(from)[i];
    return loaded.item;
}

// Output address of packed row `row` of a segment.
template <int HD>
__device__ __forceinline__ uint16_t *output_row(const AttentionParams &p, const AttentionSegment &segment, int kv_head,
                                                int group, int row) {
    const int query = row / group, head = kv_head * group + row % group;
    return p.out + ((int64_t)(segment.first_row + query) * p.heads + head) * HD;
}

__device__ __forceinline__ float reference_of(float maximum) {
    // No visible position: any finite reference yields weights of exactly 0.
    return maximum == -INFINITY ? 0.f : maximum;
}

} // namespace attention
