//! Unsafe code is forbidden wherever there is none: each source file forbids it at its head, or
//! an ancestor module does, or the file (or a module below it) holds unsafe code today.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Generated code that is included at build time holds unsafe code that the file does not show.
const GENERATED: &str = "executor/cuda/ffi.rs";

fn read(folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path.clone(), std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// The module path of a file: `a/mod.rs` and `a.rs` are both `a`; the crate's roots are empty.
fn module(file: &Path) -> PathBuf {
    match file.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => file.with_file_name(""),
        _ => file.with_extension(""),
    }
}

fn forbids(text: &str) -> bool {
    text.lines().any(|line| line == "#![forbid(unsafe_code)]")
}

fn holds_unsafe(file: &Path, text: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.any(|word| word == "unsafe") || file.ends_with(GENERATED)
}

#[test]
fn files_without_unsafe_code_forbid_it() {
    let mut files = BTreeMap::new();
    read(Path::new("src"), &mut files);
    assert!(files.len() > 200, "the sources are found");
    let modules: Vec<(PathBuf, &PathBuf, &String)> =
        files.iter().map(|(file, text)| (module(file), file, text)).collect();
    let open = modules.iter().filter(|(own, ..)| {
        let covered = modules.iter().any(|(above, _, text)| own.starts_with(above) && forbids(text));
        let needed =
            modules.iter().any(|(below, file, text)| below.starts_with(own) && holds_unsafe(file, text));
        !covered && !needed
    });
    let open: Vec<String> = open.map(|(_, file, _)| file.display().to_string()).collect();
    assert!(open.is_empty(), "`#![forbid(unsafe_code)]` is missing in:\n{}", open.join("\n"));
}
