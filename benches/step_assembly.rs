//! What the host does for one device call, part by part, without a device.
//!
//! `cargo bench --features cuda --bench step_assembly`. "After other work": the core's caches
//! hold something else, as after the milliseconds that a step takes on the device.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use specserve::executor::BatchContract;
use specserve::executor::cuda::attention_plan::AttentionRoom;
use specserve::executor::cuda::batch_check::tree_tokens;
use specserve::executor::cuda::draft_round::DraftRound;
use specserve::executor::cuda::host_step::HostStep;
use specserve::executor::cuda::options::captured_rows;
use specserve::executor::cuda::step_layout::{InputSizes, words_needed, write};
use specserve::executor::cuda::step_results::{PROPOSAL_WORDS, VerdictResults, VerdictWords};
use specserve::executor::cuda::verify_batch;
use specserve::protocol::{
    BlockId, DraftForest, DraftSeed, DrafterNeeds, ExecutorInfo, ExecutorMemory, NodeId, Proposal, RequestId,
    SamplingParams, SequenceInput, VerifyRow,
};

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEQUENCES: usize = 64;
const CONTEXT: usize = 1024;
const VOCABULARY: u32 = 128_256;
/// Timed rounds of one figure; the median counts.
const ROUNDS: usize = 2001;
/// More than a core's own caches hold, in 64-bit words.
const OTHER_WORK_WORDS: usize = 1 << 18;

fn main() {
    for other_work in [false, true] {
        let mut bench = Bench { other_work: vec![1; if other_work { OTHER_WORK_WORDS } else { 0 }] };
        println!("{}", if other_work { "after other work" } else { "warm" });
        bench.verification("decode, 1 sequence", 1, 0);
        bench.verification("decode", SEQUENCES, 0);
        bench.verification("verify 4 drafts each", SEQUENCES, 4);
        bench.drafting("draft, 1 sequence", 1);
        bench.drafting("draft", SEQUENCES);
    }
}

struct Bench {
    other_work: Vec<u64>,
}

impl Bench {
    /// Fills the caches with something else.
    fn work_on_others(&mut self) {
        self.other_work.iter_mut().for_each(|word| *word = word.wrapping_mul(3) ^ 5);
        black_box(&self.other_work);
    }

    fn verification(&mut self, name: &str, sequences: usize, drafts: usize) {
        let mut contract = BatchContract::new(&info());
        let rows: Vec<VerifyRow> = (0..sequences)
            .map(|index| VerifyRow {
                drafts: drafts as u32,
                ..VerifyRow::decode(input(index, CONTEXT - drafts - 1, drafts + 1))
            })
            .collect();
        let mut step = HostStep::new(AttentionRoom::for_rows(32, 8, 1024, 8192));
        let (mut memory, mut verdicts) = (Vec::new(), Vec::new());
        let sizes = sizes(sequences * (drafts + 1), sequences * (drafts + 1));
        let layout = VerdictWords::of(sizes.sequences, sizes.logit_rows);
        let results = verdict_words(layout, sequences, drafts);
        let mut times = Times::new(&["check", "fill and plan", "write", "read"]);
        for _ in 0..ROUNDS {
            self.work_on_others();
            times.part(0, || {
                contract.verify(&rows).expect("good rows");
                tree_tokens(&rows).expect("fits");
            });
            times.part(1, || verify_batch::fill(&rows, &mut step));
            memory.resize(words_needed(sizes, &step), 0);
            times.part(2, || black_box(write(&mut memory, sizes, &step)));
            verdicts.clear();
            verdicts.reserve(sequences);
            times.part(3, || {
                let results = VerdictResults::new(black_box(&results), layout);
                verify_batch::read(&rows, &step, results, VOCABULARY, &mut verdicts).expect("good results");
            });
        }
        times.report(name);
    }

