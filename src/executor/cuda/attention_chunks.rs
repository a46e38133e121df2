//! Where attention cuts a context into chunks: by position and model, never by the batch.
#![forbid(unsafe_code)]

use crate::protocol::BLOCK_TOKENS;

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

/// How a context is cut: whole chunks of each class in turn, then what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Whole chunks, by class.
    pub whole: [u32; CHUNK_CLASSES],
    /// Tokens of the last chunk if it is not whole, else 0.
    pub rest: u32,
}

impl Cut {
    /// Of positions `0..end`.
    pub fn of(chunks: &Chunks, end: u32) -> Cut {
        let mut cut = Cut::default();
        for (class, &(from, length)) in chunks.iter().enumerate() {
            let until = chunks.get(class + 1).map_or(end, |next| end.min(next.0));
            let span = until.saturating_sub(from);
            cut.whole[class] = span / length;
            cut.rest += span % length; // not 0 only where the context ends
        }
        cut
    }

    /// Chunks in all.
    pub fn count(&self) -> usize {
        self.whole.iter().sum::<u32>() as usize + usize::from(self.rest > 0)
    }
}

const fn check_chunks(chunks: &Chunks) {
    let mut class = 0;
    while class < chunks.len() {
        let (from, length) = chunks[class];
        // Each warp takes every fourth block, so chunks start at multiples of four.
        assert!(length % (4 * BLOCK_TOKENS) == 0 && from % length == 0 && length <= CHUNK_TOKENS_MAX);
        // No chunk reaches into the next class.
        assert!(class == 0 || from % chunks[class - 1].1 == 0);
        class += 1;
    }
}

const _: () = {
    check_chunks(&CHUNKS_MANY_HEADS);
    check_chunks(&CHUNKS_FEW_HEADS);
    assert!(CHUNK_TOKENS_MAX <= 32 * 4 * BLOCK_TOKENS);
};
