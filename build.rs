//! Builds the CUDA layer when the feature `cuda` is on; otherwise nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::hash_map::DefaultHasher;
    use std::hash::{Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;
    use std::{env, fs, thread};

    /// Variables that name the toolkit, in the order they are tried.
    const TOOLKIT_VARIABLES: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
    /// Comma-separated compute capabilities to compile for (`90`); fewer build faster.
    const ARCHS_VARIABLE: &str = "SPECSERVE_CUDA_ARCHS";
    const ARCHS: &str = "80,89,90";
    const CUBLASLT_FUNCTIONS: &str = "cublasLt(Create|Destroy|GetVersion|GetCudartVersion|GetStatusString|\
        Matmul|MatmulDescCreate|MatmulDescDestroy|MatmulDescSetAttribute|MatmulPreferenceCreate|\
        MatmulPreferenceDestroy|MatmulPreferenceSetAttribute|MatrixLayoutCreate|MatrixLayoutDestroy|\
        MatrixLayoutSetAttribute|MatmulAlgoGetHeuristic|MatmulAlgoCheck|MatmulAlgoConfigGetAttribute)";
    const CUBLASLT_TYPES: &str = "cublasOperation_t|cublasLt(MatmulDescAttributes_t|\
        MatmulPreferenceAttributes_t|MatrixLayoutAttribute_t|Epilogue_t|MatmulAlgoConfigAttributes_t|\
        ReductionScheme_t)";

    pub fn build() {
        for variable in TOOLKIT_VARIABLES.into_iter().chain([ARCHS_VARIABLE]) {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        println!("cargo:rerun-if-changed=csrc");
        let toolkit = toolkit();
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        compile_kernels(&toolkit, &out);
        link_runtime(&toolkit);
        bind_launchers(&out);
        bind_cublaslt(&toolkit, &out);
        println!("cargo:rustc-env=SPECSERVE_NVCC={}", nvcc_version(&toolkit));
    }

    fn toolkit() -> PathBuf {
        let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
        let usual = [here.join(".cuda/nvidia/cu13"), "/usr/local/cuda".into(), "/opt/cuda".into()];
        TOOLKIT_VARIABLES
            .iter()
            .filter_map(env::var_os)
            .map(PathBuf::from)
            .chain(usual)
            .find(|root| root.join("bin/nvcc").is_file() && root.join("include/cublasLt.h").is_file())
            .expect("feature `cuda` needs a CUDA 13 toolkit: run scripts/get-cuda.sh or set CUDA_HOME")
    }

    /// Compiles csrc/*.cu, each only when it, a header or a flag changed (cargo reruns
    /// this script for any change, and nvcc takes seconds a file).
    fn compile_kernels(toolkit: &Path, out: &Path) {
        // cc wraps the host compiler's flags for nvcc only when it finds nvcc by this variable.
        // SAFETY: no other thread of this script runs yet.
        unsafe { env::set_var("NVCC", toolkit.join("bin/nvcc")) };
        let archs = env::var(ARCHS_VARIABLE).unwrap_or_else(|_| ARCHS.to_owned());
        let headers = files("csrc", &["h", "cuh"]);
        let mut common = DefaultHasher::new();
        (&archs, toolkit, fs::read("build.rs").ok()).hash(&mut common);
        for header in &headers {
            fs::read(header).expect("csrc is readable").hash(&mut common);
        }

        let queue = Mutex::new(files("csrc", &["cu"]).into_iter());
        let objects = Mutex::new(Vec::new());
        let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(source) = { queue.lock().expect("no poison").next() } {
                        let mut hash = common.clone();
                        fs::read(&source).expect("csrc is readable").hash(&mut hash);
                        let object = compile(toolkit, out, &source, &archs, hash.finish());
                        objects.lock().expect("no poison").push(object);
                    }
                });
            }
        });
        let mut objects = objects.into_inner().expect("no poison");
        objects.sort();
        cc::Build::new()
            .objects(&objects)
            .cpp(true)
            .cpp_link_stdlib_static(true) // launch stubs use __cxa_guard_*
            .compile("specserve_kernels");
    }

    fn compile(toolkit: &Path, out: &Path, source: &Path, archs: &str, hash: u64) -> PathBuf {
        let stem = source.file_stem().expect("a .cu file").to_string_lossy().into_owned();
        let kept = out.join(format!("{stem}-{hash:016x}.o"));
        if kept.is_file() {
            return kept;
        }
        let mut build = cc::Build::new();
        build
            .cuda(true)
            .cudart("none") // linked below: cc looks only in targets/<arch>/lib
            .include(toolkit.join("include"))
            .out_dir(out.join(&stem))
            .flag("-std=c++17")
            .flag("--expt-relaxed-constexpr")
            .flag("-lineinfo")
            .flag("-Xfatbin")
            .flag("-compress-all")
            .debug(false) // a dev build would pass -G: unoptimised device code
            .opt_level(3)
            .warnings(false)
            .cargo_metadata(false)
            .file(source);
        for arch in archs.split(',') {
            build.flag("-gencode").flag(format!("arch=compute_{arch},code=sm_{arch}"));
        }
        let newest = archs.rsplit(',').next().expect("at least one architecture");
        build.flag("-gencode").flag(format!("arch=compute_{newest},code=compute_{newest}"));
        let objects = build.compile_intermediates();
        fs::rename(&objects[0], &kept).expect("renaming within OUT_DIR");
        kept
    }

    fn files(dir: &str, extensions: &[&str]) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(dir)
            .expect("csrc exists")
            .map(|entry| entry.expect("csrc is readable").path())
            .filter(|path| path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)))
            .collect();
        found.sort();
        found
    }

    /// The CUDA runtime and libstdc++, both static: the binary then needs only libc.
    fn link_runtime(toolkit: &Path) {
        let libraries = ["lib64", "lib", "targets/x86_64-linux/lib"]
            .iter()
            .map(|place| toolkit.join(place))
            .find(|dir| dir.join("libcudart_static.a").is_file())
            .expect("the toolkit has libcudart_static.a");
        println!("cargo:rustc-link-search=native={}", libraries.display());
        if let Some(dir) = Path::new(&output("g++", "-print-file-name=libstdc++.a")).parent() {
            println!("cargo:rustc-link-search=native={}", dir.display());
        }
        println!("cargo:rustc-link-lib=static=cudart_static");
        for library in ["dl", "rt", "pthread"] {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
    }

    fn bindings(header: &str) -> bindgen::Builder {
        bindgen::Builder::default()
            .header(header)
            // libclang alone, without clang's own headers, lacks stddef.h
            .clang_args(["-isystem".to_owned(), output("gcc", "-print-file-name=include")])
            .blocklist_type("CUstream_st")
            .raw_line("use cust::sys::CUstream_st;")
            .layout_tests(false)
            .use_core()
    }

    fn bind_launchers(out: &Path) {
        bindings("csrc/kernels.h")
            .allowlist_file(".*csrc/.*")
            .derive_default(true)
            .generate()
            .expect("csrc/kernels.h binds")
            .write_to_file(out.join("kernels.rs"))
            .expect("writing to OUT_DIR");
    }

    fn bind_cublaslt(toolkit: &Path, out: &Path) {
        let header = toolkit.join("include/cublasLt.h");
        bindings(&header.to_string_lossy())
            .clang_arg(format!("-I{}", toolkit.join("include").display()))
            .dynamic_library_name("CublasLt")
            .dynamic_link_require_all(true)
            .allowlist_function(CUBLASLT_FUNCTIONS)
            .allowlist_type(CUBLASLT_TYPES)
            .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
            .prepend_enum_name(false)
            .wrap_unsafe_ops(true)
            .generate_comments(false)
            .generate()
            .expect("cublasLt.h binds")
            .write_to_file(out.join("cublaslt.rs"))
            .expect("writing to OUT_DIR");
    }

    fn nvcc_version(toolkit: &Path) -> String {
        let text = output(&toolkit.join("bin/nvcc").to_string_lossy(), "--version");
        text.lines().find(|line| line.contains("release")).unwrap_or("unknown").trim().to_owned()
    }

    fn output(program: &str, argument: &str) -> String {
        let result = Command::new(program).arg(argument).output();
        let result = result.unwrap_or_else(|error| panic!("{program} does not run: {error}"));
        String::from_utf8_lossy(&result.stdout).trim().to_owned()
    }
}
