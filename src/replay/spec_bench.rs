//! Lengths with the statistics of Spec-Bench, without its texts.
//!
//! Spec-Bench (Xia et al., "Unlocking Efficiency in Large Language Model Inference", 2024)
//! has six tasks of 80 questions. The octiles of the word counts of each task's first turns
//! are measured on the published file. It contains no answers, so output lengths are
//! modelled as log-normal with assumed medians; the medians of draft acceptance are
//! assumptions as well.

use crate::random::Draw;

/// Random stream of the tasks.
const TASK_STREAM: u32 = 0x41;
/// Random stream of the lengths.
const LENGTH_STREAM: u32 = 0x42;
/// Approximate tokens per English word in Llama-like vocabularies.
const TOKENS_PER_WORD: f64 = 4.0 / 3.0;
/// Tokens that the chat template adds to a prompt.
const TEMPLATE_TOKENS: f64 = 16.0;
/// Longest output, as capped in AdaSpec's evaluation.
const OUTPUT_TOKENS_MAX: f64 = 1024.0;
/// Shortest output, in tokens.
const OUTPUT_TOKENS_MIN: f64 = 4.0;

/// The tasks of Spec-Bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Multi-turn conversation: first turns of MT-bench.
    Chat,
    /// Translation from German to English.
    Translation,
    /// Summarization of news articles.
    Summarization,
    /// Question answering.
    QuestionAnswering,
    /// Mathematical reasoning: grade-school problems.
    Mathematics,
    /// Retrieval-augmented generation: questions after retrieved passages.
    Retrieval,
}

/// Measured and assumed statistics of a task.
struct Statistics {
    /// Words of the prompt: minimum, seven octiles, maximum.
    prompt_words: [f64; 9],
    /// Median output tokens; assumed.
    output_median: f64,
    /// Standard deviation of the logarithm of the output; assumed.
    output_log_sd: f64,
    /// Median acceptance of a draft token by a small draft model; assumed.
    acceptance: f64,
}

const fn statistics(
    prompt_words: [f64; 9],
    output_median: f64,
    output_log_sd: f64,
    acceptance: f64,
) -> Statistics {
    Statistics { prompt_words, output_median, output_log_sd, acceptance }
}

impl Task {
    /// All six tasks.
    pub const ALL: [Task; 6] = [
        Task::Chat,
        Task::Translation,
        Task::Summarization,
        Task::QuestionAnswering,
        Task::Mathematics,
        Task::Retrieval,
    ];

    /// The task of a request under `seed`, uniformly distributed.
    pub fn of(seed: u64, request: u64) -> Task {
        let place = Draw::new(seed, TASK_STREAM, request, 0).uniform(0) * Task::ALL.len() as f64;
        Task::ALL[place as usize]
    }

    /// Prompt and output tokens of a request under `seed`.
    pub fn lengths(self, seed: u64, request: u64) -> (u32, u32) {
        let draw = Draw::new(seed, LENGTH_STREAM, request, 0);
        let statistics = self.statistics();
        let prompt = quantile(&statistics.prompt_words, draw.uniform(2)) * TOKENS_PER_WORD + TEMPLATE_TOKENS;
        let output = statistics.output_median * (statistics.output_log_sd * draw.normal()).exp();
        (prompt.round() as u32, output.clamp(OUTPUT_TOKENS_MIN, OUTPUT_TOKENS_MAX).round() as u32)
    }

    /// Median acceptance of a draft token.
    pub fn acceptance(self) -> f64 {
        self.statistics().acceptance
    }

    fn statistics(self) -> Statistics {
        match self {
            Task::Chat => {
                statistics([10.0, 15.0, 19.0, 24.0, 31.0, 38.0, 51.0, 92.0, 262.0], 320.0, 0.6, 0.68)
            }
            Task::Translation => {
                statistics([8.0, 14.0, 17.0, 20.0, 24.0, 27.0, 30.0, 37.0, 64.0], 40.0, 0.5, 0.60)
            }
            Task::Summarization => {
                statistics([109.0, 278.0, 358.0, 456.0, 530.0, 591.0, 747.0, 907.0, 1137.0], 110.0, 0.4, 0.72)
            }
            Task::QuestionAnswering => {
                statistics([7.0, 8.0, 8.0, 8.0, 9.0, 9.0, 10.0, 11.0, 15.0], 90.0, 0.8, 0.66)
            }
            Task::Mathematics => {
                statistics([17.0, 27.0, 31.0, 34.0, 39.0, 50.0, 55.0, 63.0, 98.0], 150.0, 0.5, 0.75)
            }
            Task::Retrieval => {
                statistics([508.0, 508.0, 508.0, 508.0, 508.0, 509.0, 510.0, 512.0, 514.0], 110.0, 0.7, 0.68)
            }
        }
    }
}

/// The `share`-quantile of a distribution given by its octiles.
fn quantile(octiles: &[f64; 9], share: f64) -> f64 {
    let place = (share * 8.0).clamp(0.0, 8.0);
    let left = (place as usize).min(7);
    octiles[left] + (octiles[left + 1] - octiles[left]) * (place - left as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_follow_the_octiles() {
        let octiles = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(quantile(&octiles, 0.0), 0.0);
        assert_eq!(quantile(&octiles, 0.5), 4.0);
        assert_eq!(quantile(&octiles, 1.0), 8.0);
        for task in Task::ALL {
            let words = task.statistics().prompt_words;
            let range = (words[0] * TOKENS_PER_WORD + 15.0)..(words[8] * TOKENS_PER_WORD + 17.0);
            assert!((0..200).all(|request| range.contains(&f64::from(task.lengths(1, request).0))));
        }
    }

    #[test]
    fn tasks_are_equally_likely_and_a_function_of_seed_and_request() {
        let mut counts = [0; 6];
        (0..6000).for_each(|request| counts[Task::of(3, request) as usize] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(Task::of(3, 77), Task::of(3, 77));
        assert_ne!(
            (0..50).map(|n| Task::of(3, n)).collect::<Vec<_>>(),
            (0..50).map(|n| Task::of(4, n)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn outputs_have_their_median_and_their_bounds() {
        let mut outputs: Vec<u32> = (0..2001).map(|request| Task::Chat.lengths(1, request).1).collect();
        outputs.sort_unstable();
        assert!((280..360).contains(&outputs[1000]), "{}", outputs[1000]);
        assert!(outputs[0] >= 4 && outputs[2000] <= 1024);
    }
}
