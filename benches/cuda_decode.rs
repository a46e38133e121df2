//! Times whole steps of models of real shapes with random weights, through the executor:
//! what a caller waits for, and what the device works.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use specserve::executor::cuda::measure::copy_bytes_per_second;
use specserve::executor::cuda::weights::weight_bytes;
use specserve::executor::cuda::{CudaExecutor, CudaOptions, Gpu, KvBudget, Stream};
use specserve::executor::{Drafter, Target};
use specserve::model::{DraftWeights, ModelSpec, TensorBytes};
use specserve::protocol::{
    BlockId, DraftForest, DraftSeed, RequestId, SamplingParams, SequenceInput, VerifyRow,
};

mod shapes;

use shapes::{CONTEXT, numbers, random_model, shape};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Timed steps of one figure; the median counts.
const STEPS: usize = 15;
/// Tokens of one prefill call.
const PREFILL: usize = 4096;

fn main() -> Result<()> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let copy = copy_bytes_per_second(&Stream::new()?)?;
    println!("{}: copy bandwidth {:.0} GB/s", gpu.info().name, copy / 1e9);
    let numbers = numbers();
    let eight = shape(128_256, 4096, 14_336, 32, [32, 8, 128]);
    let small = shape(151_936, 1536, 8960, 28, [12, 2, 128]);
    let draft = shape(128_256, 768, 3072, 12, [12, 12, 64]);
    header();
    {
        let mut bench = Bench::new(&eight, Some(&draft), &numbers, copy)?;
        bench.prefill("8B", 1)?;
        bench.prefill("8B", 8)?;
        for (batch, context) in [(1, 512), (1, 1024), (8, 512), (32, 512), (64, 512), (64, 1024), (128, 512)]
        {
            bench.verify("8B", batch, context, 0)?;
        }
        for (batch, drafts) in [(1, 1), (1, 3), (1, 7), (1, 15), (8, 4), (64, 4)] {
            bench.verify("8B", batch, 1024, drafts)?;
        }
        for (batch, context) in [(1, 1024), (8, 1024), (64, 256), (64, 1024)] {
            bench.draft("160M", batch, context)?;
        }
    }
    let mut bench = Bench::new(&small, None, &numbers, copy)?;
    for batch in [1, 8, 32] {
        bench.verify("1.5B", batch, 512, 0)?;
    }
    Ok(())
}

