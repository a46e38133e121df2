//! Renders the demo's report as text.

use super::report::{DemoReport, SideStats};
use crate::cli::table::{Table, or_dash};

/// Where speculation pays; printed if it does not on this machine.
const ON_A_GPU: &str = "It pays where a pass that checks several tokens costs about as much as one that makes one token, as\n\
    on a GPU: an 8B-shaped pair on an H100 answers 2.6 times as fast (docs/benchmarks.md).";

impl std::fmt::Display for DemoReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} prompts at temperature 0, up to {} tokens each, one at a time, {}:\n",
            self.prompts,
            self.tokens_max,
            if self.rounds == 1 {
                "one round".to_owned()
            } else {
                format!("median of {} rounds", self.rounds)
            }
        )?;
        write!(f, "{}\n{}", table(self), texts(self))?;
        writeln!(f, "{}", Verdict::of(self))
    }
}

fn table(report: &DemoReport) -> Table {
    let mut table = Table::new(["", "no speculation", &report.policy]);
    let mut row = |name: &str, cell: &dyn Fn(&SideStats) -> String| {
        table.row([name.to_owned(), cell(&report.plain), cell(&report.speculative)]);
    };
    row("output tokens per second", &|side| format!("{:.0}", side.tokens_per_second));
    row("output tokens per pass of the target", &|side| or_dash(side.acceptance_length, 2));
    row("guesses that the target accepted", &|side| {
        let percent = side.acceptance_rate.map(|rate| 100.0 * rate);
        percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0} %"))
    });
    row("time to the first token, ms (TTFT, median)", &|side| or_dash(side.ttft_ms.p50, 2));
    row("time per token after it, ms (TPOT, median)", &|side| or_dash(side.tpot_ms.p50, 3));
    table
}

fn texts(report: &DemoReport) -> String {
    if report.identical {
        let prompts = report.prompts;
        return format!("All {prompts} answers are the same text with and without speculation.\n");
    }
    let different: Vec<String> =
        report.different_prompts.iter().map(|prompt| format!("  {prompt}\n")).collect();
    format!(
        "The answers to these prompts are NOT the same with and without speculation:\n{}",
        different.concat()
    )
}

/// Whether speculation paid, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// The policy drafted nothing.
    Unused,
    /// It was faster.
    Pays(Comparison),
    /// It was slower.
    Costs(Comparison),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Comparison {
    speedup: f64,
    /// Time of a speculative step over that of a plain one, and what it yields; `None` if no answer
    /// was long enough to tell.
    step: Option<(f64, f64)>,
}

impl Verdict {
    fn of(report: &DemoReport) -> Verdict {
        let (plain, speculative) = (&report.plain, &report.speculative);
        let steps_ms = plain.step_ms().zip(speculative.step_ms());
        let times = steps_ms.map(|(plain_ms, speculative_ms)| speculative_ms / plain_ms);
        let comparison =
            Comparison { speedup: report.speedup, step: times.zip(speculative.acceptance_length) };
        match report.speedup {
            _ if speculative.draft_tokens == 0 => Verdict::Unused,
            speedup if speedup >= 1.0 => Verdict::Pays(comparison),
            _ => Verdict::Costs(comparison),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Unused => write!(
                f,
                "The policy made no guesses: by its measurements they cost more here than they bring.\n{ON_A_GPU}"
            ),
            Verdict::Pays(comparison) => {
                write!(f, "Speculation is {:.2} times as fast here", comparison.speedup)?;
                comparison.explain(f)
            }
            Verdict::Costs(comparison) => {
                write!(f, "Speculation does not pay here: {:.2} times the speed", comparison.speedup)?;
                comparison.explain(f)?;
                write!(f, "\n{ON_A_GPU}")
            }
        }
    }
}

impl Comparison {
    fn explain(self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.step {
            Some((times, tokens)) => write!(
                f,
                ": guessing and checking take {times:.1} times as long\n\
                 as a pass for one token, and yield {tokens:.1} tokens."
            ),
            None => write!(f, "."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::report::Percentiles;

    fn side(tokens_per_second: f64, tokens_a_step: f64, draft_tokens: u64, tpot_ms: f64) -> SideStats {
        SideStats {
            tokens_per_second,
            output_tokens: 400,
            acceptance_length: Some(tokens_a_step),
            draft_tokens,
            acceptance_rate: (draft_tokens > 0).then_some(0.756),
            ttft_ms: Percentiles { p50: Some(1.5), p99: None },
            tpot_ms: Percentiles { p50: Some(tpot_ms), p99: None },
        }
    }

    fn report(speculative: SideStats) -> DemoReport {
        let plain = side(800.0, 1.0, 0, 1.0);
        DemoReport {
            version: "0",
            policy: "specserve".to_owned(),
            prompts: 8,
            tokens_max: 128,
            rounds: 3,
            speedup: speculative.tokens_per_second / plain.tokens_per_second,
            plain,
            speculative,
            identical: true,
            different_prompts: Vec::new(),
            answers: Vec::new(),
        }
    }

    #[test]
    fn a_gain_is_explained_by_the_cost_of_a_step_and_its_yield() {
        let text = report(side(1200.0, 4.0, 300, 0.625)).to_string();
        assert!(
            text.contains("Speculation is 1.50 times as fast here: guessing and checking take 2.5 times"),
            "{text}"
        );
        assert!(text.contains("yield 4.0 tokens."), "{text}");
        let accepted = text.lines().find(|line| line.starts_with("guesses that the target accepted"));
        assert!(accepted.is_some_and(|line| line.ends_with("76 %")), "{text}");
        assert!(!text.contains("H100"), "{text}");
    }

    #[test]
    fn a_loss_is_admitted_and_explained() {
        let text = report(side(720.0, 2.0, 300, 1.11)).to_string();
        assert!(
            text.contains("does not pay here: 0.90 times the speed: guessing and checking take 2.2"),
            "{text}"
        );
        assert!(text.contains("H100"), "{text}");
    }

    #[test]
    fn a_policy_that_made_no_guesses_says_so() {
        let text = report(side(800.0, 1.0, 0, 1.0)).to_string();
        assert!(text.contains("made no guesses") && !text.contains("times as fast here"), "{text}");
    }

    #[test]
    fn answers_that_differ_are_named() {
        let mut differing = report(side(1200.0, 4.0, 300, 0.625));
        differing.identical = false;
        differing.different_prompts = vec!["What is a river?"];
        let text = differing.to_string();
        assert!(text.contains("NOT the same") && text.contains("\n  What is a river?\n"), "{text}");
    }
}
