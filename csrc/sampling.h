/* Token sampling for draft and target, and verification of drafts: C ABI.
*
* The arithmetic equals that of src/sampling (philox, noise, float, distribution) bit for bit:
* both sample the same token from the same logits. */
#ifndef SPECSERVE_SAMPLING_H
#define SPECSERVE_SAMPLING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Most rows of one call. */
#define SAMPLE_ROWS_MAX 4096
/* Most CTAs per row. */
#define SAMPLE_SPLITS_MAX 256
/* Most tokens of a row that the filters gather before they fall back to the whole row. */
#define SAMPLE_CANDIDATES_MAX 4096
/* Most drafts per sequence. */
#define VERIFY_DRAFTS_MAX 64

/* Sampling parameters of one row. */
typedef struct {
    uint64_t seed;
    float scale;     /* 1 / max(temperature, 1e-6); 1 when greedy */
    float top_p;     /* 1 or more: off */
    float min_score; /* ln(min_p); -infinity: off */
    int32_t top_k;   /* 0: off */
    int32_t greedy;  /* 1: the largest logit */
    int32_t position; /* absolute position of the token to be sampled; negative: padding */
    int32_t first_adjustment;
    int32_t adjustments;
    int32_t mask;   /* first word of the row's mask in SampleParams::masks; negative: all tokens are allowed */
    int32_t unused; /* no padding: the host writes rows as words */
} SamplingRow;

/* Penalties and bias of one token in one row, applied in this order:
 * l = l < 0 ? l * repetition : l / repetition; l -= presence; l -= frequency; l += bias.
 * A row lists a token at most once. */
typedef struct {
    int32_t token;
    float repetition; /* 1: off */
    float presence;   /* 0 if the token is not in the output */
    float frequency;  /* the penalty times the count in the output */
    float bias;
} LogitAdjustment;

/* The draft's proposal; fields as in the executor's Proposal. */
typedef struct {
    int32_t token;
    int32_t runner_up;
    float probability;
    float margin;
    int32_t finite;
} DraftProposal;

/* Parameters of a call. */
typedef struct {
    float *logits;       /* [rows][stride]; adjusted in place, forbidden tokens become -infinity */
    int64_t stride;      /* elements from row to row; a multiple of 4 */
    const SamplingRow *rows;
    const LogitAdjustment *adjustments;
    const uint32_t *masks; /* bit t % 32 of word t / 32 of a row's mask: whether token t is allowed */
    void *scratch;       /* specserve_sample_scratch_bytes; zeroed before the first call, and again after each */
    int32_t row_count;
    int32_t vocab;
    int32_t filtered;    /* whether any row uses top-k, top-p or min-p */
} SampleParams;

/* Draft sampling. */
typedef struct {
    SampleParams sample;
    DraftProposal *proposals; /* [rows]; all zero for padding, and where a logit is not finite or no token is allowed */
    int32_t *tokens;          /* [rows], the proposals' tokens again, as input of the next step */
} DraftSampleParams;

/* One sequence of a verification. Node 0 is the last committed token, node j
 * is draft j - 1; the logits behind node j are row first_row + j. */
typedef struct {
    int32_t first_row;
    int32_t drafts; /* rows - 1; negative: padding */
    int32_t tree;   /* whether `parents` is read; else a chain */
} VerifySequence;

/* Outcome of one sequence. */
typedef struct {
    int32_t accepted; /* drafts; the tokens are one more */
    int32_t finite;   /* 0: on the path a logit was not finite or no token was allowed; there are no tokens */
} VerifyOutcome;

/* Target sampling and verification. */
typedef struct {
    SampleParams sample;
    const VerifySequence *sequences;
    const int32_t *sequence_of; /* [rows]: the row's sequence */
    const int32_t *drafts;      /* [rows]: at first_row + j the token of draft j - 1; not read at j = 0 */
    const int32_t *parents;     /* [rows]: at first_row + j the parent node of draft j - 1 */
    VerifyOutcome *outcomes;    /* [sequences] */
    int32_t *tokens;            /* [rows]: from first_row on the accepted drafts and one more */
    int32_t *path;              /* [rows]: from first_row on the accepted drafts' numbers, 0-based */
    int32_t sequence_count;
} VerifyParams;

/* Scratch memory for calls of up to `rows` rows, in bytes. */
size_t specserve_sample_scratch_bytes(int rows);

int specserve_draft_sample(const DraftSampleParams *params, struct CUstream_st *stream);
int specserve_verify(const VerifyParams *params, struct CUstream_st *stream);

/* Naive references: one CTA per row, one pass per quantity. */
int specserve_draft_sample_naive(const DraftSampleParams *params, struct CUstream_st *stream);
int specserve_verify_naive(const VerifyParams *params, struct CUstream_st *stream);

/* Noise of tokens 0 to `count` - 1, for comparison with the CPU's bits. */
int specserve_noise(uint64_t seed, uint32_t position, int count, float *out, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
