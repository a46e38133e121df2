/* Matrix products with few rows, where the time is that of reading the weights once: C ABI. */
#ifndef SPECSERVE_SKINNY_GEMM_H
#define SPECSERVE_SKINNY_GEMM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Most rows of x. */
#define SKINNY_ROWS_MAX 16
/* `outputs` is a multiple of the first, `inputs` of the second. */
#define SKINNY_OUTPUTS_MULTIPLE 16
#define SKINNY_INPUTS_MULTIPLE 64

/* Stages of a ring in the variant for chips with little shared memory. */
#define SKINNY_STAGES_FEW 2

/* What becomes of the products. */
#define SKINNY_BF16 0   /* y = x Wᵀ, bf16 [rows][outputs] */
#define SKINNY_F32 1    /* the same in fp32 */
#define SKINNY_SWIGLU 2 /* W is gate, then up, [2 * outputs][inputs]; y = silu(gate) * up, bf16 */

typedef struct {
    const uint16_t *weights; /* bf16 [outputs][inputs], 16-byte aligned */
    const uint16_t *x;       /* bf16 [rows][inputs], 16-byte aligned */
    void *y;
    int32_t outputs;
    int32_t inputs;
    int32_t rows;
    int32_t kind;
    int32_t few_stages; /* 1: as on chips with little shared memory; the result is the same */
} SkinnyParams;

int specserve_skinny_gemm(const SkinnyParams *params, struct CUstream_st *stream);
/* The plain version: one thread per output. */
int specserve_skinny_gemm_naive(const SkinnyParams *params, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
