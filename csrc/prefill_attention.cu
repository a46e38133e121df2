// Paged causal attention for long runs of queries (prefill).
//
// Design. Structured like FlashAttention-2: a CTA takes 128 packed query rows of one KV head,
// four warps of 32 rows each, and walks the positions from 0 in tiles of 64 shared by all
// warps, double-buffered with cp.async. Each warp keeps the outputs of its two 16-row tiles in
// registers, so that every key and value fragment read from shared memory feeds two matrix
// products. Packing the heads of a group keeps tiles short in queries, which wastes little
// above the diagonal. Tiles with the most positions start first, across all heads, so that
// short ones fill the tail. If all tiles fit in one wave, where the longest would dominate, a
// CTA takes 64 rows. A row sums in order of position, independent of the tile.
//
// Work: 4 * head_dim * heads * (visible positions) FLOP. The roofline is the tensor core rate,
// of which mma.sync reaches about 60 % on Hopper. Measurements: docs/kernels.md.
#include "attention_core.cuh"
#include "common.cuh"

namespace attention {
namespace {

constexpr int ROW_TILES_MOST = 2;
template <int R> constexpr int TILE_ROWS = WARPS * R * 16;
constexpr int TILE_TOKENS = WARPS * BLOCK; // each warp copies one KV block
constexpr int STAGE_COUNT = 2;
static_assert(TILE_ROWS<ROW_TILES_MOST> == ATTENTION_PREFILL_TILE_ROWS, "the plan is made for this tile");

// KV blocks per softmax step, limited by registers.
template <int HD> constexpr int STEP_BLOCKS = HD == 128 ? 2 : 4;
template <int HD> constexpr int TILE_BYTES = 2 * TILE_TOKENS * HD * 2;
template <int HD, int R> constexpr int shared_bytes() { return TILE_ROWS<R> * HD * 2 + STAGE_COUNT * TILE_BYTES<HD>; }
constexpr int RESIDENT = 2; // CTAs per SM

// Copies this warp's block of a tile: keys to rows 16 * warp, values 64 rows further.
template <int HD>
__device__ __forceinline__ void load_tile(uint32_t stage, const AttentionParams &p, int kv_head, int block, int tokens,
                                          int warp, int lane) {
    constexpr int PIECES = HD / 8;
    const uint16_t *from = p.kv + kv_block_offset(block, p.kv_heads, kv_head, HD);
#pragma unroll
    for (int i = 0; i < 2 * BLOCK * PIECES / WARP; ++i) {
        const int e = i * WARP + lane, row = e / PIECES, piece = e % PIECES;
        const int to = (row < BLOCK ? row : row - BLOCK + TILE_TOKENS) + warp * BLOCK;
        copy16(stage + swizzled<HD>(to, piece), from + e * 8, (row & (BLOCK - 1)) < tokens);
    }
}

// `R`: 16-row tiles per warp; the items' tiles are split into ROW_TILES_MOST / R pieces.
template <int HD, int R>
__global__ void __launch_bounds__(THREADS, RESIDENT) prefill(const __grid_constant__ AttentionParams p) {
    constexpr int PIECES = ROW_TILES_MOST / R;
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    ss::let_next_start();
    ss::wait_for_previous();

    const int piece = blockIdx.y, kv_head = blockIdx.x, group = p.heads / p.kv_heads;
    const AttentionItem &item = p.items[piece / PIECES];
    const AttentionSegment segment = item.segment;
    // The last piece of an item sees the most positions.
    const int row0 = (item.tile * PIECES + PIECES - 1 - piece % PIECES) * TILE_ROWS<R>;
    const int rows = min(TILE_ROWS<R>, segment.queries * group - row0);
    if (rows <= 0) return;
    const int kv_end = segment.start + (row0 + rows - 1) / group + 1;
    const int all_visible = segment.start + row0 / group + 1; // positions that every row sees
    const int tiles = (kv_end + TILE_TOKENS - 1) / TILE_TOKENS;
    const uint32_t ring = shared_address(shared) + TILE_ROWS<R> * HD * 2;

    const int *table = p.tables + segment.table;
    const auto block_of = [&](int tile) {
        const int position = tile * TILE_TOKENS + warp * BLOCK;
        return position < kv_end ? table[position / BLOCK] : table[0];
    };
    const auto fetch = [&](int tile, int block) {
        if (tile < tiles)
            load_tile<HD>(ring + (tile % STAGE_COUNT) * TILE_BYTES<HD>, p, kv_head, block,
                          kv_end - tile * TILE_TOKENS - warp * BLOCK, warp, lane);
        copies_commit();
    };
    fetch(0, block_of(0));
    int next_block = block_of(1);
    load_queries<HD, TILE_ROWS<R>>(shared, p, segment, kv_head, group, row0, rows);

    int last_visible[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            last_visible[r][h] =
                segment.start + (row0 + (warp * R + r) * 16 + h * 8 + (lane >> 2)) / group;
    const auto visible = [&](int r, int h, int position) { return position <= last_visible[r][h]; };

    Accumulator<HD, R> acc;
    acc.clear();
    const uint32_t queries = shared_address(shared) + warp * R * 16 * HD * 2;
    const float scale_log2 = p.scale * LOG2_E;
    for (int tile = 0; tile < tiles; ++tile) {
        copies_wait<0>();
        __syncthreads(); // the tile is visible to all warps, and all have finished the previous one
        fetch(tile + 1, next_block);
        next_block = block_of(tile + 2);
        const uint32_t keys = ring + (tile % STAGE_COUNT) * TILE_BYTES<HD>;
#pragma unroll 1 // a single copy of the step; unrolling would spill
        for (int b = 0; b < WARPS; b += STEP_BLOCKS<HD>) {
            const int position = tile * TILE_TOKENS + b * BLOCK;
            attend<HD, R, STEP_BLOCKS<HD>>(acc, queries, keys + b * BLOCK * HD * 2,
                                                   keys + (TILE_TOKENS + b * BLOCK) * HD * 2, scale_log2,
                                                   position + STEP_BLOCKS<HD> * BLOCK > all_visible, position, visible,
                                                   lane);
        }
    }
    acc.finish_sums();

#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = (warp * R + r) * 16 + h * 8 + (lane >> 2);
            if (row >= rows) continue;
            const float inverse = acc.sum[r][h] == 0.f ? 0.f : 1.f / acc.sum[r][h];
            uint16_t *to = output_row<HD>(p, segment, kv_head, group, row0 + row) + (lane & 3) * 2;
#pragma unroll
            for (int n = 0; n < HD / 8; ++n)
                *reinterpret_cast<uint32_t *>(to + n * 8) =
                    pack(acc.out[r][n][2 * h] * inverse, acc.out[r][n][2 * h + 1] * inverse);
        }
}

template <int HD, int R> int launch(const AttentionParams &p, int items, cudaStream_t stream) {
    constexpr int BYTES = shared_bytes<HD, R>();
    static const cudaError_t prepared = ss::allow_shared(prefill<HD, R>, BYTES);
    if (prepared != cudaSuccess) return (int)prepared;
    const dim3 grid(p.kv_heads, items * (ROW_TILES_MOST / R));
    return ss::launch(prefill<HD, R>, grid, dim3(THREADS), BYTES, stream, p);
}

template <int HD> int launch(const AttentionParams &p, int items, cudaStream_t stream) {
    if (items * p.kv_heads <= RESIDENT * ss::multiprocessors()) return launch<HD, 1>(p, items, stream);
    return launch<HD, ROW_TILES_MOST>(p, items, stream);
}

} // namespace
} // namespace attention

extern "C" int specserve_attention_prefill(const AttentionParams *p, int items, struct CUstream_st *stream) {
    using namespace attention;
    SS_REQUIRE(p->kv_heads > 0 && p->heads % p->kv_heads == 0 && items > 0 && items <= ATTENTION_PREFILL_ITEMS_MAX);
    if (p->head_dim == 128) return launch<128>(*p, items, stream);
    if (p->head_dim == 64) return launch<64>(*p, items, stream);
    return (int)cudaErrorInvalidValue;
}
