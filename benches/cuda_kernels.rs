//! Times every layer and sampling kernel against the copy bandwidth of the same run.
//!
//! Each figure is the mean of the launches of one captured graph, the median of several
//! replays. The launches go round several sets of buffers that do not fit into the
//! second-level cache together, so that data comes from device memory.

use std::error::Error;

use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, CompactParams, DraftSampleParams, EmbeddingParams, QkvParams, RmsNormParams, SampleParams,
    SamplingRow, SwigluParams, VerifyParams,
};
use specserve::executor::cuda::measure::{copy_bytes_per_second, median_microseconds};
use specserve::executor::cuda::{CudaError, DeviceBuffer, Gpu, Graph, SamplingRows, Stream};
use specserve::protocol::SamplingParams;
use specserve::random::SplitMix64;
use specserve::sampling::TokenHistory;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the rotating sets of buffers hold together, in bytes: several second-level caches.
const SETS_BYTES: usize = 256 << 20;
/// Launches in one graph.
const LAUNCHES: usize = 48;
/// Replays of a graph.
const REPLAYS: usize = 15;
/// Hidden size, heads, KV heads, head width and MLP width of an 8B Llama.
const HIDDEN: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const MLP: usize = 14_336;
const VOCAB: usize = 128_256;
const BLOCK_TOKENS: usize = 16;

fn main() -> Result<()> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let bench = Bench::new(&gpu)?;
    println!(
        "| kernel | shape | MB moved | µs | GB/s | of copy | copy of the same size, µs | plain version, µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for rows in [1, 64, 256, 4096] {
        rmsnorm(&bench, rows)?;
    }
    for rows in [1, 64, 1024, 4096] {
        qkv(&bench, rows)?;
    }
    for rows in [1, 64, 256, 4096] {
        swiglu(&bench, rows)?;
    }
    for rows in [64, 4096] {
        embedding(&bench, rows)?;
    }
    compact(&bench, 64, 4)?;
    for kind in Kind::ALL {
        for rows in [1, 8, 64, 256] {
            sample(&bench, rows, kind, None)?;
        }
        for (sequences, drafts) in [(1, 7), (8, 4), (64, 4)] {
            sample(&bench, sequences * (drafts + 1), kind, Some(drafts))?;
        }
    }
    Ok(())
}

/// The device, its copy bandwidth and a source of numbers.
struct Bench {
    stream: Stream,
    copy: f64,
}

/// A launcher's status for one set of buffers.
type Launch<'a> = &'a dyn Fn(usize, &Stream) -> i32;

impl Bench {
    fn new(gpu: &Gpu) -> Result<Bench> {
        let stream = Stream::new()?;
        let copy = copy_bytes_per_second(&stream)?;
        let info = gpu.info();
        println!(
            "{}, driver API {}, runtime {}, copy bandwidth {:.0} GB/s",
            info.name,
            info.driver_api,
            info.runtime,
            copy / 1e9
        );
        Ok(Bench { stream, copy })
    }

    /// Mean device time of one launch.
    fn time(&self, launches: usize, sets: usize, launch: Launch) -> Result<f64> {
        check_launch(launch(0, &self.stream), "kernel")?;
        self.stream.synchronize()?;
        let graph = Graph::capture(&self.stream, || -> std::result::Result<(), CudaError> {
            (0..launches).try_for_each(|i| check_launch(launch(i % sets, &self.stream), "kernel"))
        })?;
        let total = median_microseconds(&self.stream, REPLAYS, || graph.launch(&self.stream))?;
        Ok(total / launches as f64)
    }

    fn report(
        &self,
        name: &str,
        shape: &str,
        bytes: usize,
        sets: usize,
        fast: Launch,
        plain: Launch,
    ) -> Result<()> {
        let time = self.time(LAUNCHES, sets, fast)?;
        let plain = self.time(2, sets, plain)?;
        let copy = self.copy_time(bytes, sets)?;
        let rate = bytes as f64 / time * 1e6;
        println!(
            "| {name} | {shape} | {:.2} | {time:.2} | {:.0} | {:.0} % | {copy:.2} | {plain:.1} |",
            bytes as f64 / 1e6,
            rate / 1e9,
            100.0 * rate / self.copy
        );
        Ok(())
    }

