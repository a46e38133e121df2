// Memory layout of a paged KV pool.
//
// A pool is one allocation per model:
//
//     [layer][block][kv_head][K, V][KV_BLOCK_TOKENS][head_dim]   bf16
//
// The block of one head is contiguous: KV_BLOCK_TOKENS keys, then as many values, 8 KiB at
// head_dim 128 and 4 KiB at 64. A warp therefore reads it in 16-byte pieces that
// coalesce into whole 128-byte lines, DRAM pages are used whole, and copying or
// moving a block of one head is one memcpy. Nothing is swizzled in device memory;
// kernels swizzle while they copy to shared memory.
//
// A token's *slot* is `block * KV_BLOCK_TOKENS + index in block`, an int32; -1 is padding
// and is neither read nor written.
#pragma once

#include <stdint.h>

#include "kv_block.h"

// Elements of one head's block, keys and values.
__host__ __device__ __forceinline__ constexpr int64_t kv_head_block_elements(int head_dim) {
    return 2ll * KV_BLOCK_TOKENS * head_dim;
}

// Elements of one layer of a pool.
__host__ __device__ __forceinline__ constexpr int64_t kv_layer_elements(int64_t blocks, int kv_heads, int head_dim) {
    return blocks * kv_heads * kv_head_block_elements(head_dim);
}

// Element offset within a layer of one head's block, that is, of its first key.
__host__ __device__ __forceinline__ constexpr int64_t kv_block_offset(int64_t block, int kv_heads, int kv_head,
                                                                       int head_dim) {
    return (block * kv_heads + kv_head) * kv_head_block_elements(head_dim);
}

// Element offset within a layer of the key of a slot and head.
__host__ __device__ __forceinline__ constexpr int64_t kv_key_offset(int64_t slot, int kv_heads, int kv_head,
                                                                     int head_dim) {
    return kv_block_offset(slot / KV_BLOCK_TOKENS, kv_heads, kv_head, head_dim) +
           (slot % KV_BLOCK_TOKENS) * (int64_t)head_dim;
}

// Element offset within a layer of the value of a slot and head.
__host__ __device__ __forceinline__ constexpr int64_t kv_value_offset(int64_t slot, int kv_heads, int kv_head,
                                                                       int head_dim) {
    return kv_key_offset(slot, kv_heads, kv_head, head_dim) + (int64_t)KV_BLOCK_TOKENS * head_dim;
}
