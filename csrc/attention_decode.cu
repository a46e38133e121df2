// Paged attention for decode and verification: split over positions, one plan for all layers.
//
// Design. A work item is (query tile of 16 or 32 packed rows, chunk of positions, KV head).
// The four warps of a CTA each own every fourth KV block of the chunk and a private ring of
// cp.async stages, so they never wait for each other while they stream: block b goes to
// warp b % 4, by position. At the end of the item the warps' softmax states are merged in
// warp order. A tile with one chunk is done then; the others' chunks are merged, in chunk
// order, by a second kernel (attention_merge.cu). A persistent grid walks the items, so a
// captured launch serves any number of them.
//
// Bytes: keys and values once per query tile (2 * positions * kv_heads * head_dim * 2), the
// queries and the output; partial results are rows * chunks * head_dim * 8 and stay in L2.
// The ceiling is the copy bandwidth. Figures: docs/kernels.md.
#include "attention_core.cuh"
#include "common.cuh"

namespace attention {
namespace {

template <int HD> constexpr int STAGES = HD == 128 ? 3 : 4;
template <int HD> constexpr int BLOCK_BYTES = 2 * BLOCK * HD * 2;
// Row length of the merge buffer in floats: 8 more, so that rows start in different banks.
template <int HD> constexpr int MERGE_ROW = HD + 8;

template <int HD, int R> constexpr int ring_bytes() {
    constexpr int ring = WARPS * STAGES<HD> * BLOCK_BYTES<HD>;
    constexpr int merge = WARPS * R * 16 * MERGE_ROW<HD> * 4;
    return ring > merge ? ring : merge;
}
template <int HD, int R> constexpr int shared_bytes() { return R * 16 * HD * 2 + ring_bytes<HD, R>(); }

struct Work {
    AttentionItem item;
    int kv_head, group, row0, rows;
};

// Copies one KV block to a stage of the warp's ring; tokens from `tokens` on become zero,
// because what an unused slot holds may be a NaN.
template <int HD>
__device__ __forceinline__ void load_block(uint32_t stage, const uint16_t *from, int tokens, int lane) {
    constexpr int PIECES = HD / 8;
#pragma unroll
    for (int i = 0; i < 2 * BLOCK * PIECES / WARP; ++i) {
        const int e = i * WARP + lane, row = e / PIECES, piece = e % PIECES;
        copy16(stage + swizzled<HD>(row, piece), from + e * 8, (row & (BLOCK - 1)) < tokens);
    }
}

// Streams the warp's share of the chunk through its ring. `first` is a CTA's first item: its
// blocks that only hold earlier steps' tokens are fetched while the kernel before still runs.
template <int HD, int R>
__device__ __forceinline__ void stream(Accumulator<HD, R> &acc, const AttentionParams &p, const Work &work, bool first_item,
                                       uint8_t *q, uint8_t *ring_base, int warp, int lane) {
    constexpr int STAGE_COUNT = STAGES<HD>;
    const AttentionSegment &segment = work.item.segment;
    const int first = work.item.kv_begin / BLOCK + warp;
    const int end = (work.item.kv_end + BLOCK - 1) / BLOCK;
    const int count = end > first ? (end - first + WARPS - 1) / WARPS : 0;
    // Lane i holds the number of the warp's block i: a chunk has at most 32 * 4 blocks.
    const int id = lane < count ? p.tables[segment.table + first + lane * WARPS] : 0;
    const uint32_t ring = shared_address(ring_base) + warp * STAGE_COUNT * BLOCK_BYTES<HD>;
    auto fetch = [&](int i) {
        const int64_t block = __shfl_sync(~0u, id, i & (WARP - 1));
        if (i < count) {
            const uint16_t *from = p.kv + kv_block_offset(block, p.kv_heads, work.kv_head, HD);
            const int tokens = work.item.kv_end - (first + i * WARPS) * BLOCK;
            load_block<HD>(ring + (i % STAGE_COUNT) * BLOCK_BYTES<HD>, from, tokens, lane);
        }
        copies_commit();
    };
    const bool old = (first + (min(count, STAGE_COUNT - 1) - 1) * WARPS + 1) * BLOCK <= segment.start;
    if (first_item && !old) ss::wait_for_previous();
#pragma unroll
    for (int i = 0; i < STAGE_COUNT - 1; ++i) fetch(i);
    if (first_item && old) ss::wait_for_previous();

    load_queries<HD, R * 16>(q, p, segment, work.kv_head, work.group, work.row0, work.rows);
    uint64_t mask[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = r * 16 + h * 8 + (lane >> 2);
            mask[r][h] = row < work.rows ? p.masks[segment.first_row + (work.row0 + row) / work.group] : ~0ull;
        }
    __syncthreads();

    const uint32_t queries = shared_address(q);
    const float scale_log2 = p.scale * LOG2_E;
    const auto visible = [&](int r, int h, int position) {
        const int own = position - segment.start;
        return own < 0 || (own < ATTENTION_MASK_BITS && ((mask[r][h] >> own) & 1));
    };
    for (int i = 0; i < count; ++i) {
        copies_wait<STAGE_COUNT - 2>();
        __syncwarp();
        fetch(i + STAGE_COUNT - 1);
        const uint32_t keys = ring + (i % STAGE_COUNT) * BLOCK_BYTES<HD>;
        const int position = (first + i * WARPS) * BLOCK;
        attend<HD, R, 1>(acc, queries, keys, keys + BLOCK * HD * 2, scale_log2, position + BLOCK > segment.start,
                         position, visible, lane);
    }
    copies_wait<0>();
}

// Puts each warp's state where all threads can read it.
template <int HD, int R>
__device__ __forceinline__ void publish(const Accumulator<HD, R> &acc, float *merge, float2 (*stats)[R * 16], int warp,
                                        int lane) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = r * 16 + h * 8 + (lane >> 2);
            float *to = merge + (warp * R * 16 + row) * MERGE_ROW<HD> + (lane & 3) * 2;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n)
                *reinterpret_cast<float2 *>(to + n * 8) = make_float2(acc.out[r][n][2 * h], acc.out[r][n][2 * h + 1]);
            if ((lane & 3) == 0) stats[warp][row] = make_float2(acc.maximum[r][h], acc.sum[r][h]);
        }
}

