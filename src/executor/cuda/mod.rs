//! The CUDA executor: our kernels (csrc/), cuBLASLt for matrix products.
//!
//! libcuda and libcublasLt are opened at run time, so that a binary with this feature
//! also starts where they are missing and says what is. Only this module holds `unsafe`
//! code for the device: raw calls are wrapped here and their status is always checked.

mod attention_chunks;
mod attention_items;
pub mod attention_plan;
mod attention_room;
mod attention_rows;
pub mod batch_check;
pub mod buffer;
pub mod communicator;
mod compaction;
pub mod draft_round;
mod drafter;
pub mod driver;
pub mod error;
mod executor;
mod fed_trees;
pub mod ffi;
pub mod forward;
pub mod gemm;
pub mod graph;
pub mod graphs;
mod heads;
pub mod host_step;
pub mod library;
pub mod linear;
pub mod measure;
pub mod options;
pub mod product;
mod round_row;
mod runner;
pub mod sampling_rows;
pub mod scratch;
pub mod shard;
mod step_inputs;
pub mod step_layout;
mod step_marks;
pub mod step_results;
pub(crate) mod stream;
pub mod tensor_part;
pub mod verify_batch;
pub mod weights;

pub use buffer::{DeviceBuffer, PinnedBuffer};
pub use driver::{Gpu, GpuInfo};
pub use error::CudaError;
pub use executor::CudaExecutor;
pub use graph::Graph;
pub use options::{CudaOptions, KvBudget};
pub use sampling_rows::SamplingRows;
pub use stream::{Event, Stream};
