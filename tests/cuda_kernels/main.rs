//! Every CUDA kernel against its oracle and its plain version, on fresh random inputs, with
//! outputs poisoned beforehand.
#![cfg(feature = "cuda")]

mod doctor;
mod layers;
mod sampling;
mod support;
mod verify;
