// Merges the decode kernel's partial results of a query tile's chunks (split-KV).
//
// Design. One warp per row and head: each lane reads one chunk's maximum and sum, the warp
// computes the weights, then every lane sums its columns in chunk order, eight chunks in flight.
// Merging in the decode kernel, by the last CTA to arrive, was tried first: that CTA reads up to
// 0.6 MB alone while the others are idle, 25 us of 50 at 8 queries x 8k.
//
// Bytes: rows * heads * chunks * head_dim * 4, from L2. Measurements: docs/kernels.md.
#include "attention_core.cuh"
#include "common.cuh"

namespace attention {
namespace {

constexpr int CTAS_PER_PROCESSOR = 4;
constexpr int IN_FLIGHT = 8;

// Columns of one lane.
template <int HD> struct Columns {
    float value[HD / WARP];

    __device__ __forceinline__ void load(const float *from) {
        if (HD == 128) {
            *reinterpret_cast<float4 *>(value) = __ldcg(reinterpret_cast<const float4 *>(from));
        } else {
            *reinterpret_cast<float2 *>(value) = __ldcg(reinterpret_cast<const float2 *>(from));
        }
    }
};

template <int HD> __device__ __forceinline__ void store(uint16_t *to, const Columns<HD> &out, float sum) {
    const float inverse = sum == 0.f ? 0.f : 1.f / sum;
#pragma unroll
    for (int i = 0; i < HD / WARP; i += 2)
        *reinterpret_cast<uint32_t *>(to + i) = pack(out.value[i] * inverse, out.value[i + 1] * inverse);
}

// Merges one row of one head; `stats` and `parts` are its first chunk's, `stride` rows apart.
template <int HD>
__device__ __forceinline__ void merge_row(const float2 *stats, const float *parts, int stride, int chunks, uint16_t *to,
                                          int lane) {
    float maximum = -INFINITY;
    for (int c = lane; c < chunks; c += WARP) maximum = fmaxf(maximum, __ldcg(stats + (int64_t)c * stride).x);
    const float reference = reference_of(ss::warp_max(maximum));

    Columns<HD> out = {};
    float sum = 0.f;
    for (int base = 0; base < chunks; base += IN_FLIGHT) {
        Columns<HD> part[IN_FLIGHT];
        float2 stat[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            const int64_t row = (int64_t)min(base + i, chunks - 1) * stride;
            stat[i] = __ldcg(stats + row);
            part[i].load(parts + row * HD + lane * (HD / WARP));
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            if (base + i >= chunks) break;
            const float weight = power_of_two(stat[i].x - reference);
            sum = fmaf(stat[i].y, weight, sum);
#pragma unroll
            for (int j = 0; j < HD / WARP; ++j) out.value[j] = fmaf(part[i].value[j], weight, out.value[j]);
        }
    }
    store<HD>(to + lane * (HD / WARP), out, sum);
}

template <int HD, int R> __global__ void __launch_bounds__(THREADS) merge(const __grid_constant__ AttentionParams p) {
    constexpr int ROWS = R * 16;
    ss::let_next_start();
    const int lane = threadIdx.x % WARP, group = p.heads / p.kv_heads;
    const int total = p.item_count[1] * p.kv_heads * ROWS;
    ss::wait_for_previous();
    for (int w = blockIdx.x * WARPS + threadIdx.x / WARP; w < total; w += gridDim.x * WARPS) {
        const int row = w % ROWS, kv_head = w / ROWS % p.kv_heads;
        const AttentionItem item = load_item(p.merges + w / ROWS / p.kv_heads);
        const int row0 = item.tile * ROWS, rows = min(ROWS, item.segment.queries * group - row0);
        if (row >= rows) continue;
        const int64_t first = item.partial + (int64_t)kv_head * item.chunks * rows + row;
        merge_row<HD>(reinterpret_cast<const float2 *>(p.partial_stats) + first, p.partial_out + first * HD, rows,
                      item.chunks, output_row<HD>(p, item.segment, kv_head, group, row0 + row), lane);
    }
}

template <int HD, int R> int launch(const AttentionParams &p, cudaStream_t stream) {
    return ss::launch(merge<HD, R>, dim3(CTAS_PER_PROCESSOR * ss::multiprocessors()), dim3(THREADS), 0, stream, p);
}

} // namespace
} // namespace attention

extern "C" int specserve_attention_merge(const AttentionParams *p, int large, CUstream_st *stream) {
    using namespace attention;
    SS_REQUIRE(p->kv_heads > 0 && p->heads % p->kv_heads == 0);
    if (p->head_dim == 128) return large ? launch<128, 2>(*p, stream) : launch<128, 1>(*p, stream);
    if (p->head_dim == 64) return large ? launch<64, 2>(*p, stream) : launch<64, 1>(*p, stream);
    return (int)cudaErrorInvalidValue;
}