    /// What the driver's copy takes that reads and writes `bytes` together: what a launch of this
    /// size can reach at all.
    fn copy_time(&self, bytes: usize, sets: usize) -> Result<f64> {
        let half = (bytes / 2).next_multiple_of(16);
        let from = DeviceBuffer::<u8>::filled(0x3c, half * sets, &self.stream)?;
        let to = DeviceBuffer::<u8>::filled(0x3c, half * sets, &self.stream)?;
        self.time(LAUNCHES, sets, &|set, stream| {
            let [to, from] = [&to, &from].map(|buffer| buffer.ptr().wrapping_add(set * half) as u64);
            // SAFETY: both buffers hold `sets` times as many bytes and outlive the runs.
            unsafe { cust::sys::cuMemcpyDtoDAsync_v2(to, from, half, stream.raw()) as i32 }
        })
    }

    /// Pseudo-random bf16 numbers of about unit size.
    fn bf16s(&self, len: usize) -> Result<DeviceBuffer<u16>> {
        let numbers: Vec<u16> = (0..len as u64).map(|i| 0x3f00 | (mix(i) & 0x80ff) as u16).collect();
        Ok(DeviceBuffer::from_slice(&numbers, &self.stream)?)
    }

    fn f32s(&self, len: usize) -> Result<DeviceBuffer<f32>> {
        let numbers: Vec<f32> = (0..len as u64).map(|i| normal(mix(i))).collect();
        Ok(DeviceBuffer::from_slice(&numbers, &self.stream)?)
    }

    fn ints(&self, numbers: impl Iterator<Item = usize>) -> Result<DeviceBuffer<i32>> {
        let numbers: Vec<i32> = numbers.map(|n| n as i32).collect();
        Ok(DeviceBuffer::from_slice(&numbers, &self.stream)?)
    }
}

fn mix(i: u64) -> u64 {
    SplitMix64::new(i).next_u64()
}

/// What [`normal`] deviates by.
const NORMAL_DEVIATION: f32 = 2.5;

/// A sum of four uniform numbers, about normally distributed.
fn normal(word: u64) -> f32 {
    (0..4).map(|i| f32::from((word >> (16 * i)) as u16) / 65536.0 - 0.5).sum::<f32>() * 4.33
}

fn sets_of(bytes: usize) -> usize {
    (SETS_BYTES / bytes).clamp(2, LAUNCHES)
}

fn rmsnorm(bench: &Bench, rows: usize) -> Result<()> {
    let bytes = rows * HIDDEN * 12;
    let sets = sets_of(bytes);
    let weight = bench.bf16s(HIDDEN)?;
    let delta = bench.bf16s(sets * rows * HIDDEN)?;
    let residual = bench.f32s(sets * rows * HIDDEN)?;
    let out = bench.bf16s(sets * rows * HIDDEN)?;
    let scales = bench.f32s(rows)?;
    let params = |set: usize| RmsNormParams {
        residual: residual.ptr().wrapping_add(set * rows * HIDDEN).cast_mut(),
        delta: delta.ptr().wrapping_add(set * rows * HIDDEN),
        weight: weight.ptr(),
        out: out.ptr().wrapping_add(set * rows * HIDDEN).cast_mut(),
        gather: std::ptr::null(),
        scales: scales.ptr().cast_mut(),
        eps: 1e-5,
        rows: rows as i32,
        hidden: HIDDEN as i32,
    };
    // SAFETY: the buffers hold `sets` times what the parameters name and outlive the runs.
    let fast = |set, stream: &Stream| unsafe { kernels::specserve_rmsnorm(&params(set), stream.raw()) };
    // SAFETY: as above.
    let plain =
        |set, stream: &Stream| unsafe { kernels::specserve_rmsnorm_naive(&params(set), stream.raw()) };
    bench.report("rmsnorm + residual", &format!("{rows} × {HIDDEN}"), bytes, sets, &fast, &plain)
}

