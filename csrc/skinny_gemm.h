/* Matrix products with few rows, bound by reading the weights once: C ABI. */
#ifndef SPECSERVE_SKINNY_GEMM_H
#define SPECSERVE_SKINNY_GEMM_H

#include <stdint.h>

#include "layers.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Most rows of x. */
#define SKINNY_ROWS_MAX 16
/* `outputs` must be a multiple of the first, `inputs` of the second. */
#define SKINNY_OUTPUTS_MULTIPLE 16
#define SKINNY_INPUTS_MULTIPLE 64

/* Ring stages of the variant for devices with little shared memory. */
#define SKINNY_STAGES_FEW 2

/* Values of a row per partial sum of squares. */
#define SKINNY_SQUARES_WIDTH SKINNY_OUTPUTS_MULTIPLE

/* Epilogues. All but those in fp32 first round the products to bf16, as a stored product is, so
* that steps with many rows round at the same points. */
#define SKINNY_BF16 0     /* y = x Wᵀ, bf16 [rows][outputs] */
#define SKINNY_F32 1      /* the same in fp32 */
#define SKINNY_SWIGLU 2   /* W is gate, then up, [2 * outputs][inputs]; y = silu(gate) * up, bf16 */
/* residual += x Wᵀ, and the next norm except for its division: y = residual * norm_weight, bf16;
* y_squares holds the sums of squares that the division needs. */
#define SKINNY_RESIDUAL 3
/* W is the fused QKV projection; does what specserve_qkv does, without norms of heads. Queries
* go to y, keys and values only to the cache. */
#define SKINNY_QKV 4
#define SKINNY_ADD_F32 5  /* y += x Wᵀ, fp32 */

typedef struct {
    const uint16_t *weights; /* bf16 [outputs][inputs], 16-byte aligned */
    const uint16_t *x;       /* bf16 [rows][inputs], 16-byte aligned */
    void *y;
    int32_t outputs;
    int32_t inputs;
    int32_t rows;
    int32_t kind;
    int32_t few_stages; /* 1: as on devices with little shared memory; the result is the same */
    /* For SKINNY_SWIGLU and SKINNY_QKV. Null: x is used as it is. Else x is what SKINNY_RESIDUAL made, these are its sums of
     * squares, [rows][inputs / SKINNY_SQUARES_WIDTH], and every product is multiplied by the
     * norm's scale, 1 / sqrt(sum / inputs + x_eps). */
    const float *x_squares;
    float x_eps;
    /* For SKINNY_RESIDUAL. */
    float *residual;             /* [rows][outputs] */
    const uint16_t *norm_weight; /* bf16 [outputs] */
    float *y_squares;            /* [rows][outputs / SKINNY_SQUARES_WIDTH] */
    /* For SKINNY_QKV, where outputs = (heads + 2 * kv_heads) * head_dim; `qkv.qkv`, the norms,
     * `eps` and `rows` are not used. */
    QkvParams qkv;
} SkinnyParams;

int specserve_skinny_gemm(const SkinnyParams *params, struct CUstream_st *stream);
/* Naive reference: one thread per output, pair of outputs, or sum of squares. */
int specserve_skinny_gemm_naive(const SkinnyParams *params, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
