//! Takes the place of crates.io's `find_cuda_helper` 0.2, through `[patch.crates-io]`.
//!
//! The build scripts of `cust` 0.3.2 and `cust_raw` 0.11.3 call [`include_cuda`]. The
//! original panics where no toolkit is installed and links `-lcuda`, so that the binary
//! would not start where the driver is missing. This one compiles a small archive that
//! defines every driver entry point as a trampoline and opens `libcuda.so.1` at the first
//! call: one binary for machines with and without a GPU. Without a driver every function
//! returns 100 (no device); a function that the driver lacks returns 500 (not found).
#![warn(missing_docs)]

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

/// The driver functions that `cust_raw` declares, one a line.
const SYMBOLS: &str = include_str!("../shim/driver_symbols.txt");
const RESOLVER_C: &str = include_str!("../shim/resolver.c");

/// Saves the argument registers (System V AMD64), asks the resolver for the function whose
/// number the trampoline pushed, restores them and jumps there.
const ENTER_ASM: &str = "\
.type cuda_shim_enter,@function
.p2align 4
cuda_shim_enter:
  pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9; pushq %rax
  subq $136, %rsp
  movups %xmm0,0(%rsp); movups %xmm1,16(%rsp); movups %xmm2,32(%rsp); movups %xmm3,48(%rsp)
  movups %xmm4,64(%rsp); movups %xmm5,80(%rsp); movups %xmm6,96(%rsp); movups %xmm7,112(%rsp)
  movq 192(%rsp), %rdi
  call cuda_shim_resolve
  movq %rax, %r11
  movups 0(%rsp),%xmm0; movups 16(%rsp),%xmm1; movups 32(%rsp),%xmm2; movups 48(%rsp),%xmm3
  movups 64(%rsp),%xmm4; movups 80(%rsp),%xmm5; movups 96(%rsp),%xmm6; movups 112(%rsp),%xmm7
  addq $136, %rsp
  popq %rax; popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi
  addq $8, %rsp
  jmpq *%r11
.section .note.GNU-stack,\"\",@progbits
";

/// What the build scripts of `cust` and `cust_raw` call: makes the driver linkable.
///
/// `CUDA_LINK_DRIVER=1` asks for the ordinary link against libcuda.so, which other
/// platforms than x86-64 Linux always get.
pub fn include_cuda() {
    println!("cargo:rerun-if-env-changed=CUDA_LINK_DRIVER");
    let plain = env::var("CUDA_LINK_DRIVER").is_ok_and(|value| value == "1");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if plain || arch != "x86_64" || os != "linux" {
        for dir in find_cuda_lib_dirs() {
            println!("cargo:rustc-link-search=native={}", dir.display());
        }
        println!("cargo:rustc-link-lib=dylib=cuda");
        return;
    }
    // Both crates call this; one archive is enough.
    if env::var("CARGO_PKG_NAME").as_deref() == Ok("cust_raw") {
        build_shim();
    }
}

fn build_shim() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let names: Vec<&str> = SYMBOLS.lines().map(str::trim).filter(|line| !line.is_empty()).collect();

    let assembly = out.join("cuda_shim_trampolines.S");
    fs::write(&assembly, trampolines(&names)).expect("writing to OUT_DIR");
    let resolver = out.join("cuda_shim_resolver.c");
    fs::write(&resolver, name_table(&names) + RESOLVER_C).expect("writing to OUT_DIR");

    cc::Build::new().file(&assembly).file(&resolver).compile("cuda_lazy_shim");
    println!("cargo:rustc-link-lib=dylib=dl");
}

/// One trampoline per function: jumps through its table entry, which first points right
/// behind that jump, where the function's number is pushed for the resolver.
fn trampolines(names: &[&str]) -> String {
    let mut text = String::from(
        ".pushsection .data.rel.cuda_shim,\"aw\",@progbits\n.p2align 3\n\
         .globl cuda_shim_table\n.hidden cuda_shim_table\ncuda_shim_table:\n.popsection\n\
         .section .text.cuda_shim,\"ax\",@progbits\n",
    );
    for (index, name) in names.iter().enumerate() {
        let offset = 8 * index;
        write!(
            text,
            ".globl {name}\n.type {name},@function\n.p2align 4\n{name}:\n  endbr64\n  \
             jmpq *cuda_shim_table+{offset}(%rip)\n.size {name},.-{name}\n1:\n  pushq ${index}\n  \
             jmp cuda_shim_enter\n.pushsection .data.rel.cuda_shim,\"aw\",@progbits\n  .quad 1b\n.popsection\n",
        )
        .expect("writing to a string");
    }
    text + ENTER_ASM
}

fn name_table(names: &[&str]) -> String {
    let rows: String = names.iter().map(|name| format!("  \"{name}\",\n")).collect();
    format!("static const char *const cuda_shim_names[] = {{\n{rows}}};\n")
}

/// The toolkit's folder, if there is one.
pub fn find_cuda_root() -> Option<PathBuf> {
    ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"]
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from))
        .find(|root| root.join("include/cuda.h").is_file())
}

/// Folders named by `CUDA_LIBRARY_PATH`.
pub fn read_env() -> Vec<PathBuf> {
    env::var("CUDA_LIBRARY_PATH")
        .map(|paths| paths.split(':').map(PathBuf::from).collect())
        .unwrap_or_default()
}

/// Folders that may hold libcuda.so for an ordinary link.
pub fn find_cuda_lib_dirs() -> Vec<PathBuf> {
    const PLACES: [&str; 6] = [
        "lib64/stubs",
        "lib64",
        "lib/stubs",
        "lib",
        "targets/x86_64-linux/lib/stubs",
        "targets/x86_64-linux/lib",
    ];
    read_env()
        .into_iter()
        .chain(find_cuda_root())
        .flat_map(|base| PLACES.map(|place| base.join(place)))
        .filter(|dir| dir.is_dir())
        .collect()
}
