/* Paged attention: C ABI and the plan that all layers of a step share.
 *
 * A *segment* is a run of consecutive query rows of one sequence. A query sees every slot
 * before `start`, and of those behind it the ones whose bit is set in its mask: bit `j` is
 * slot `start + j`. Masks make chains (bits 0..=i for query i) and trees alike; they hold 64
 * slots, so longer runs are causal and go to the prefill kernel.
 *
 * In a chain, a token's slot is its position in the text. The drafts of a tree are cut into
 * runs in which each follows the one before. Where a run's ancestors are not in the slots of
 * their positions, its items are *gathered*: the kernel reads position `start + d` from the
 * slot of the d-th bit of the mask of the run's last query. So a query meets its keys in the
 * order of the text, as it would in plain decoding, and has the same bits.
 *
 * Work is split by position only, into query tiles and KV chunks whose boundaries do not
 * depend on the rest of the batch. So a row's result does not depend on it either.
 */
#ifndef SPECSERVE_ATTENTION_H
#define SPECSERVE_ATTENTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* Query rows (queries times heads of one group) of one tile of the decode kernel,
 * by variant: small and large. */
#define ATTENTION_TILE_ROWS_SMALL 16
#define ATTENTION_TILE_ROWS_LARGE 32
/* Query rows per tile of the prefill kernel. */
#define ATTENTION_PREFILL_TILE_ROWS 128
/* Most items of one prefill launch. */
#define ATTENTION_PREFILL_ITEMS_MAX 32767
/* Positions that a mask covers. */
#define ATTENTION_MASK_BITS 64

/* A run of query rows of one sequence. */
typedef struct {
    int32_t first_row; /* row of query 0 in q and out */
    int32_t queries;   /* rows */
    int32_t start;     /* slot position of query 0 */
    int32_t table;     /* index of the sequence's first block in `tables` */
} AttentionSegment;

/* One query tile against one chunk of positions, for every KV head. */
typedef struct {
    AttentionSegment segment; /* a copy; saves a dependent load before keys can be fetched */
    int32_t tile;     /* query tile: its first packed row is tile * tile rows */
    int32_t kv_begin; /* first position; a multiple of 64 */
    int32_t kv_end;   /* one past the last position */
    int32_t chunk;    /* index of the chunk */
    int32_t chunks;   /* number of chunks of this segment */
    int32_t partial;  /* first row of this tile's partial results; unused when chunks == 1 */
    int32_t gathered; /* whether positions from segment.start on are looked up in a mask */
    int32_t unused;
} AttentionItem;

/* All pointers are device pointers. The plan is the same for all layers of a step. */
typedef struct {
    const uint16_t *q;       /* bf16 [rows][q_stride], heads * head_dim used */
    uint16_t *out;           /* bf16 [rows][heads * head_dim] */
    const uint16_t *kv;      /* this layer's part of the pool, see kv_layout.cuh */
    const AttentionSegment *segments; /* read only by the naive version */
    const AttentionItem *items; /* 16-byte aligned; readable up to one past the grid's CTAs */
    const int32_t *item_count;  /* [2]: number of items and of merges */
    const AttentionItem *merges; /* one item per tile with more than one chunk */
    const uint64_t *masks;      /* one per query row of `q`; not read by the prefill kernel */
    const int32_t *tables;      /* block tables of all sequences */
    float *partial_out;         /* [partial rows][head_dim], unnormalised */
    float *partial_stats;       /* [partial rows][2]: maximum (base 2), sum */
    int64_t q_stride;           /* elements */
    float scale;                /* 1 / sqrt(head_dim), usually */
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
} AttentionParams;

/* Ring stages of the decode kernel's variant for devices with little shared memory. */
#define ATTENTION_STAGES_FEW 2

/* Decode and verification. `large` selects the tile; the plan must have been made for it.
* `ctas`: thread blocks that share the items. `stages`: ring stages in shared memory, 0 for
* the most that fit; the result does not depend on it. Returns a cudaError_t. */
int specserve_attention_decode(const AttentionParams *params, int large, int ctas, int stages,
                               struct CUstream_st *stream);

/* Merges the chunks of tiles with more than one; launched after the decode kernel. */
int specserve_attention_merge(const AttentionParams *params, int large, struct CUstream_st *stream);

/* Thread blocks of the decode kernel that are resident at once; negative: -cudaError_t. */
int specserve_attention_decode_ctas(int head_dim, int large, int stages);

/* Causal attention of long segments. One item per query tile; kv_begin, kv_end, chunk and
 * partial are not read. `items`: number of items. Returns a cudaError_t. */
int specserve_attention_prefill(const AttentionParams *params, int items, struct CUstream_st *stream);

/* Naive reference of both: one thread block per query row and head. `causal`: treat masks as
* causal and do not read them. `segments`: number of segments. */
int specserve_attention_naive(const AttentionParams *params, int segments, int queries_max, int causal,
                              struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