fn qkv(bench: &Bench, rows: usize) -> Result<()> {
    let row = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let bytes = rows * row * 2 * 2;
    let sets = sets_of(bytes);
    let qkv = bench.bf16s(sets * rows * row)?;
    let blocks = rows.div_ceil(BLOCK_TOKENS);
    let pool = blocks * KV_HEADS * 2 * BLOCK_TOKENS * HEAD_DIM;
    let kv = bench.bf16s(sets * pool)?;
    let positions_max = 8192;
    let rotations = bench.f32s(positions_max * HEAD_DIM)?;
    let positions = bench.ints((0..rows).map(|r| mix(r as u64) as usize % positions_max))?;
    // An odd multiplier modulo a power of two is a permutation: scattered slots.
    let slots = blocks * BLOCK_TOKENS;
    let scattered = (0..slots.next_power_of_two()).map(|i| (i * 0x9E37 + 7) % slots.next_power_of_two());
    let slots = bench.ints(scattered.filter(|&slot| slot < slots).take(rows))?;
    let scales = bench.f32s(rows)?;
    let params = |set: usize| QkvParams {
        scales: scales.ptr(),
        qkv: qkv.ptr().wrapping_add(set * rows * row).cast_mut(),
        bias: std::ptr::null(),
        q_norm: std::ptr::null(),
        k_norm: std::ptr::null(),
        rotations: rotations.ptr(),
        positions: positions.ptr(),
        slots: slots.ptr(),
        kv: kv.ptr().wrapping_add(set * pool).cast_mut(),
        eps: 1e-6,
        rows: rows as i32,
        heads: HEADS as i32,
        kv_heads: KV_HEADS as i32,
        head_dim: HEAD_DIM as i32,
    };
    // SAFETY: as in `rmsnorm`.
    let fast = |set, stream: &Stream| unsafe { kernels::specserve_qkv(&params(set), stream.raw()) };
    // SAFETY: as above.
    let plain = |set, stream: &Stream| unsafe { kernels::specserve_qkv_naive(&params(set), stream.raw()) };
    let shape = format!("{rows} × ({HEADS} + 2 × {KV_HEADS}) × {HEAD_DIM}");
    bench.report("qkv + rotation + KV write", &shape, bytes, sets, &fast, &plain)
}

fn swiglu(bench: &Bench, rows: usize) -> Result<()> {
    let bytes = rows * MLP * 6;
    let sets = sets_of(bytes);
    let gate_up = bench.bf16s(sets * rows * 2 * MLP)?;
    let out = bench.bf16s(sets * rows * MLP)?;
    let scales = bench.f32s(rows)?;
    let params = |set: usize| SwigluParams {
        scales: scales.ptr(),
        gate_up: gate_up.ptr().wrapping_add(set * rows * 2 * MLP),
        out: out.ptr().wrapping_add(set * rows * MLP).cast_mut(),
        rows: rows as i32,
        width: MLP as i32,
    };
    // SAFETY: as in `rmsnorm`.
    let fast = |set, stream: &Stream| unsafe { kernels::specserve_swiglu(&params(set), stream.raw()) };
    // SAFETY: as above.
    let plain = |set, stream: &Stream| unsafe { kernels::specserve_swiglu_naive(&params(set), stream.raw()) };
    bench.report("swiglu", &format!("{rows} × {MLP}"), bytes, sets, &fast, &plain)
}

fn embedding(bench: &Bench, rows: usize) -> Result<()> {
    let bytes = rows * HIDDEN * 6;
    let sets = sets_of(bytes);
    let vocab = 32_000;
    let table = bench.bf16s(vocab * HIDDEN)?;
    let tokens = bench.ints((0..sets * rows).map(|i| mix(i as u64) as usize % vocab))?;
    let residual = bench.f32s(sets * rows * HIDDEN)?;
    let params = |set: usize| EmbeddingParams {
        table: table.ptr(),
        tokens: tokens.ptr().wrapping_add(set * rows),
        residual: residual.ptr().wrapping_add(set * rows * HIDDEN).cast_mut(),
        rows: rows as i32,
        hidden: HIDDEN as i32,
        vocab: vocab as i32,
    };
    // SAFETY: as in `rmsnorm`.
    let fast = |set, stream: &Stream| unsafe { kernels::specserve_embedding(&params(set), stream.raw()) };
    // SAFETY: as above.
    let plain =
        |set, stream: &Stream| unsafe { kernels::specserve_embedding_naive(&params(set), stream.raw()) };
    bench.report("embedding", &format!("{rows} × {HIDDEN}"), bytes, sets, &fast, &plain)
}