__device__ __forceinline__ void write_output(uint16_t *to, float4 v, float sum) {
    const float inverse = sum == 0.f ? 0.f : 1.f / sum;
    *reinterpret_cast<uint2 *>(to) =
        make_uint2(pack(v.x * inverse, v.y * inverse), pack(v.z * inverse, v.w * inverse));
}

__device__ __forceinline__ void add_weighted(float4 &to, const float4 &v, float weight) {
    to.x = fmaf(v.x, weight, to.x);
    to.y = fmaf(v.y, weight, to.y);
    to.z = fmaf(v.z, weight, to.z);
    to.w = fmaf(v.w, weight, to.w);
}

// Merges the warps in warp order; writes the output, or this chunk's partial result.
template <int HD, int R>
__device__ __forceinline__ void merge_warps(const AttentionParams &p, const Work &work, const float *merge,
                                            const float2 (*stats)[R * 16]) {
    constexpr int COLUMNS = HD / 4;
    for (int e = threadIdx.x; e < work.rows * COLUMNS; e += THREADS) {
        const int row = e / COLUMNS, column = (e % COLUMNS) * 4;
        float maximum = -INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) maximum = fmaxf(maximum, stats[w][row].x);
        const float reference = maximum == -INFINITY ? 0.f : maximum;
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float weight = power_of_two(stats[w][row].x - reference);
            sum = fmaf(stats[w][row].y, weight, sum);
            add_weighted(out, *reinterpret_cast<const float4 *>(merge + (w * R * 16 + row) * MERGE_ROW<HD> + column),
                         weight);
        }
        if (work.item.chunks == 1) {
            write_output(output_row<HD>(p, work.item.segment, work.kv_head, work.group, work.row0 + row) + column, out, sum);
        } else {
            const int64_t slot = work.item.partial +
                                 ((int64_t)work.kv_head * work.item.chunks + work.item.chunk) * work.rows + row;
            __stcg(reinterpret_cast<float4 *>(p.partial_out + slot * HD + column), out);
            if (column == 0) __stcg(reinterpret_cast<float2 *>(p.partial_stats + slot * 2), make_float2(maximum, sum));
        }
    }
}

