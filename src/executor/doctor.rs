//! What this machine offers to the executors, what is missing, and what to do about it.
//!
//! Works on every machine and in every build: what cannot be looked at is reported as such.

use std::fmt;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Open files that a busy daemon needs: one per connection, and some.
const OPEN_FILES_MIN: u64 = 4096;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fact {
    /// What was looked at.
    pub subject: String,
    /// What was found, with units.
    pub finding: String,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The CUDA executor does not work.
    NoCuda,
    /// Everything works, but less well than it could.
    Warning,
}

/// Something to be put right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// The whole report; `Display` writes it for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DoctorReport {
    /// What was found.
    pub facts: Vec<Fact>,
    /// What is wrong; empty on a healthy machine.
    pub problems: Vec<Problem>,
}

impl DoctorReport {
    /// Notes a finding.
    pub(crate) fn fact(&mut self, subject: &str, finding: impl fmt::Display) {
        self.facts.push(Fact { subject: subject.to_owned(), finding: finding.to_string() });
    }

    /// Notes a problem.
    pub(crate) fn problem(&mut self, severity: Severity, what: impl fmt::Display, remedy: &str) {
        self.problems.push(Problem { severity, what: what.to_string(), remedy: remedy.to_owned() });
    }

    /// Whether the CUDA executor can work here.
    pub fn cuda_works(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::NoCuda)
    }
}

/// Looks at everything. With a GPU this takes some seconds, since bandwidth and matrix rate
/// are measured, and needs 3 GiB of free device memory.
pub fn report() -> DoctorReport {
    let mut report = DoctorReport::default();
    build(&mut report);
    host(&mut report);
    limits(&mut report);
    #[cfg(feature = "cuda")]
    super::cuda::doctor::examine(&mut report);
    report
}

fn build(report: &mut DoctorReport) {
    report.fact("specserve", env!("CARGO_PKG_VERSION"));
    let driver = read("/sys/module/nvidia/version");
    report.fact("NVIDIA kernel driver", driver.as_deref().unwrap_or("not loaded"));
    if cfg!(feature = "cuda") {
        return;
    }
    report.fact("CUDA executor", "not in this build");
    let remedy = "build with `--features cuda` (scripts/get-cuda.sh brings the toolkit)";
    report.problem(Severity::NoCuda, "this binary was built without CUDA", remedy);
}

fn host(report: &mut DoctorReport) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    report.fact("processor", format!("{}, {cpus} usable threads", field("model name")));
    let wanted = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"];
    let flags: Vec<&str> = field("flags").split_whitespace().filter(|flag| wanted.contains(flag)).collect();
    report.fact("vector instructions", flags.join(" "));
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    for (subject, key) in [("memory", "MemTotal:"), ("memory available", "MemAvailable:")] {
        if let Some(kib) = kib_of(&meminfo, key) {
            report.fact(subject, format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)));
        }
    }
    report.fact("NUMA nodes", numa_nodes());
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

fn limits(report: &mut DoctorReport) {
    let files = getrlimit(Resource::Nofile);
    let shown = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    report.fact("open files", format!("{} (at most {})", shown(files.current), shown(files.maximum)));
    if files.current.is_some_and(|limit| limit < OPEN_FILES_MIN) {
        let what = format!("at most {} files may be open, and every connection is one", shown(files.current));
        report.problem(Severity::Warning, what, "raise it: `ulimit -n 65536`, or LimitNOFILE= in the unit");
    }
}

/// A small text file of the system, without the white space around it.
pub(crate) fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.facts.iter().map(|fact| fact.subject.chars().count()).max().unwrap_or(0);
        for fact in &self.facts {
            writeln!(f, "{:width$}  {}", fact.subject, fact.finding)?;
        }
        writeln!(f)?;
        for problem in &self.problems {
            let kind = match problem.severity {
                Severity::NoCuda => "no CUDA",
                Severity::Warning => "warning",
            };
            writeln!(f, "{kind}: {}\n  → {}", problem.what, problem.remedy)?;
        }
        if self.problems.is_empty() {
            writeln!(f, "no problems found")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_comes_with_a_remedy_and_is_shown() {
        let mut report = DoctorReport::default();
        report.fact("GPU", "none");
        report.problem(Severity::Warning, "slow", "hurry");
        assert!(report.cuda_works());
        report.problem(Severity::NoCuda, "no driver", "install it");
        assert!(!report.cuda_works());
        let text = report.to_string();
        for part in ["GPU  none", "warning: slow", "→ hurry", "no CUDA: no driver", "→ install it"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_host_is_described_on_any_machine() {
        let mut report = DoctorReport::default();
        build(&mut report);
        host(&mut report);
        limits(&mut report);
        let found =
            |subject: &str| report.facts.iter().any(|f| f.subject == subject && !f.finding.is_empty());
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
