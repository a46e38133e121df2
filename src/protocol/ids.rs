//! Names of things: tokens, requests, KV blocks.

/// A token's number in the vocabulary shared by target and draft.
pub type TokenId = u32;

/// Names a request for its whole life; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A block's index in its KV pool.
pub type BlockId = u32;

/// Tokens in one KV block. A constant, because kernels are compiled for it.
pub const BLOCK_TOKENS: u32 = 16;

/// KV blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}
