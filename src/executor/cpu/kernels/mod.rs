//! The arithmetic: each kernel once, generic over [`vector::Vector`], compiled for
//! AVX-512, AVX2 with FMA, and portably, chosen once when the executor is built.
//!
//! Every number is reduced in an order that depends on nothing but its own
//! operands' indices: a matrix product adds its inputs one after the other into one
//! lane, attention adds its positions one after the other. How many rows, which
//! tile and which thread they fall to can't be seen in the result, which is what
//! makes the executor batch-invariant bit for bit (within one instruction set).
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over arrays of registers: the index is the register's name"
)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod matmul;
mod portable;
mod probe;
#[cfg(test)]
mod tests;
mod vector;

pub(crate) use attention::{AttentionTile, QUERIES_MAX, Query, attend};
pub(crate) use elementwise::{Norm, SwiGlu, rms_norm, swiglu};
pub(crate) use matmul::{Matmul, WeightFormat, matmul};
pub(crate) use probe::{multiply_adds, stream};

/// Floats in the widest register of any path.
pub(crate) const LANES_MAX: usize = 16;

/// Widths that kernels walk in steps of: hidden size, head width and KV blocks must
/// be multiples of it.
pub(crate) const STEP: usize = 16;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// Whatever the build's target has.
    Portable,
}

impl InstructionSet {
    /// The best that this processor has.
    pub fn detect() -> InstructionSet {
        InstructionSet::available()[0]
    }

    /// All that this processor has, best first; never empty.
    pub fn available() -> Vec<InstructionSet> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                sets.push(InstructionSet::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(InstructionSet::Avx2);
            }
        }
        sets.push(InstructionSet::Portable);
        sets
    }

    /// Its name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Avx512 => "AVX-512",
            InstructionSet::Avx2 => "AVX2",
            InstructionSet::Portable => "portable",
        }
    }

    /// Floats in one register.
    pub(crate) fn lanes(self) -> usize {
        match self {
            InstructionSet::Avx512 => 16,
            InstructionSet::Avx2 | InstructionSet::Portable => 8,
        }
    }
}

/// Defines the entry of a kernel: picks the instruction set, enables it, calls the
/// generic body with the register type and the registers in [`STEP`] floats.
macro_rules! entry {
    ($(#[$attribute:meta])* pub(crate) fn $name:ident($arguments:ty) = $body:ident) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// `set` must be one that the processor has, and what the arguments point to must be
        /// as their type says.
        pub(crate) unsafe fn $name(set: crate::executor::cpu::InstructionSet, arguments: $arguments) {
            use crate::executor::cpu::InstructionSet;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512(arguments: $arguments) {
                // SAFETY: the caller's contract, passed on.
                unsafe { $body::<super::avx512::Avx512, 1>(arguments) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(arguments: $arguments) {
                // SAFETY: the caller's contract, passed on.
                unsafe { $body::<super::avx2::Avx2, 2>(arguments) }
            }
            match set {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller vouches for the processor and the arguments.
                InstructionSet::Avx512 => unsafe { avx512(arguments) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                InstructionSet::Avx2 => unsafe { avx2(arguments) },
                // SAFETY: as above.
                _ => unsafe { $body::<super::portable::Portable, 2>(arguments) },
            }
        }
    };
}
use entry;