fn compact(bench: &Bench, sequences: usize, accepted: usize) -> Result<()> {
    const LAYERS: usize = 32;
    const BLOCKS_EACH: usize = 4;
    let path_max = kernels::KV_PATH_MAX as usize;
    let layer = sequences * BLOCKS_EACH * KV_HEADS * 2 * BLOCK_TOKENS * HEAD_DIM;
    let kv = bench.bf16s(LAYERS * layer)?;
    let tables = bench.ints(0..sequences * BLOCKS_EACH)?;
    let table = bench.ints((0..sequences).map(|s| s * BLOCKS_EACH))?;
    let first = bench.ints((0..sequences).map(|s| s % BLOCK_TOKENS))?;
    let path = bench.ints((0..sequences * path_max).map(|i| 2 * (i % path_max) + 1))?;
    let lengths = bench.ints((0..sequences).map(|_| accepted))?;
    let params = CompactParams {
        kv: kv.ptr().cast_mut(),
        layer_elements: layer as i64,
        tables: tables.ptr(),
        table: table.ptr(),
        first: first.ptr(),
        path: path.ptr(),
        path_length: lengths.ptr(),
        sequences: sequences as i32,
        layers: LAYERS as i32,
        kv_heads: KV_HEADS as i32,
        head_dim: HEAD_DIM as i32,
    };
    let bytes = sequences * accepted * LAYERS * KV_HEADS * HEAD_DIM * 2 * 2 * 2;
    // SAFETY: as in `rmsnorm`; moving the same slots again is harmless.
    let fast = |_, stream: &Stream| unsafe { kernels::specserve_compact(&params, stream.raw()) };
    // SAFETY: as above.
    let plain = |_, stream: &Stream| unsafe { kernels::specserve_compact_naive(&params, stream.raw()) };
    let shape = format!("{sequences} sequences × {accepted} drafts × {LAYERS} layers");
    bench.report("KV compaction", &shape, bytes, 1, &fast, &plain)
}

/// How the rows of a sampling bench are sampled.
#[derive(Clone, Copy)]
enum Kind {
    Greedy,
    Temperature,
    TopP,
    /// Half of the mass in thousands of tokens: the filters must look at the whole row.
    TopPFlat,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Greedy, Kind::Temperature, Kind::TopP, Kind::TopPFlat];

    fn params(self, seed: u64) -> SamplingParams {
        let greedy = SamplingParams { seed, ..SamplingParams::greedy() };
        match self {
            Kind::Greedy => greedy,
            Kind::Temperature => SamplingParams { temperature: 0.8, ..greedy },
            Kind::TopP | Kind::TopPFlat => SamplingParams { temperature: 0.8, top_p: 0.95, ..greedy },
        }
    }

    fn deviation(self) -> f32 {
        if matches!(self, Kind::TopPFlat) { NORMAL_DEVIATION } else { 1.5 }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Greedy => "greedy",
            Kind::Temperature => "temperature 0.8",
            Kind::TopP => "temperature 0.8, top-p 0.95",
            Kind::TopPFlat => "temperature 0.8, top-p 0.95, flat",
        }
    }
}

/// Logits like a model's: a few tokens far above a background of this deviation, per row.
fn logits(bench: &Bench, rows: usize, deviation: f32) -> Result<DeviceBuffer<f32>> {
    let scale = deviation / NORMAL_DEVIATION;
    let mut numbers: Vec<f32> = (0..(rows * VOCAB) as u64).map(|i| scale * normal(mix(i))).collect();
    for row in 0..rows {
        for peak in 0..24 {
            let at = mix((row * 31 + peak) as u64 ^ 0xabcd) as usize % VOCAB;
            numbers[row * VOCAB + at] = 8.0 + 0.25 * peak as f32;
        }
    }
    Ok(DeviceBuffer::from_slice(&numbers, &bench.stream)?)
}

