//! Loading synthetic Hugging Face directories, good and bad.
#![forbid(unsafe_code)]

mod bad_files;
mod config;
pub(in crate::model) mod directory;
mod loading;
mod rope;

use directory::Directory;
