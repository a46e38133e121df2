// Paged attention for decode and verification: split-KV, with one plan for all layers.
//
// Design. A work item is (query tile of 16 or 32 packed rows, chunk of positions, KV head).
// The four warps of a CTA each own every fourth KV block of the chunk and a private ring of
// cp.async stages, so they never synchronise while streaming: block b goes to warp b % 4, by
// position. At the end of the item the warps' softmax states are merged in warp order. A tile
// with a single chunk is then complete; chunks of other tiles are merged, in chunk order, by a
// second kernel (attention_merge.cu). A persistent grid walks the items, so a captured launch
// serves any number of them. The next item's first blocks are prefetched during the merge.
//
// Bytes: keys and values once per query tile (2 * positions * kv_heads * head_dim * 2), the
// queries and the output; partial results are rows * chunks * head_dim * 8 and stay in L2.
// The roofline is the copy bandwidth. Measurements: docs/kernels.md.
#include "attention_core.cuh"
#include "common.cuh"

namespace attention {
namespace {

// Stages of a warp's ring: as many as help, and fewer on devices with less shared memory (100 KB
// per SM on compute capability 8.9). Results do not depend on it.
template <int HD> constexpr int STAGES_MANY = HD == 128 ? 3 : 4;
constexpr int STAGES_FEW = 2;

template <int HD> constexpr int BLOCK_BYTES = 2 * BLOCK * HD * 2;
// Bytes of a warp's ring, and of the CTA's remaining shared memory.
template <int HD, int S> constexpr int RING_BYTES = S * BLOCK_BYTES<HD>;
template <int HD, int R, int S> constexpr int shared_bytes() { return R * 16 * HD * 2 + WARPS * RING_BYTES<HD, S>; }

// At the end of an item a warp's output goes to the last R stages of its ring, where it fits
// exactly. Meanwhile the remaining first stages already receive the next item's blocks.
template <int R, int S> constexpr int MERGE_STAGE = S - R;
static_assert(16 * 128 * 4 == BLOCK_BYTES<128> && 16 * 64 * 4 == BLOCK_BYTES<64>, "one row tile is one stage");

// Index of a column in a row of the merge buffer; rows start in different banks.
__device__ __forceinline__ int merge_column(int row, int column) { return column ^ ((row & 7) * 8); }

struct Work {
    AttentionItem item;
    int kv_head, group, row0, rows;
};

// The blocks of an item that a warp owns.
struct Feed {
    int first, count;
    int id; // lane i holds the id of block i: a chunk has at most 32 * 4 blocks
    uint64_t path; // of a gathered item, the slots of its positions from segment.start on; else 0
};

// Copies one KV block to a stage of the warp's ring. Tokens from `tokens` on are zeroed,
// because unused slots may hold NaNs.
template <int HD>
__device__ __forceinline__ void load_block(uint32_t stage, const uint16_t *from, int tokens, int lane) {
    constexpr int PIECES = HD / 8;
#pragma unroll
    for (int i = 0; i < 2 * BLOCK * PIECES / WARP; ++i) {
        const int e = i * WARP + lane, row = e / PIECES, piece = e % PIECES;
        copy16(stage + swizzled<HD>(row, piece), from + e * 8, (row & (BLOCK - 1)) < tokens);
    }
}

// Index of the n-th set bit, from 0; -1 if there are fewer.
__device__ __forceinline__ int nth_bit(uint64_t bits, int n) {
    for (; n > 0; --n) bits &= bits - 1;
    return __ffsll((long long)bits) - 1;
}

// Copies 16 positions from `first` on, each from its slot on the path, like `load_block`.
template <int HD>
__device__ __forceinline__ void load_gathered(uint32_t stage, const AttentionParams &p, const AttentionItem &item,
                                              uint64_t path, int first, int kv_head, int lane) {
    constexpr int PIECES = HD / 8;
    const AttentionSegment &segment = item.segment;
    const int position = first + (lane & (BLOCK - 1)), own = position - segment.start;
    int64_t key = 0;
    if (position < item.kv_end) {
        const int slot = own < 0 ? position : segment.start + nth_bit(path, own);
        const int64_t block = p.tables[segment.table + slot / BLOCK];
        key = kv_key_offset(block * BLOCK + slot % BLOCK, p.kv_heads, kv_head, HD);
    }
#pragma unroll
    for (int i = 0; i < 2 * BLOCK * PIECES / WARP; ++i) {
        const int e = i * WARP + lane, row = e / PIECES, piece = e % PIECES, token = row & (BLOCK - 1);
        const int64_t from = __shfl_sync(~0u, key, token) + (row < BLOCK ? 0 : BLOCK * HD);
        copy16(stage + swizzled<HD>(row, piece), p.kv + from + piece * 8, first + token < item.kv_end);
    }
}

__device__ __forceinline__ Feed open_feed(const AttentionParams &p, const AttentionItem &item, int warp, int lane) {
    Feed feed;
    feed.first = item.kv_begin / BLOCK + warp;
    const int end = (item.kv_end + BLOCK - 1) / BLOCK;
    feed.count = end > feed.first ? (end - feed.first + WARPS - 1) / WARPS : 0;
    feed.id = lane < feed.count ? p.tables[item.segment.table + feed.first + lane * WARPS] : 0;
    feed.path = item.gathered ? p.masks[item.segment.first_row + item.segment.queries - 1] : 0;
    return feed;
}

// Fetches the feed's block `i`, if it exists; always commits one copy group.
template <int HD, int S>
__device__ __forceinline__ void fetch(const AttentionParams &p, const Feed &feed, const AttentionItem &item, int kv_head,
                                      uint32_t ring, int i, int lane) {
    const int64_t block = __shfl_sync(~0u, feed.id, i & (WARP - 1));
    if (i < feed.count) {
        const int first = (feed.first + i * WARPS) * BLOCK;
        const uint32_t stage = ring + (i % S) * BLOCK_BYTES<HD>;
        if (feed.path != 0 && first + BLOCK > item.segment.start) {
            load_gathered<HD>(stage, p, item, feed.path, first, kv_head, lane);
        } else {
            load_block<HD>(stage, p.kv + kv_block_offset(block, p.kv_heads, kv_head, HD), item.kv_end - first, lane);
        }
    }
    copies_commit();
}

// Whether the blocks of the first stages hold only tokens of earlier steps.
template <int S> __device__ __forceinline__ bool starts_old(const Feed &feed, const AttentionSegment &segment) {
    return (feed.first + (min(feed.count, S - 1) - 1) * WARPS + 1) * BLOCK <= segment.start;
}

// Streams the warp's share of the chunk through its ring; the first stages are already in flight.
template <int HD, int R, int S>
__device__ __forceinline__ void stream(Accumulator<HD, R> &acc, const AttentionParams &p, const Work &work,
                                       const Feed &feed, uint8_t *q, uint32_t ring, int lane) {
    const AttentionSegment &segment = work.item.segment;
    load_queries<HD, R * 16>(q, p, segment, work.kv_head, work.group, work.row0, work.rows);
    uint64_t mask[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = r * 16 + h * 8 + (lane >> 2);
            mask[r][h] = row < work.rows ? p.masks[segment.first_row + (work.row0 + row) / work.group] : ~0ull;
            // in the order of the text, what a query sees is a chain
            if (work.item.gathered) mask[r][h] = ~0ull >> (ATTENTION_MASK_BITS - __popcll(mask[r][h]));
        }
    __syncthreads();

    const uint32_t queries = shared_address(q);
    const float scale_log2 = p.scale * LOG2_E;
    const auto visible = [&](int r, int h, int position) {
        const int own = position - segment.start;
        return own < 0 || (own < ATTENTION_MASK_BITS && ((mask[r][h] >> own) & 1));
    };
    for (int i = 0; i < feed.count; ++i) {
        copies_wait<S - 2>();
        __syncwarp();
        fetch<HD, S>(p, feed, work.item, work.kv_head, ring, i + S - 1, lane);
        const uint32_t keys = ring + (i % S) * BLOCK_BYTES<HD>;
        const int position = (feed.first + i * WARPS) * BLOCK;
        attend<HD, R, 1>(acc, queries, keys, keys + BLOCK * HD * 2, scale_log2, position + BLOCK > segment.start,
                         position, visible, lane);
    }
    __syncwarp();
}

// Address of a warp's output row between `publish` and the merge.
template <int HD, int R, int S> __device__ __forceinline__ float *merge_row(uint8_t *rings, int warp, int row) {
    uint8_t *buffer = rings + warp * RING_BYTES<HD, S> + MERGE_STAGE<R, S> * BLOCK_BYTES<HD>;
    return reinterpret_cast<float *>(buffer) + row * HD;
}

// Writes each warp's state to shared memory.
template <int HD, int R, int S>
__device__ __forceinline__ void publish(const Accumulator<HD, R> &acc, uint8_t *rings, float2 (*stats)[R * 16], int warp,
                                        int lane) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = r * 16 + h * 8 + (lane >> 2);
            float *to = merge_row<HD, R, S>(rings, warp, row);
#pragma unroll
            for (int n = 0; n < HD / 8; ++n)
                *reinterpret_cast<float2 *>(to + merge_column(row, n * 8 + (lane & 3) * 2)) =
                    make_float2(acc.out[r][n][2 * h], acc.out[r][n][2 * h + 1]);
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
template <int HD, int R, int S>
__device__ __forceinline__ void merge_warps(const AttentionParams &p, const Work &work, uint8_t *rings,
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
            const float *part = merge_row<HD, R, S>(rings, w, row) + merge_column(row, column);
            add_weighted(out, *reinterpret_cast<const float4 *>(part), weight);
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

// Work item `w` over all items and KV heads.
template <int R> __device__ __forceinline__ Work work_of(const AttentionParams &p, const AttentionItem &item, int w) {
    Work work;
    work.item = item;
    work.kv_head = w % p.kv_heads;
    work.group = p.heads / p.kv_heads;
    work.row0 = item.tile * R * 16;
    work.rows = min(R * 16, item.segment.queries * work.group - work.row0);
    return work;
}

template <int HD, int R, int S>
__global__ void __launch_bounds__(THREADS, 2) decode(const __grid_constant__ AttentionParams p) {
    constexpr int AHEAD = S - 1, AHEAD_OF_MERGE = MERGE_STAGE<R, S>;
    static_assert(AHEAD_OF_MERGE >= 0, "the merge buffer fits in the ring");
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float2 stats[WARPS][R * 16];
    uint8_t *rings = shared + R * 16 * HD * 2;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t ring = shared_address(rings) + warp * RING_BYTES<HD, S>;
    ss::let_next_start();
    // Speculative, before the count is known, so that the two loads overlap.
    int w = blockIdx.x;
    AttentionItem next = load_item(p.items + w / p.kv_heads);
    const int total = *p.item_count * p.kv_heads;
    if (w >= total) {
        ss::wait_for_previous();
        return;
    }
    Feed feed = open_feed(p, next, warp, lane);
    const bool old = starts_old<S>(feed, next.segment);
    if (!old) ss::wait_for_previous();
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) fetch<HD, S>(p, feed, next, w % p.kv_heads, ring, i, lane);
    if (old) ss::wait_for_previous();

    while (true) {
        const Work work = work_of<R>(p, next, w);
        Accumulator<HD, R> acc;
        acc.clear();
        stream<HD, R, S>(acc, p, work, feed, shared, ring, lane);
        w += gridDim.x;
        const bool more = w < total;
        if (more) {
            next = load_item(p.items + w / p.kv_heads);
            feed = open_feed(p, next, warp, lane);
#pragma unroll
            for (int i = 0; i < min(AHEAD, AHEAD_OF_MERGE); ++i)
                fetch<HD, S>(p, feed, next, w % p.kv_heads, ring, i, lane);
        }
        acc.finish_sums();
        publish<HD, R, S>(acc, rings, stats, warp, lane);
        __syncthreads();
        merge_warps<HD, R, S>(p, work, rings, stats);
        if (!more) return;
        __syncthreads(); // before copies land in the merge buffer and queries in theirs
#pragma unroll
        for (int i = AHEAD_OF_MERGE; i < AHEAD; ++i)
            fetch<HD, S>(p, feed, next, w % p.kv_heads, ring, i, lane);
    }
}

// Calls `use(kernel, shared bytes)` with the kernel for `stages`; 0 selects the most that fit.
// Returns the result, or a negative cudaError_t.
template <int HD, int R, class Use> int with_kernel(int stages, const Use &use) {
    constexpr int MANY = STAGES_MANY<HD>, BYTES_MANY = shared_bytes<HD, R, MANY>();
    constexpr int BYTES_FEW = shared_bytes<HD, R, STAGES_FEW>();
    if (stages != 0 && stages != MANY && stages != STAGES_FEW) return -(int)cudaErrorInvalidValue;
    static const bool fits = ss::fits_shared(decode<HD, R, MANY>, BYTES_MANY);
    if (stages == 0) stages = fits ? MANY : STAGES_FEW;
    if (stages == MANY) {
        static const cudaError_t prepared = ss::allow_shared(decode<HD, R, MANY>, BYTES_MANY);
        return prepared == cudaSuccess ? use(decode<HD, R, MANY>, BYTES_MANY) : -(int)prepared;
    }
    static const cudaError_t prepared = ss::allow_shared(decode<HD, R, STAGES_FEW>, BYTES_FEW);
    return prepared == cudaSuccess ? use(decode<HD, R, STAGES_FEW>, BYTES_FEW) : -(int)prepared;
}

template <class Use> int with_kernel(int head_dim, int large, int stages, const Use &use) {
    if (head_dim == 128) return large ? with_kernel<128, 2>(stages, use) : with_kernel<128, 1>(stages, use);
    if (head_dim == 64) return large ? with_kernel<64, 2>(stages, use) : with_kernel<64, 1>(stages, use);
    return -(int)cudaErrorInvalidValue;
}

} // namespace
} // namespace attention

extern "C" int specserve_attention_decode(const AttentionParams *p, int large, int ctas, int stages,
                                          struct CUstream_st *stream) {
    SS_REQUIRE(p->kv_heads > 0 && p->heads % p->kv_heads == 0 && ctas > 0);
    const int status = attention::with_kernel(p->head_dim, large, stages, [&](auto kernel, int bytes) {
        return -ss::launch(kernel, dim3(ctas), dim3(attention::THREADS), bytes, stream, *p);
    });
    return -status;
}

extern "C" int specserve_attention_decode_ctas(int head_dim, int large, int stages) {
    return attention::with_kernel(head_dim, large, stages, [](auto kernel, int bytes) {
        int per_processor = 0;
        const cudaError_t error =
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, attention::THREADS, bytes);
        return error == cudaSuccess ? ss::multiprocessors() * per_processor : -(int)error;
    });
}