    fn drafting(&mut self, name: &str, sequences: usize) {
        let mut contract = BatchContract::new(&info());
        let rows: Vec<DraftSeed> = (0..sequences)
            .map(|index| DraftSeed { row: 0, input: input(index, CONTEXT - 5, 1), limit: 8, mask: None })
            .collect();
        let mut forest = DraftForest::default();
        let proposal = Proposal { finite: true, ..Proposal::default() };
        let nodes: Vec<NodeId> = (0..sequences as u32).map(|seed| forest.add_root(seed, proposal)).collect();
        let mut keep = Vec::new();
        let mut step = HostStep::new(AttentionRoom::for_rows(12, 12, 1024, 8192));
        let (mut memory, mut round, mut out) = (Vec::new(), DraftRound::default(), Vec::new());
        let sizes = sizes(sequences, sequences);
        let results = proposal_words(sizes.logit_rows);
        let mut times = Times::new(&[
            "start: check",
            "fill",
            "write",
            "read",
            "continue: check",
            "fill",
            "write",
            "read",
        ]);
        for _ in 0..ROUNDS {
            self.work_on_others();
            times.part(0, || contract.start(&rows).expect("good rows"));
            times.part(1, || round.begin(&rows, &mut step));
            memory.resize(words_needed(sizes, &step), 0);
            times.part(2, || black_box(write(&mut memory, sizes, &step)));
            out.clear();
            times.part(3, || round.read_begun(&rows, &results, VOCABULARY as usize, &mut out).expect("good"));
            self.work_on_others();
            times.part(4, || contract.extend(&nodes, &forest, &mut keep).expect("all go on"));
            times.part(5, || round.proceed(&nodes, &keep, &forest, &mut step).expect("known nodes"));
            times.part(6, || black_box(write(&mut memory, sizes, &step)));
            out.clear();
            times.part(7, || round.read_fed(&keep, &results, VOCABULARY as usize, &mut out).expect("good"));
        }
        times.report(name);
    }
}

/// Times of the parts of one call.
struct Times {
    parts: Vec<(&'static str, Vec<Duration>)>,
}

impl Times {
    fn new(parts: &[&'static str]) -> Times {
        Times { parts: parts.iter().map(|&name| (name, Vec::with_capacity(ROUNDS))).collect() }
    }

    #[expect(clippy::disallowed_methods, reason = "measures the host in nanoseconds")]
    fn part<T>(&mut self, index: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.parts[index].1.push(start.elapsed());
        result
    }

    fn report(mut self, name: &str) {
        print!("  {name:<22}");
        let mut sum = 0.0;
        for (part, times) in &mut self.parts {
            times.sort_unstable();
            let micros = times[times.len() / 2].as_secs_f64() * 1e6;
            sum += micros;
            print!(" {part} {micros:.2},");
        }
        println!(" together {sum:.2} us");
    }
}

fn info() -> ExecutorInfo {
    ExecutorInfo {
        backend: "cuda".to_owned(),
        device: "none".to_owned(),
        vocab_size: VOCABULARY,
        context_tokens_max: 8192,
        block_tokens: 16,
        target_blocks: 16_384,
        drafter: Some(DrafterNeeds::kv_cache(16_384)),
        batch_tokens_max: 4096,
        batch_sequences_max: 256,
        draft_tokens_max: 16,
        sampled_rows_max: u32::MAX,
        memory: ExecutorMemory::default(),
    }
}

/// A sequence whose blocks lie scattered in the pool.
fn input(index: usize, start: usize, tokens: usize) -> SequenceInput {
    let blocks = CONTEXT.div_ceil(16);
    SequenceInput {
        request: RequestId(index as u64),
        tokens: (0..tokens as u32).map(|token| token * 7 + index as u32).collect(),
        start: start as u32,
        blocks: (0..blocks).map(|block| BlockId(((block * 61 + index * 97) % 16_384) as u32)).collect(),
        sampling: Arc::new(SamplingParams {
            temperature: 0.8,
            seed: index as u64,
            ..SamplingParams::greedy()
        }),
        history: None,
    }
}

/// Padded as a captured step is.
fn sizes(rows: usize, logit_rows: usize) -> InputSizes {
    let padded = |rows| captured_rows(rows).expect("a captured size");
    let rows = padded(rows);
    InputSizes { rows, logit_rows: padded(logit_rows), sequences: rows.min(256), sources: 0 }
}

/// Results in which half of the drafts are accepted.
fn verdict_words(layout: VerdictWords, sequences: usize, drafts: usize) -> Vec<u32> {
    let mut words = vec![17; layout.end];
    for sequence in 0..sequences {
        words[2 * sequence] = (drafts / 2) as u32;
        words[2 * sequence + 1] = 1;
    }
    words
}

fn proposal_words(rows: usize) -> Vec<u32> {
    (0..rows).flat_map(|_| [17, 18, 0, 0, 1]).take(rows * PROPOSAL_WORDS).collect()
}
