/* Tokens per KV block, a compile-time constant of the kernels. The host's constant of this name
 * is checked against it at compile time (src/executor/cuda/ffi.rs). */
#ifndef SPECSERVE_KV_BLOCK_H
#define SPECSERVE_KV_BLOCK_H

#define KV_BLOCK_TOKENS 16

#endif
