// Moves the accepted path of verified trees behind the committed tokens, all layers at once.
//
// Design: a thread owns one 16-byte column of one head's keys or values in one layer and
// moves it for all drafts on one sequence's path. Paths ascend, so the path's draft i moves
// from slot i or further up; moving in ascending order therefore never overwrites a slot that
// is still to be read, and no other thread touches the column: overlap needs no barrier and no
// copy. Eight drafts are read before they are written, to have loads in flight.
//
// Bytes moved per draft: layers * kv_heads * head_dim * 2 * 2, read and written.
// Measured on an H100 80GB HBM3: 93 % of copy bandwidth, 64 sequences x 4 drafts x 32 layers
// (docs/kernels.md).
#include "common.cuh"
#include "kv_layout.cuh"

namespace ss {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = 8;
constexpr int kInFlight = 8;

__device__ __forceinline__ int64_t slot_of(const CompactParams &p, int sequence, int offset)
{
    const int position = p.first[sequence] + offset;
    const int64_t block = p.tables[p.table[sequence] + position / KV_BLOCK_TOKENS];
    return block * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS;
}

__global__ void __launch_bounds__(kThreads) compact_kernel(const CompactParams p)
{
    __shared__ int64_t from[KV_PATH_MAX], to[KV_PATH_MAX];
    wait_for_previous();
    const int sequence = blockIdx.y;
    const int length = min(p.path_length[sequence], KV_PATH_MAX);
    for (int i = threadIdx.x; i < length; i += kThreads) {
        from[i] = slot_of(p, sequence, p.path[sequence * KV_PATH_MAX + i]);
        to[i] = slot_of(p, sequence, i);
    }
    __syncthreads();

    const int columns = p.head_dim / kPiece;  // of keys; as many of values
    int item = blockIdx.x * kThreads + threadIdx.x;
    if (item >= p.layers * p.kv_heads * 2 * columns) return;
    const int column = item % columns * kPiece;
    item /= columns;
    const bool is_value = item % 2;
    item /= 2;
    const int head = item % p.kv_heads, layer = item / p.kv_heads;
    uint16_t *pool = p.kv + layer * p.layer_elements + column;
    auto address = [&](int64_t slot) {
        const int64_t offset = is_value ? kv_value_offset(slot, p.kv_heads, head, p.head_dim)
                                        : kv_key_offset(slot, p.kv_heads, head, p.head_dim);
        return reinterpret_cast<uint4 *>(pool + offset);
    };
    for (int begin = 0; begin < length; begin += kInFlight) {
        uint4 held[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
            if (begin + i < length) held[i] = *address(from[begin + i]);
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
            if (begin + i < length && from[begin + i] != to[begin + i]) *address(to[begin + i]) = held[i];
    }
}

__global__ void compact_naive_kernel(const CompactParams p)
{
    const int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.sequences * p.layers * p.kv_heads * p.head_dim) return;
    const int column = item % p.head_dim, head = item / p.head_dim % p.kv_heads;
    const int layer = item / p.head_dim / p.kv_heads % p.layers;
    const int sequence = item / p.head_dim / p.kv_heads / p.layers;
    uint16_t *pool = p.kv + layer * p.layer_elements + column;
    for (int i = 0; i < p.path_length[sequence]; ++i) {
        const int64_t from = slot_of(p, sequence, p.path[sequence * KV_PATH_MAX + i]);
        const int64_t to = slot_of(p, sequence, i);
        pool[kv_key_offset(to, p.kv_heads, head, p.head_dim)] = pool[kv_key_offset(from, p.kv_heads, head, p.head_dim)];
        pool[kv_value_offset(to, p.kv_heads, head, p.head_dim)] =
            pool[kv_value_offset(from, p.kv_heads, head, p.head_dim)];
    }
}

bool valid(const CompactParams *p)
{
    return p->sequences >= 0 && p->layers > 0 && p->kv_heads > 0 && p->head_dim > 0 && p->head_dim % kPiece == 0;
}

}  // namespace
}  // namespace ss

extern "C" int specserve_compact(const CompactParams *p, CUstream_st *stream)
{
    using namespace ss;
    SS_REQUIRE(valid(p));
    if (p->sequences == 0) return 0;
    const int columns = p->layers * p->kv_heads * 2 * (p->head_dim / kPiece);
    return launch(compact_kernel, dim3(ceil_div(columns, kThreads), p->sequences), kThreads, 0, stream, *p);
}

extern "C" int specserve_compact_naive(const CompactParams *p, CUstream_st *stream)
{
    SS_REQUIRE(ss::valid(p));
    if (p->sequences == 0) return 0;
    const int items = p->sequences * p->layers * p->kv_heads * p->head_dim;
    ss::compact_naive_kernel<<<ss::ceil_div(items, 128), 128, 0, stream>>>(*p);
    return static_cast<int>(cudaGetLastError());
}
