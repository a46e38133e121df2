/* C interface of the CUDA kernels; the only header that bindgen reads.
 *
 * Every launcher enqueues work on the stream without blocking and returns 0 or a cudaError_t.
 * Pointers in parameter structs are device pointers unless stated otherwise; the structs
 * themselves are in host memory and are copied. bf16 values are passed as uint16_t. */
#ifndef SPECSERVE_KERNELS_H
#define SPECSERVE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "draft_head.h"
#include "kv_block.h"
#include "layers.h"
#include "sampling.h"
#include "skinny_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Message of a launcher's status; static storage. */
const char *specserve_error_string(int status);
/* Version of the linked CUDA runtime, for example 13000 for 13.0. */
int specserve_runtime_version(void);

#ifdef __cplusplus
}
#endif
#endif
