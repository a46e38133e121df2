/* The C interface of the CUDA kernels: the only header that bindgen reads.
 *
 * Every launcher enqueues work on the stream, never waits, and returns 0 or a cudaError_t.
 * Pointers are device pointers unless said otherwise; bf16 numbers travel as uint16_t.
 * Names: launchers ss_*, parameter structs Ss*, constants SS_*. */
#ifndef SPECSERVE_KERNELS_H
#define SPECSERVE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The driver's stream; cudaStream_t and CUstream are this pointer. */
typedef struct CUstream_st *SsStream;

/* Text of a launcher's status; static storage. */
const char *ss_error_string(int status);
/* Version of the CUDA runtime that is linked in, 13000 for 13.0. */
int ss_runtime_version(void);

#ifdef __cplusplus
}
#endif

#endif
