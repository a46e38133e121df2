//! Known target shapes of an inflation.

/// Dimensions of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateShape {
    /// Name on the command line.
    pub name: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Context length, in tokens. Beyond the source's own context the cost is realistic, but
    /// the text is not meaningful.
    pub context_tokens_max: usize,
    /// Whether the head is tied to the embedding, provided the source's is.
    pub tied_head: bool,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
}

/// All shapes, largest first.
pub const SHAPES: [InflateShape; 6] = [
    InflateShape {
        name: "llama-3-8b",
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        context_tokens_max: 8192,
        tied_head: false,
        qkv_bias: false,
    },
    InflateShape {
        name: "qwen2.5-7b",
        vocab_size: 152_064,
        hidden_size: 3584,
        intermediate_size: 18_944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        context_tokens_max: 32_768,
        tied_head: false,
        qkv_bias: true,
    },
    InflateShape {
        name: "qwen2.5-1.5b",
        vocab_size: 151_936,
        hidden_size: 1536,
        intermediate_size: 8960,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        context_tokens_max: 32_768,
        tied_head: true,
        qkv_bias: true,
    },
    InflateShape {
        name: "llama-3.2-1b",
        vocab_size: 128_256,
        hidden_size: 2048,
        intermediate_size: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        context_tokens_max: 32_768,
        tied_head: true,
        qkv_bias: false,
    },
    InflateShape {
        name: "qwen2.5-0.5b",
        vocab_size: 151_936,
        hidden_size: 896,
        intermediate_size: 4864,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        context_tokens_max: 32_768,
        tied_head: true,
        qkv_bias: true,
    },
    InflateShape {
        name: "llama-160m",
        vocab_size: 32_000,
        hidden_size: 768,
        intermediate_size: 3072,
        layers: 12,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        context_tokens_max: 8192,
        tied_head: false,
        qkv_bias: false,
    },
];

impl InflateShape {
    /// Looks up a shape by name.
    pub fn named(name: &str) -> Option<InflateShape> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }
}
