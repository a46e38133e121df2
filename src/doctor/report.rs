//! What `specserve doctor` reports, as data.
#![forbid(unsafe_code)]

use std::fmt;

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
}
