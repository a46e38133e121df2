//! Every CUDA kernel against its oracle and its naive reference, on random inputs, with
//! outputs poisoned beforehand.
#![cfg(feature = "cuda")]

mod doctor;
mod draft_head;
mod layers;
mod sampling;
mod support;
mod verify;
