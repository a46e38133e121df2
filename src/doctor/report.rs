//! The report of `specserve doctor`, as data.
#![forbid(unsafe_code)]

use std::fmt;

/// One property of the machine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Name of the property.
    pub subject: String,
    /// Its value, with units.
    #[serde(rename = "finding")]
    pub value: String,
}

/// Severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The CUDA executor cannot run.
    NoCuda,
    /// Everything works, but not at full performance.
    Warning,
}

/// A problem of the machine or the build.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// How serious the problem is.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// How to fix it.
    pub remedy: String,
}

/// The complete report; `Display` is the human-readable form.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DoctorReport {
    /// Properties of the machine. `facts` in JSON.
    #[serde(rename = "facts")]
    pub findings: Vec<Finding>,
    /// Problems; empty on a healthy machine.
    pub problems: Vec<Problem>,
}

impl DoctorReport {
    /// Adds a finding.
    pub(crate) fn finding(&mut self, subject: &str, value: impl fmt::Display) {
        self.findings.push(Finding { subject: subject.to_owned(), value: value.to_string() });
    }

    /// Adds a problem.
    pub(crate) fn problem(&mut self, severity: Severity, what: impl fmt::Display, remedy: &str) {
        self.problems.push(Problem { severity, what: what.to_string(), remedy: remedy.to_owned() });
    }

    /// Whether the CUDA executor can work here.
    pub fn cuda_works(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::NoCuda)
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or(0);
        for finding in &self.findings {
            writeln!(f, "{:width$}  {}", finding.subject, finding.value)?;
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
        report.finding("GPU", "none");
        report.problem(Severity::Warning, "slow", "hurry");
        assert!(report.cuda_works());
        report.problem(Severity::NoCuda, "no driver", "install it");
        assert!(!report.cuda_works());
        let text = report.to_string();
        for part in ["GPU  none", "warning: slow", "→ hurry", "no CUDA: no driver", "→ install it"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
