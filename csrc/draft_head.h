/* Draft heads (EAGLE-3, DFlash, DSpark): what they do beside matrix products, attention and
 * sampling. C ABI.
 *
 * Hidden states are rounded to bf16 once, when they are taken: the first thing that a head does
 * with them is a matrix product. */
#ifndef SPECSERVE_DRAFT_HEAD_H
#define SPECSERVE_DRAFT_HEAD_H

#include <stdint.h>

#include "sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Logit of token `t` that a head cannot draft: DRAFT_LOGIT_NONE - t * DRAFT_LOGIT_NONE_FALL. Far below
 * the logits of models, at the highest temperature and with noise too, but no lower: a slice of a
 * row may hold no other token, and at the least temperature, where scores are a million times as
 * large, the rounding of scores must not make its sum of exponentials infinite. It falls, so that the
 * best of such a slice stand at its start and most of the rest is passed over. */
#define DRAFT_LOGIT_NONE (-100.f)
#define DRAFT_LOGIT_NONE_FALL 0.00048828125f

/* states[span[0] + row] = bf16(residual[row]) for the first span[1] rows of a step. */
typedef struct {
    const float *residual; /* [rows][hidden] */
    uint16_t *states;      /* bf16, rows of `stride` numbers; this layer's first number of row 0 */
    const int32_t *span;   /* [2]: the row of `states` for row 0, and how many rows are taken */
    int64_t stride;
    int32_t rows;
    int32_t hidden; /* a multiple of 8 */
} TakeStatesParams;

/* Brings the states of some tokens together and normalises them as the head wants before it
 * fuses them. */
typedef struct {
    const uint16_t *states;  /* bf16 [..][features * width] */
    const int32_t *sources;  /* [rows]: row of `states`; negative (padding): zeros */
    const uint16_t *weight;  /* bf16 [features * width] of RMSNorms; null: none */
    uint16_t *out;           /* bf16 [rows][features * width] */
    float eps;
    int32_t rows;
    int32_t width; /* a multiple of 8 */
    int32_t features;
    int32_t joint; /* 1: one norm over all features; 0: one over each */
} FuseInputParams;

/* The input of an EAGLE-3 layer: out = [norm(embedding), norm(state)], residual = the state or
 * its norm. */
typedef struct {
    const uint16_t *table;          /* bf16 [vocab][hidden] */
    const int32_t *tokens;          /* [rows]; outside the vocabulary (padding): zeros */
    const float *states;            /* [..][hidden] */
    const int32_t *sources;         /* [rows]: row of `states`; negative: zeros; null: the same row */
    const uint16_t *embedding_norm; /* bf16 [hidden] */
    const uint16_t *state_norm;     /* bf16 [hidden] */
    uint16_t *out;                  /* bf16 [rows][2 * hidden] */
    float *residual;                /* [rows][hidden], not `states` */
    float eps;
    int32_t rows;
    int32_t hidden; /* a multiple of 8 */
    int32_t vocab;
    int32_t normed_residual;
} ChainInputParams;

/* Of all rows that went through attention those that draft, one behind the other. */
typedef struct {
    const int32_t *gather;    /* [rows]: input row; negative (padding): zeros */
    const uint16_t *attended; /* bf16 [input rows][width] */
    uint16_t *attended_out;   /* bf16 [rows][width] */
    const float *stream;      /* [input rows][hidden] */
    float *residual;          /* [rows][hidden], not `stream` */
    int32_t rows;
    int32_t width;  /* a multiple of 8 */
    int32_t hidden; /* a multiple of 8 */
} TakeLinksParams;

/* z = residual + delta; out = norm(z); carried = z or norm(z): what the next pass takes for its
 * state. */
typedef struct {
    const float *residual; /* [rows][hidden] */
    const uint16_t *delta; /* bf16 [rows][hidden], or null */
    const uint16_t *weight; /* bf16 [hidden] */
    uint16_t *out;         /* bf16 [rows][hidden] */
    float *carried;        /* [rows][hidden] */
    float eps;
    int32_t rows;
    int32_t hidden; /* a multiple of 8 */
    int32_t carry_normed;
} ChainOutputParams;

/* Logits over draft tokens to logits over the target's; that of DRAFT_LOGIT_NONE where there is none. */
typedef struct {
    const float *logits;     /* [rows][draft_tokens] */
    const int32_t *draft_of; /* [vocab]: the draft token of each token; negative: none */
    float *out;              /* [rows][vocab] */
    int32_t rows;
    int32_t draft_tokens;
    int32_t vocab; /* a multiple of 4 */
} SpreadLogitsParams;

/* out[row] = table[tokens[row]]. */
typedef struct {
    const uint16_t *table; /* bf16 [vocab][width] */
    const int32_t *tokens; /* outside the vocabulary (padding): zeros */
    uint16_t *out;         /* bf16 [rows][width] */
    int32_t rows;
    int32_t width; /* a multiple of 8 */
    int32_t vocab;
} TakeRowsParams;

/* What DSpark's confidence head says of each proposal, as its probability:
 * sigmoid(weight . [state, feature of the token before] + bias). Rows are slot after slot, and in
 * each slot a row for each sequence. */
typedef struct {
    const uint16_t *states;   /* bf16 [slots * sequences][hidden], normed */
    const uint16_t *features; /* bf16 [vocab][rank] of the token before; not read if rank is 0 */
    const int32_t *anchors;   /* [sequences]: the token before the first slot */
    const float *weight;      /* [hidden + rank] */
    DraftProposal *proposals; /* [slots * sequences] */
    float bias;
    int32_t slots;
    int32_t sequences;
    int32_t hidden;
    int32_t rank;
    int32_t vocab;
} ConfidenceParams;

int specserve_take_states(const TakeStatesParams *params, struct CUstream_st *stream);
int specserve_fuse_input(const FuseInputParams *params, struct CUstream_st *stream);
int specserve_chain_input(const ChainInputParams *params, struct CUstream_st *stream);
int specserve_take_links(const TakeLinksParams *params, struct CUstream_st *stream);
int specserve_chain_output(const ChainOutputParams *params, struct CUstream_st *stream);
int specserve_spread_logits(const SpreadLogitsParams *params, struct CUstream_st *stream);
int specserve_take_rows(const TakeRowsParams *params, struct CUstream_st *stream);
int specserve_confidence(const ConfidenceParams *params, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
