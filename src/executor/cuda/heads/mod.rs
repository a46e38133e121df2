//! Draft heads: drafters that read hidden states of the target.
//!
//! As on the CPU (`executor/cpu/heads`), a head keeps keys and values of every committed token in a
//! cache that is indexed by the target's blocks, and computes them from hidden states when it drafts,
//! or when there is no room for more states. Only the states of sequences that draft are read: within
//! the graph of the pass that drafts, as long as they are few.

mod block;
mod buffers;
mod chain;
mod drafter;
mod fill;
mod model;
mod products;
mod runner;
mod sampler;
mod sizes;
mod weights;

pub use drafter::{HeadDrafter, hidden_state_capacity};