template <int HD, int R> __global__ void __launch_bounds__(THREADS, 2) decode(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float2 stats[WARPS][R * 16];
    uint8_t *ring = shared + R * 16 * HD * 2;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    ss::let_next_start();
    Work work;
    work.group = p.heads / p.kv_heads;
    // Before it is known whether there is one: its load overlaps that of the count.
    AttentionItem next = load_item(p.items + blockIdx.x / p.kv_heads);
    const int total = *p.item_count * p.kv_heads;
    if ((int)blockIdx.x >= total) ss::wait_for_previous();
    for (int w = blockIdx.x; w < total; w += gridDim.x) {
        work.item = next;
        work.kv_head = w % p.kv_heads;
        work.row0 = work.item.tile * R * 16;
        work.rows = min(R * 16, work.item.segment.queries * work.group - work.row0);
        if (w + (int)gridDim.x < total) next = load_item(p.items + (w + gridDim.x) / p.kv_heads);

        Accumulator<HD, R> acc;
        acc.clear();
        stream<HD, R>(acc, p, work, w == (int)blockIdx.x, shared, ring, warp, lane);
        acc.finish_sums();
        __syncthreads(); // the ring becomes the merge buffer
        publish<HD, R>(acc, reinterpret_cast<float *>(ring), stats, warp, lane);
        __syncthreads();
        merge_warps<HD, R>(p, work, reinterpret_cast<const float *>(ring), stats);
        __syncthreads(); // before the next item's copies land in the merge buffer
    }
}

template <int HD, int R> cudaError_t prepare() {
    return cudaFuncSetAttribute(decode<HD, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<HD, R>());
}

template <int HD, int R> int launch(const AttentionParams &p, int ctas, cudaStream_t stream) {
    static const cudaError_t prepared = prepare<HD, R>();
    if (prepared != cudaSuccess) return (int)prepared;
    return ss::launch(decode<HD, R>, dim3(ctas), dim3(THREADS), shared_bytes<HD, R>(), stream, p);
}

template <int HD, int R> int resident() {
    cudaError_t error = prepare<HD, R>();
    int device = 0, processors = 0, per_processor = 0;
    if (error == cudaSuccess) error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, decode<HD, R>, THREADS,
                                                              shared_bytes<HD, R>());
    return error == cudaSuccess ? processors * per_processor : -(int)error;
}

} // namespace
} // namespace attention

extern "C" int specserve_attention_decode(const AttentionParams *p, int large, int ctas, struct CUstream_st *stream) {
    using namespace attention;
    SS_REQUIRE(p->kv_heads > 0 && p->heads % p->kv_heads == 0 && ctas > 0);
    if (p->head_dim == 128) return large ? launch<128, 2>(*p, ctas, stream) : launch<128, 1>(*p, ctas, stream);
    if (p->head_dim == 64) return large ? launch<64, 2>(*p, ctas, stream) : launch<64, 1>(*p, ctas, stream);
    return (int)cudaErrorInvalidValue;
}

extern "C" int specserve_attention_decode_ctas(int head_dim, int large) {
    using namespace attention;
    if (head_dim == 128) return large ? resident<128, 2>() : resident<128, 1>();
    if (head_dim == 64) return large ? resident<64, 2>() : resident<64, 1>();
    return -(int)cudaErrorInvalidValue;
}
