/* Transformer layer kernels other than matrix products and attention: C ABI.
 *
 * The residual stream is fp32. Rounding it to bf16 after every layer would cost more accuracy
 * than all other roundings together, and it is small compared to the weights. */
#ifndef SPECSERVE_LAYERS_H
#define SPECSERVE_LAYERS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Widest residual stream. All widths are multiples of 8. */
#define LAYER_HIDDEN_MAX 16384

/* residual[row] = table[token]. A token outside the vocabulary (padding: -1) yields zeros. */
typedef struct {
    const uint16_t *table; /* bf16 [vocab][hidden] */
    const int32_t *tokens; /* [rows] */
    float *residual;       /* [rows][hidden] */
    int32_t rows;
    int32_t hidden;
    int32_t vocab;
} EmbeddingParams;

/* residual += delta; out = residual * scale * weight with scale = 1 / sqrt(mean(residual^2) + eps).
 *
 * With `scales`, out is residual * weight and the scale is written there. It commutes with the
 * following matrix product, so the consumer of that product applies it. Skinny products require
 * this form (skinny_gemm.h), and all paths round at the same points. */
typedef struct {
    float *residual;        /* [rows][hidden] */
    const uint16_t *delta;  /* bf16 [rows][hidden], or null: nothing is added, residual is not written */
    const uint16_t *weight; /* bf16 [hidden] */
    uint16_t *out;          /* bf16 [out rows][hidden] */
    /* Null: row i of the result is row i. Else the result has one row per entry, of the row
     * that it names (negative: zeros), and the residual is not written: the last norm, only
     * of rows that need logits. */
    const int32_t *gather; /* [out rows] */
    float *scales;         /* [out rows], or null; without `gather` only */
    float eps;
    int32_t rows; /* out rows */
    int32_t hidden;
} RmsNormParams;

/* Postprocesses the output of the fused QKV projection: multiplies it by the row's scale, adds
* the bias, normalises query and key heads (qwen3), rotates both, writes queries in place and
* keys and values to the paged cache. Rows with slot -1 are padding and are skipped. */
typedef struct {
    const float *scales;       /* [rows], of the preceding norm; null: 1 */
    uint16_t *qkv;             /* bf16 [rows][(heads + 2 * kv_heads) * head_dim] */
    const uint16_t *bias;      /* bf16 [(heads + 2 * kv_heads) * head_dim], or null */
    const uint16_t *q_norm;    /* bf16 [head_dim], or null */
    const uint16_t *k_norm;    /* bf16 [head_dim], or null */
    const float *rotations;    /* [positions][head_dim / 2][2]: cosine, sine */
    const int32_t *positions;  /* [rows] */
    const int32_t *slots;      /* [rows], see kv_layout.cuh */
    uint16_t *kv;              /* this layer's part of the pool */
    float eps;                 /* of q_norm and k_norm */
    int32_t rows;
    int32_t heads;             /* 0: keys and values only */
    int32_t kv_heads;
    int32_t head_dim;          /* 64 or 128 */
} QkvParams;

/* out = silu(gate * scale) * (up * scale). */
typedef struct {
    const float *scales;     /* [rows], of the preceding norm; null: 1 */
    const uint16_t *gate_up; /* bf16 [rows][2 * width]: gate, then up */
    uint16_t *out;           /* bf16 [rows][width] */
    int32_t rows;
    int32_t width;           /* a multiple of 8 */
} SwigluParams;

/* Most drafts of an accepted path. */
#define KV_PATH_MAX 64

/* Moves accepted tokens of trees to the slots right behind the committed ones, in all layers:
 * position first + path[i] to first + i. Paths are ascending, so source and destination may overlap. */
typedef struct {
    uint16_t *kv;               /* layer 0 of the pool */
    int64_t layer_elements;     /* from one layer to the next */
    const int32_t *tables;      /* block tables of all sequences */
    const int32_t *table;       /* [sequences]: index of each one's first block in `tables` */
    const int32_t *first;       /* [sequences]: position of the first draft */
    const int32_t *path;        /* [sequences][KV_PATH_MAX] */
    const int32_t *path_length; /* [sequences] */
    int32_t sequences;
    int32_t layers;
    int32_t kv_heads;
    int32_t head_dim;
} CompactParams;

int specserve_embedding(const EmbeddingParams *params, struct CUstream_st *stream);
int specserve_rmsnorm(const RmsNormParams *params, struct CUstream_st *stream);
int specserve_qkv(const QkvParams *params, struct CUstream_st *stream);
int specserve_swiglu(const SwigluParams *params, struct CUstream_st *stream);
int specserve_compact(const CompactParams *params, struct CUstream_st *stream);

/* Naive references for tests: one thread per number or row. */
int specserve_embedding_naive(const EmbeddingParams *params, struct CUstream_st *stream);
int specserve_rmsnorm_naive(const RmsNormParams *params, struct CUstream_st *stream);
int specserve_qkv_naive(const QkvParams *params, struct CUstream_st *stream);
int specserve_swiglu_naive(const SwigluParams *params, struct CUstream_st *stream);
int specserve_compact_naive(const CompactParams *params, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
