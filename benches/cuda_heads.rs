//! Times drafting with heads of an 8B target's shape with random weights, through the executor: what
//! a caller waits for, what the device works, and what reading every byte once would take.

mod shapes;

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use shapes::{CONTEXT, layer, numbers, random_model, shape, tensor};
use specserve::executor::cuda::measure::copy_bytes_per_second;
use specserve::executor::cuda::{CudaExecutor, CudaOptions, Gpu, KvBudget, Stream};
use specserve::executor::{Drafter, Target};
use specserve::model::{
    BlockHead, ConfidenceHead, DraftHead, DraftWeights, Eagle3Head, FeatureNorm, Features, HeadKind,
    Interface, LoadedModel, MarkovHead, ModelSpec, TensorBytes,
};
use specserve::protocol::{
    BlockId, DraftForest, DraftSeed, NodeId, RequestId, SamplingParams, SequenceInput, TokenId, VerifyRow,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Timed rounds of one figure; the median counts.
const ROUNDS: usize = 15;
/// Tokens that each step before a round commits: the last token and two accepted drafts.
const COMMITTED: usize = 3;
/// Draft vocabulary of the EAGLE-3 head.
const DRAFT_TOKENS: usize = 32_000;
/// Rank of the Markov head.
const RANK: usize = 256;
/// Tokens of a DSpark block.
const BLOCK: usize = 7;

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
    println!(
        "| call | batch | context | µs at the caller | µs on the device | MB | floor µs | device / floor |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let numbers = numbers();
    let spec = shape(128_256, 4096, 14_336, 32, [32, 8, 128]);
    let target = random_model(&spec, &numbers, false);
    let small = random_model(&shape(128_256, 768, 3072, 12, [12, 12, 64]), &numbers, false);
    for name in ["none", "160M", "EAGLE-3", "DSpark"] {
        let drafter = match name {
            "160M" => Some(DraftWeights::from(small.clone())),
            "EAGLE-3" => Some(DraftHead::Eagle3(Box::new(eagle3(&spec, &numbers))).into()),
            "DSpark" => Some(DraftHead::Block(Box::new(dspark(&spec, &numbers))).into()),
            _ => None,
        };
        let mut bench = Bench::new(&target, drafter, copy)?;
        for batch in [1, 8, 64] {
            bench.target(name, batch, 1024, 1)?;
        }
        bench.target(name, 1, 1024, 1024)?;
        for (batch, context) in [(1, 1024), (8, 1024), (64, 256), (64, 1024)] {
            bench.round(name, batch, context)?;
        }
    }
    Ok(())
}

fn interface(
    spec: &ModelSpec,
    layers: &[usize],
    draft_tokens: Option<usize>,
    numbers: &TensorBytes,
) -> Interface {
    let hidden = spec.hidden_size;
    let tensor = |shape: &[usize]| tensor(numbers, shape);
    Interface {
        features: Features { target_hidden_size: hidden, count: layers.len(), layers: Some(layers.to_vec()) },
        fusion: tensor(&[hidden, layers.len() * hidden]),
        hidden_norm: tensor(&[hidden]),
        embedding: None,
        final_norm: tensor(&[hidden]),
        output_head: draft_tokens.map(|tokens| tensor(&[tokens, hidden])),
        draft_tokens: draft_tokens.unwrap_or(spec.vocab_size),
        draft_to_target: draft_tokens.map(|tokens| (0..tokens as TokenId).map(|token| 4 * token).collect()),
    }
}

fn eagle3(target: &ModelSpec, numbers: &TensorBytes) -> Eagle3Head {
    let spec = ModelSpec { layers: 1, ..target.clone() };
    Eagle3Head {
        interface: interface(&spec, &[2, 16, 29], Some(DRAFT_TOKENS), numbers),
        norm_before_residual: false,
        norm_output: false,
        feature_norm: FeatureNorm::Raw,
        layer: layer(&spec, 2 * spec.hidden_size, numbers),
        spec,
    }
}

fn dspark(target: &ModelSpec, numbers: &TensorBytes) -> BlockHead {
    let spec = ModelSpec { layers: 5, ..target.clone() };
    let hidden = spec.hidden_size;
    BlockHead {
        kind: HeadKind::DSpark,
        interface: interface(&spec, &[1, 8, 15, 22, 29], None, numbers),
        block_tokens: BLOCK,
        mask_token: 5,
        sample_from_anchor: true,
        layers: (0..5).map(|_| layer(&spec, hidden, numbers)).collect(),
        markov: Some(MarkovHead {
            w1: tensor(numbers, &[spec.vocab_size, RANK]),
            w2: tensor(numbers, &[spec.vocab_size, RANK]),
        }),
        confidence: Some(ConfidenceHead {
            weight: tensor(numbers, &[1, hidden + RANK]),
            bias: None,
            with_markov: true,
        }),
        spec,
    }
}

struct Bench {
    executor: CudaExecutor,
    target: ModelSpec,
    drafter: Option<DraftWeights>,
    copy: f64,
}

impl Bench {
    fn new(target: &LoadedModel, drafter: Option<DraftWeights>, copy: f64) -> Result<Bench> {
        let options = CudaOptions {
            kv: KvBudget::MemoryFraction(0.8),
            batch_tokens_max: 2048,
            batch_sequences_max: 128,
            ..CudaOptions::default()
        };
        let mut executor = CudaExecutor::new(target, drafter.as_ref(), options)?;
        executor.warm_up()?;
        println!("<!-- graphs {:?} -->", executor.graph_counts());
        Ok(Bench { executor, target: target.spec.clone(), drafter, copy })
    }

    fn report(&self, name: &str, batch: usize, context: usize, bytes: usize, (caller, device): (f64, f64)) {
        let floor = bytes as f64 / self.copy * 1e6;
        println!(
            "| {name} | {batch} | {context} | {caller:.0} | {device:.0} | {:.0} | {floor:.0} | {:.3} |",
            bytes as f64 / 1e6,
            device / floor
        );
    }

    /// A step of the target that drafts nothing.
    fn target(&mut self, name: &str, batch: usize, context: usize, tokens: usize) -> Result<()> {
        let rows: Vec<VerifyRow> =
            (0..batch).map(|index| VerifyRow::decode(input(index, context - tokens, tokens))).collect();
        let mut times = Vec::new();
        for _ in 0..ROUNDS + 3 {
            times.push(self.timed(|executor| Ok(executor.verify(&rows, &mut Vec::new())?))?);
        }
        let spec = &self.target;
        let bytes = layer_bytes(spec, spec.hidden_size) * spec.layers
            + 2 * spec.vocab_size * spec.hidden_size
            + kv_bytes(spec) * batch * context;
        let what = if tokens == 1 { "decode" } else { "prefill" };
        self.report(
            &format!("8B {what}, drafter {name}"),
            batch,
            context,
            bytes,
            medians(times.split_off(3)),
        );
        Ok(())
    }

    /// A round of drafting behind a step that committed [`COMMITTED`] tokens.
    fn round(&mut self, name: &str, batch: usize, context: usize) -> Result<()> {
        let Some(drafter) = self.drafter.clone() else { return Ok(()) };
        let start = context - COMMITTED - 1;
        let rows: Vec<VerifyRow> = (0..batch)
            .map(|index| {
                let input = input(index, start, COMMITTED);
                VerifyRow::prefill(input, Some(token(index, start + COMMITTED)))
            })
            .collect();
        let from = if drafter.head().is_some() { start + COMMITTED } else { start };
        let limit = if let Some(DraftHead::Block(head)) = drafter.head() { head.drafts() } else { 8 };
        let seeds: Vec<DraftSeed> = (0..batch)
            .map(|index| DraftSeed {
                row: 0,
                input: input(index, from, context - from),
                limit: limit as u32,
                mask: None,
            })
            .collect();
        let (mut first, mut next) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS + 3 {
            let mut forest = DraftForest::default();
            self.executor.verify(&rows, &mut Vec::new())?;
            first.push(self.timed(|executor| Ok(executor.start(&seeds, &mut forest)?))?);
            if forest.len() == batch {
                let nodes: Vec<NodeId> = (0..batch as u32).map(NodeId).collect();
                next.push(self.timed(|executor| Ok(executor.extend(&nodes, &mut forest)?))?);
            }
        }
        let [of_first, of_next] = draft_bytes(&drafter);
        let kv = kv_bytes(drafter.spec()) * batch * context;
        self.report(&format!("{name} first"), batch, context, of_first + kv, medians(first.split_off(3)));
        if next.len() > 3 {
            self.report(&format!("{name} next"), batch, context, of_next + kv, medians(next.split_off(3)));
        }
        Ok(())
    }

    /// Time at the caller and on the device, in microseconds.
    #[expect(clippy::disallowed_methods, reason = "measures the host in nanoseconds")]
    fn timed(&mut self, call: impl FnOnce(&mut CudaExecutor) -> Result<()>) -> Result<(f64, f64)> {
        let begin = Instant::now();
        call(&mut self.executor)?;
        let caller = begin.elapsed().as_secs_f64() * 1e6;
        Ok((caller, self.executor.busy_microseconds()?.unwrap_or(0.0)))
    }
}

/// Weights that the first and every later pass of a round read, in bytes.
fn draft_bytes(drafter: &DraftWeights) -> [usize; 2] {
    let spec = drafter.spec();
    let Some(head) = drafter.head() else {
        let all = layer_bytes(spec, spec.hidden_size) * spec.layers + 2 * spec.vocab_size * spec.hidden_size;
        return [all, all];
    };
    let interface = head.interface();
    let fusion = 2 * interface.fusion.elements();
    let output = 2 * interface.draft_tokens * spec.hidden_size;
    match head {
        DraftHead::Eagle3(_) => {
            let chain = layer_bytes(spec, 2 * spec.hidden_size) + output;
            [fusion + chain, chain]
        }
        DraftHead::Block(head) => {
            let layers = layer_bytes(spec, spec.hidden_size) * spec.layers;
            let keys_and_values = 2 * 2 * spec.kv_heads * spec.head_dim * spec.hidden_size * spec.layers;
            let markov = 2 * RANK * interface.draft_tokens * head.drafts();
            [fusion + keys_and_values + layers + output + markov, 0]
        }
    }
}

fn layer_bytes(spec: &ModelSpec, inputs: usize) -> usize {
    let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    let attention = heads * inputs + spec.heads * spec.head_dim * spec.hidden_size;
    2 * (attention + 3 * spec.hidden_size * spec.intermediate_size)
}

/// Of one token.
fn kv_bytes(spec: &ModelSpec) -> usize {
    2 * 2 * spec.kv_heads * spec.head_dim * spec.layers
}

fn medians(times: Vec<(f64, f64)>) -> (f64, f64) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (caller, device): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
    (median(caller), median(device))
}

fn token(index: usize, position: usize) -> TokenId {
    ((index * 977 + position * 31) % 100_000) as TokenId
}

fn input(index: usize, start: usize, tokens: usize) -> SequenceInput {
    let blocks = CONTEXT / 16;
    // Half a context for each sequence, scattered over the pool's first blocks.
    let scattered = |block: usize| BlockId(((index * blocks / 2 + block) * 7919 % (65 * blocks)) as u32);
    SequenceInput {
        request: RequestId(index as u64),
        tokens: (start..start + tokens).map(|position| token(index, position)).collect(),
        start: start as u32,
        blocks: (0..blocks / 2).map(scattered).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}
