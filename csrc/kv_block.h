/* Tokens in one KV block. Kernels are compiled for it; the host's constant of the same name is
 * checked against it when the crate is compiled (src/executor/cuda/ffi.rs). */
#ifndef SPECSERVE_KV_BLOCK_H
#define SPECSERVE_KV_BLOCK_H

#define KV_BLOCK_TOKENS 16

#endif
