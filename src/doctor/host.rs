//! Checks of the host: CPU, memory, limits.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::report::{DoctorReport, Severity};

/// Open files that a busy daemon needs: one per connection, plus a reserve.
const OPEN_FILES_MIN: u64 = 4096;

pub(super) fn build(report: &mut DoctorReport) {
    report.finding("specserve", env!("CARGO_PKG_VERSION"));
    let driver = read("/sys/module/nvidia/version");
    report.finding("NVIDIA kernel driver", driver.as_deref().unwrap_or("not loaded"));
    if cfg!(feature = "cuda") {
        return;
    }
    report.finding("CUDA executor", "not in this build");
    let remedy = "build with `--features cuda` (scripts/get-cuda.sh installs the toolkit)";
    report.problem(Severity::NoCuda, "this binary was built without CUDA", remedy);
}

pub(super) fn host(report: &mut DoctorReport) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    report.finding("processor", format!("{}, {cpus} usable threads", field("model name")));
    let wanted = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"];
    let flags: Vec<&str> = field("flags").split_whitespace().filter(|flag| wanted.contains(flag)).collect();
    report.finding("vector instructions", flags.join(" "));
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    for (subject, key) in [("memory", "MemTotal:"), ("memory available", "MemAvailable:")] {
        if let Some(kib) = kib_of(&meminfo, key) {
            report.finding(subject, format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)));
        }
    }
    report.finding("NUMA nodes", numa_nodes());
}

fn kib_of(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn numa_nodes() -> usize {
    let Ok(entries) = fs::read_dir("/sys/devices/system/node") else { return 1 };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_node = |name: &String| {
        name.strip_prefix("node").is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    };
    names.filter(is_node).count().max(1)
}

pub(super) fn limits(report: &mut DoctorReport) {
    let files = getrlimit(Resource::Nofile);
    let shown = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    report.finding("open files", format!("{} (at most {})", shown(files.current), shown(files.maximum)));
    if files.current.is_some_and(|limit| limit < OPEN_FILES_MIN) {
        let what =
            format!("at most {} open files are allowed, and each connection takes one", shown(files.current));
        report.problem(Severity::Warning, what, "raise it: `ulimit -n 65536`, or LimitNOFILE= in the unit");
    }
}

/// Reads a small system file, trimmed.
pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described_on_any_machine() {
        let mut report = DoctorReport::default();
        build(&mut report);
        host(&mut report);
        limits(&mut report);
        let found =
            |subject: &str| report.findings.iter().any(|f| f.subject == subject && !f.value.is_empty());
        assert!(["specserve", "processor", "NUMA nodes", "open files"].into_iter().all(found));
        assert_eq!(report.cuda_works(), cfg!(feature = "cuda"));
    }

    #[test]
    fn memory_is_read_from_the_kernel_s_table() {
        let table = "MemTotal:       16384 kB\nMemAvailable:   8192 kB";
        assert_eq!(kib_of(table, "MemAvailable:"), Some(8192));
        assert_eq!(kib_of(table, "Swap:"), None);
    }
}