/// Draft sampling, or verification of sequences with `drafts` drafts each.
fn sample(bench: &Bench, rows: usize, kind: Kind, drafts: Option<usize>) -> Result<()> {
    let bytes = rows * VOCAB * 4;
    let sets = sets_of(bytes);
    let logits = logits(bench, sets * rows, kind.deviation())?;
    let mut described = SamplingRows::new();
    for row in 0..rows {
        described.push(&kind.params(mix(row as u64)), 100 + row as u32, &TokenHistory::none());
    }
    let host_rows: &[SamplingRow] = described.rows();
    // SAFETY: a C struct of numbers without padding, read as bytes.
    let row_bytes =
        unsafe { std::slice::from_raw_parts(host_rows.as_ptr().cast::<u8>(), size_of_val(host_rows)) };
    let rows_on = DeviceBuffer::from_slice(row_bytes, &bench.stream)?;
    // SAFETY: plain arithmetic.
    let scratch_bytes = unsafe { kernels::specserve_sample_scratch_bytes(rows as i32) };
    let scratch = DeviceBuffer::<u8>::filled(0, scratch_bytes, &bench.stream)?;
    let sample = |set: usize| SampleParams {
        logits: logits.ptr().wrapping_add(set * rows * VOCAB).cast_mut(),
        stride: VOCAB as i64,
        rows: rows_on.ptr().cast(),
        adjustments: std::ptr::null(),
        masks: std::ptr::null(),
        scratch: scratch.ptr().cast_mut().cast(),
        row_count: rows as i32,
        vocab: VOCAB as i32,
        filtered: i32::from(described.filtered()),
    };
    let out = DeviceBuffer::<u32>::filled(0, rows * 5, &bench.stream)?;
    let tokens = DeviceBuffer::<i32>::filled(0, rows, &bench.stream)?;
    let Some(drafts) = drafts else {
        let params = |set| DraftSampleParams {
            sample: sample(set),
            proposals: out.ptr().cast_mut().cast(),
            tokens: tokens.ptr().cast_mut(),
        };
        // SAFETY: as in `rmsnorm`.
        let fast =
            |set, stream: &Stream| unsafe { kernels::specserve_draft_sample(&params(set), stream.raw()) };
        // SAFETY: as above.
        let plain = |set, stream: &Stream| unsafe {
            kernels::specserve_draft_sample_naive(&params(set), stream.raw())
        };
        let shape = format!("{rows} × {VOCAB}, {}", kind.name());
        return bench.report("draft sample", &shape, bytes, sets, &fast, &plain);
    };
    let nodes = drafts + 1;
    let sequences = bench.ints((0..rows / nodes).flat_map(|s| [s * nodes, drafts, 0]))?;
    let sequence_of = bench.ints((0..rows).map(|row| row / nodes))?;
    let draft_tokens = bench.ints(0..rows)?;
    let path = DeviceBuffer::<i32>::filled(0, rows, &bench.stream)?;
    let params = |set| VerifyParams {
        sample: sample(set),
        sequences: sequences.ptr().cast(),
        sequence_of: sequence_of.ptr(),
        drafts: draft_tokens.ptr(),
        parents: draft_tokens.ptr(),
        outcomes: out.ptr().cast_mut().cast(),
        tokens: tokens.ptr().cast_mut(),
        path: path.ptr().cast_mut(),
        sequence_count: (rows / nodes) as i32,
    };
    // SAFETY: as in `rmsnorm`.
    let fast = |set, stream: &Stream| unsafe { kernels::specserve_verify(&params(set), stream.raw()) };
    // SAFETY: as above.
    let plain = |set, stream: &Stream| unsafe { kernels::specserve_verify_naive(&params(set), stream.raw()) };
    let shape = format!("{} × {nodes} × {VOCAB}, {}", rows / nodes, kind.name());
    bench.report("verify", &shape, bytes, sets, &fast, &plain)
}
