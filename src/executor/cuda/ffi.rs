//! Generated bindings: our kernels' launchers and cuBLASLt.

/// Launchers and parameter structs of csrc/kernels.h.
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all)]
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// cuBLASLt, opened at run time by [`open_cublaslt`](super::library::open_cublaslt).
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all)]
pub mod cublaslt {
    include!(concat!(env!("OUT_DIR"), "/cublaslt.rs"));
}

const _: () = assert!(
    kernels::KV_BLOCK_TOKENS == crate::protocol::BLOCK_TOKENS,
    "kernels and host cut KV blocks alike"
);
