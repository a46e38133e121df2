// Asynchronous copies from global to shared memory (PTX cp.async, compute capability 8.0 and
// later), in groups that a thread commits and waits for in order.
#pragma once

#include <stdint.h>

namespace ss {

// The address of `p` as instructions on shared memory take it.
__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// Copies 16 bytes, or writes 16 zero bytes where `valid` is false. The second-level cache fetches
// 256 bytes: all callers stream, and longer bursts suit the memory (products of few rows gain 5 to
// 10 % on an H100; attention, whose blocks are contiguous anyway, nothing).
__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Ends a group: the copies since the last one.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most PENDING groups of this thread are still on their way.
template <int PENDING> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

}  // namespace ss
