// Naive reference of paged attention, for comparison with the fast kernels: one CTA per
// query row and head, scores in two passes over the keys, no reuse between the heads of a
// group, no tensor cores.
//
// Bytes: keys twice and values once per query row and *query* head. Measurements: docs/kernels.md.
#include <cuda_bf16.h>
#include <math.h>

#include "attention.h"
#include "common.cuh"
#include "kv_layout.cuh"

namespace {

constexpr int kThreads = 128;

struct Row {
    const uint16_t *query;
    const int32_t *table;
    uint64_t mask;
    int start, end, query_number, kv_head;
    bool causal;
};

__device__ float bf16_to_float(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

__device__ bool visible(const Row &row, int position)
{
    const int own = position - row.start;
    if (own < 0) return true;
    if (row.causal) return own <= row.query_number;
    return own < ATTENTION_MASK_BITS && ((row.mask >> own) & 1);
}

__device__ int64_t slot_of(const Row &row, int position)
{
    return (int64_t)row.table[position / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS;
}

__device__ float score(const AttentionParams &p, const Row &row, int position)
{
    if (!visible(row, position)) return -INFINITY;
    const uint16_t *key = p.kv + kv_key_offset(slot_of(row, position), p.kv_heads, row.kv_head, p.head_dim);
    float sum = 0.f;
    for (int d = 0; d < p.head_dim; ++d) sum = fmaf(bf16_to_float(row.query[d]), bf16_to_float(key[d]), sum);
    return sum * p.scale;
}

__global__ void __launch_bounds__(kThreads) naive(const __grid_constant__ AttentionParams p, int causal)
{
    __shared__ float scratch[kThreads / ss::kWarp], weights[kThreads];
    ss::wait_for_previous();
    const AttentionSegment segment = p.segments[blockIdx.z];
    if ((int)blockIdx.x >= segment.queries) return;
    const int64_t q_row = segment.first_row + blockIdx.x;
    const int head = blockIdx.y, thread = threadIdx.x;
    Row row;
    row.query = p.q + q_row * p.q_stride + head * p.head_dim;
    row.table = p.tables + segment.table;
    row.mask = causal ? 0 : p.masks[q_row];
    row.start = segment.start;
    // a query's own slot is the last one that it sees
    row.end = segment.start + (causal ? segment.queries : ATTENTION_MASK_BITS - __clzll((long long)row.mask));
    row.query_number = blockIdx.x;
    row.kv_head = head / (p.heads / p.kv_heads);
    row.causal = causal != 0;

    float maximum = -INFINITY;
    for (int position = thread; position < row.end; position += kThreads)
        maximum = fmaxf(maximum, score(p, row, position));
    weights[thread] = maximum;
    __syncthreads();
    for (int t = 0; t < kThreads; ++t) maximum = fmaxf(maximum, weights[t]);

    float sum = 0.f, out = 0.f;
    for (int base = 0; base < row.end; base += kThreads) {
        __syncthreads();
        const int position = base + thread;
        weights[thread] = position < row.end ? expf(score(p, row, position) - maximum) : 0.f;
        sum += weights[thread];
        __syncthreads();
        const int count = min(kThreads, row.end - base);
        for (int t = 0; t < count && thread < p.head_dim; ++t) {
            if (weights[t] == 0.f) continue;
            const int64_t value = kv_value_offset(slot_of(row, base + t), p.kv_heads, row.kv_head, p.head_dim);
            out = fmaf(weights[t], bf16_to_float(p.kv[value + thread]), out);
        }
    }
    __syncthreads();
    sum = ss::block_sum(sum, scratch, kThreads / ss::kWarp);
    if (thread < p.head_dim)
        p.out[(q_row * p.heads + head) * p.head_dim + thread] =
            __bfloat16_as_ushort(__float2bfloat16(out / sum));
}

}  // namespace

extern "C" int specserve_attention_naive(const AttentionParams *p, int segments, int queries_max, int causal,
                                  struct CUstream_st *stream)
{
    SS_REQUIRE(p->kv_heads > 0 && p->heads % p->kv_heads == 0 && p->head_dim <= kThreads);
    SS_REQUIRE(segments > 0 && queries_max > 0);
    return ss::launch(naive, dim3(queries_max, p->heads, segments), dim3(kThreads), 0, stream, *p, causal);
}