fn header() {
    println!(
        "| step | batch | context | rows | µs at the caller | µs on the device | µs idle before | MB | floor µs | device / floor |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

/// What a step takes, in microseconds.
#[derive(Clone, Copy)]
struct StepTimes {
    caller: f64,
    device: f64,
    /// Between the device's work for the step before and for this one.
    idle: f64,
}

struct Bench {
    executor: CudaExecutor,
    target: ModelSpec,
    draft: Option<ModelSpec>,
    copy: f64,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "measures the host in nanoseconds")]
    fn new(target: &ModelSpec, draft: Option<&ModelSpec>, numbers: &TensorBytes, copy: f64) -> Result<Bench> {
        let options = CudaOptions {
            kv: KvBudget::MemoryFraction(0.8),
            batch_tokens_max: PREFILL as u32,
            batch_sequences_max: 128,
            ..CudaOptions::default()
        };
        let start = Instant::now();
        let target_model = random_model(target, numbers, false);
        let draft_model = draft.map(|draft| DraftWeights::from(random_model(draft, numbers, false)));
        let mut executor = CudaExecutor::new(&target_model, draft_model.as_ref(), options)?;
        let built = start.elapsed();
        executor.warm_up()?;
        println!(
            "<!-- {:.1} GB of weights in {:.2} s, warm after {:.2} s, graphs {:?} -->",
            weight_bytes(target, false) as f64 / 1e9,
            built.as_secs_f64(),
            start.elapsed().as_secs_f64(),
            executor.graph_counts()
        );
        Ok(Bench { executor, target: target.clone(), draft: draft.cloned(), copy })
    }

    /// Medians of what `step` takes at the caller and on the device, and of the device's pause
    /// before it.
    #[expect(clippy::disallowed_methods, reason = "measures the host in nanoseconds")]
    fn time(&mut self, mut step: impl FnMut(&mut CudaExecutor) -> Result<()>) -> Result<StepTimes> {
        let (mut caller, mut device, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..STEPS + 3 {
            let start = Instant::now();
            step(&mut self.executor)?;
            if run >= 3 {
                caller.push(start.elapsed().as_secs_f64() * 1e6);
                device.extend(self.executor.busy_microseconds()?);
                idle.extend(self.executor.idle_microseconds()?);
            }
        }
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Ok(StepTimes { caller: median(&mut caller), device: median(&mut device), idle: median(&mut idle) })
    }

    fn report(
        &self,
        name: &str,
        spec: &ModelSpec,
        batch: usize,
        context: usize,
        rows: usize,
        time: StepTimes,
    ) {
        let kv = batch * context * spec.layers * 4 * spec.kv_heads * spec.head_dim;
        let weights = weight_bytes(spec, true);
        let bytes = (weights + kv) as f64;
        let floor = bytes / self.copy * 1e6;
        println!(
            "| {name} | {batch} | {context} | {rows} | {:.0} | {:.0} | {:.0} | {:.0} | {floor:.0} | {:.3} |",
            time.caller,
            time.device,
            time.idle,
            bytes / 1e6,
            time.device / floor
        );
    }

    fn verify(&mut self, name: &str, batch: usize, context: usize, drafts: usize) -> Result<()> {
        let rows: Vec<VerifyRow> = (0..batch)
            .map(|index| {
                let input = input(index, context - drafts - 1, drafts + 1);
                VerifyRow { drafts: drafts as u32, ..VerifyRow::decode(input) }
            })
            .collect();
        let mut out = Vec::new();
        let time = self.time(|executor| Ok(executor.verify(&rows, &mut out)?))?;
        let what = if drafts == 0 { "decode" } else { "verify" };
        self.report(&format!("{name} {what}"), &self.target, batch, context, batch * (drafts + 1), time);
        Ok(())
    }

    fn draft(&mut self, name: &str, batch: usize, context: usize) -> Result<()> {
        let rows: Vec<DraftSeed> = (0..batch)
            .map(|index| DraftSeed { row: 0, input: input(index, context - 1, 1), limit: 8, mask: None })
            .collect();
        let mut forest = DraftForest::default();
        let time = self.time(|executor| {
            forest.clear();
            Ok(executor.start(&rows, &mut forest)?)
        })?;
        if let Some(draft) = &self.draft {
            self.report(&format!("{name} draft"), draft, batch, context, batch, time);
        }
        Ok(())
    }

    fn prefill(&mut self, name: &str, batch: usize) -> Result<()> {
        let tokens = PREFILL / batch;
        let rows: Vec<VerifyRow> =
            (0..batch).map(|index| VerifyRow::decode(input(index, 0, tokens))).collect();
        let mut out = Vec::new();
        let StepTimes { caller, device, idle } =
            self.time(|executor| Ok(executor.verify(&rows, &mut out)?))?;
        println!(
            "| {name} prefill | {batch} | {tokens} | {PREFILL} | {caller:.0} | {device:.0} | {idle:.0} | {:.0} tokens/s | | |",
            PREFILL as f64 / caller * 1e6
        );
        Ok(())
    }
}

fn input(index: usize, start: usize, tokens: usize) -> SequenceInput {
    let blocks = CONTEXT / 16;
    // Half a context for each sequence, scattered over the pool's first blocks.
    let scattered = |block: usize| BlockId(((index * blocks / 2 + block) * 7919 % (65 * blocks)) as u32);
    SequenceInput {
        request: RequestId(index as u64),
        tokens: (0..tokens).map(|i| ((index * 977 + i * 31) % 100_000) as u32).collect(),
        start: start as u32,
        blocks: (0..blocks).map(scattered).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}
