//! Ids of tokens, requests and KV blocks.

/// Token id in the vocabulary shared by target and draft. An alias, because tokenizers, samplers
/// and kernels all exchange tokens as plain `u32`: a newtype would add a conversion at each of
/// these boundaries and remove no cast.
pub type TokenId = u32;

/// Id of a request; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Index of a block in its KV pool. A newtype, because block numbers, block counts and positions
/// meet in the same expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Index into what a pool holds per block.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Tokens per KV block. A constant, because kernels are compiled for it.
pub const BLOCK_TOKENS: u32 = 16;

/// Number of KV blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}
