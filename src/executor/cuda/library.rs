//! Finds and opens libcublasLt at run time.

use std::env;
use std::path::{Path, PathBuf};

use super::error::CudaError;
use super::ffi::cublaslt::CublasLt;

/// Names a libcublasLt file directly; tried first.
const PATH_VARIABLE: &str = "SPECSERVE_CUBLASLT";
const FILE_NAME: &str = "libcublasLt.so.13";

/// Opens cuBLASLt. The result should live as long as the process: the library registers
/// exit handlers and must not be unloaded.
///
/// Tried in order: `SPECSERVE_CUBLASLT`, the loader's own search, the toolkit, the usual
/// folders, the Python wheels that come with PyTorch.
///
/// # Errors
/// [`CudaError::NoLibrary`] with all places that were tried.
pub fn open_cublaslt() -> Result<CublasLt, CudaError> {
    let mut tried = String::new();
    for candidate in candidates() {
        // SAFETY: the initialisers of cuBLASLt have no preconditions.
        let opened = unsafe { libloading::Library::new(&candidate) }
            // SAFETY: the functions are declared from the header of this major version.
            .and_then(|library| unsafe { CublasLt::from_library(library) });
        match opened {
            Ok(library) => return Ok(library),
            Err(error) => tried += &format!("\n  {}: {error}", candidate.display()),
        }
    }
    Err(CudaError::NoLibrary { library: FILE_NAME, tried })
}

/// Where the opened library lies, from the process's memory map.
pub fn cublaslt_path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    path.map(PathBuf::from).find(|path| path.to_string_lossy().contains("libcublasLt"))
}

fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env::var_os(PATH_VARIABLE).map(PathBuf::from).into_iter().collect();
    found.push(FILE_NAME.into());
    let folders = toolkit_folders().into_iter().chain(wheel_folders());
    found.extend(folders.map(|folder| folder.join(FILE_NAME)).filter(|file| file.is_file()));
    found
}

fn toolkit_folders() -> Vec<PathBuf> {
    const USUAL: [&str; 4] =
        ["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu"];
    let named = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os);
    named
        .flat_map(|root| ["lib64", "lib"].map(|place| Path::new(&root).join(place)))
        .chain(USUAL.map(PathBuf::from))
        .collect()
}

/// `<root>/lib/python3.X/site-packages/nvidia/cu13/lib` of every Python in reach.
fn wheel_folders() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from);
    let search = env::var_os("PATH").unwrap_or_default();
    let pythons = env::split_paths(&search)
        .filter(|folder| folder.join("python3").exists())
        .filter_map(|folder| folder.parent().map(Path::to_owned));
    let mut folders = Vec::new();
    for root in environments.chain(pythons).chain(["/usr/local".into()]) {
        let Ok(entries) = std::fs::read_dir(root.join("lib")) else { continue };
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                folders.push(entry.path().join(packages).join("nvidia/cu13/lib"));
            }
        }
    }
    folders
}
