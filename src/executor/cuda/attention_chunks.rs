//! Where attention cuts a context into chunks: by position and model, never by the batch.

use super::attention_plan::BLOCK_TOKENS;

/// Chunk lengths in tokens by the position where the chunk starts: short ones spread a short
/// context over the chip, long ones keep filling the pipeline and merging cheap.
pub type Chunks = [(u32, u32); CHUNK_CLASSES];
/// For models with many KV heads, which are work items of their own.
const CHUNKS_MANY_HEADS: Chunks = [(0, 512), (8192, 1024)];
/// For the others.
const CHUNKS_FEW_HEADS: Chunks = [(0, 256), (8192, 1024)];
/// KV heads up to which a model has few.
const FEW_HEADS: usize = 4;
/// Different lengths in a table.
pub const CHUNK_CLASSES: usize = 2;

/// The longest chunk; the decode kernel holds its block numbers in one warp's registers.
pub const CHUNK_TOKENS_MAX: u32 = 1024;

/// The table for a model with so many KV heads.
pub fn chunks_of(kv_heads: usize) -> &'static Chunks {
    if kv_heads <= FEW_HEADS { &CHUNKS_FEW_HEADS } else { &CHUNKS_MANY_HEADS }
}

/// Class and length in tokens of the chunk that starts at `begin`.
pub fn chunk_at(chunks: &Chunks, begin: u32) -> (usize, u32) {
    let class = chunks.iter().rposition(|&(from, _)| begin >= from).expect("the first starts at 0");
    (class, chunks[class].1)
}

/// How many chunks cover positions `0..end`.
pub fn chunk_count(chunks: &Chunks, end: u32) -> usize {
    let mut count = 0;
    for (class, &(from, length)) in chunks.iter().enumerate() {
        let until = chunks.get(class + 1).map_or(end, |next| end.min(next.0));
        count += until.saturating_sub(from).div_ceil(length) as usize;
    }
    count
}

const fn check_chunks(chunks: &Chunks) {
    let mut class = 0;
    while class < chunks.len() {
        let (from, length) = chunks[class];
        // Each warp takes every fourth block, so chunks start at multiples of four.
        assert!(length % (4 * BLOCK_TOKENS) == 0 && from % length == 0 && length <= CHUNK_TOKENS_MAX);
        class += 1;
    }
}

const _: () = {
    check_chunks(&CHUNKS_MANY_HEADS);
    check_chunks(&CHUNKS_FEW_HEADS);
    assert!(CHUNK_TOKENS_MAX <= 32 * 4 * BLOCK_TOKENS);
};
