//! Times paged attention: decode and verification against the copy bandwidth, prefill against
//! the matrix rate, both measured in the same run. And the skinny products' bandwidth.
//!
//! Launches go round several cases that do not fit into the second-level cache together, in
//! one captured graph; the figure is the mean launch of the median replay.

#[path = "../tests/cuda_attention/case.rs"]
mod case;

use std::error::Error;

use case::{Case, Heads, Kernel, Problem, Sequence};
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{self, SKINNY_BF16, SKINNY_F32, SKINNY_SWIGLU, SkinnyParams};
use specserve::executor::cuda::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use specserve::executor::cuda::measure::{copy_bytes_per_second, median_microseconds};
use specserve::executor::cuda::{CudaError, DeviceBuffer, Gpu, Graph, Stream};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the cases of one figure hold together, in bytes: several second-level caches.
const CASES_BYTES: usize = 160 << 20;
/// Most cases of one figure.
const CASES_MAX: usize = 16;
/// Launches in one graph.
const LAUNCHES: usize = 16;
/// Replays of a graph.
const REPLAYS: usize = 11;
/// Heads of an 8B Llama.
const LLAMA_8B: Heads = Heads { query: 32, kv: 8, dim: 128 };
/// Heads of a 160M-class Llama.
const LLAMA_160M: Heads = Heads { query: 12, kv: 12, dim: 64 };

fn main() -> Result<()> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let stream = Stream::new()?;
    let copy = copy_bytes_per_second(&stream)?;
    let rate = matrix_rate(&stream)?;
    println!(
        "{}: copy bandwidth {:.0} GB/s, matrix rate {:.0} TFLOP/s",
        gpu.info().name,
        copy / 1e9,
        rate / 1e12
    );
    let bench = Bench { stream, copy, rate };
    println!(
        "| attention | heads | sequences x context | queries | MB | µs | of copy | TFLOP/s | of matrix rate | plain, µs |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (count, context) in [(1, 1024), (1, 2048), (1, 8192), (1, 32_000), (8, 2048), (64, 1024), (8, 8192)] {
        for queries in [1, 8] {
            bench.attention("decode", Kernel::Fast, LLAMA_8B, [count, context, queries])?;
        }
    }
    for heads in [LLAMA_8B, LLAMA_160M] {
        bench.attention("decode, 2 stages", Kernel::FewStages, heads, [64, 1024, 1])?;
    }
    bench.attention("decode", Kernel::Fast, LLAMA_160M, [1, 1024, 1])?;
    bench.attention("decode", Kernel::Fast, LLAMA_160M, [64, 1024, 1])?;
    for (context, queries) in [(1024, 1024), (4096, 4096), (4096, 512)] {
        bench.attention("prefill", Kernel::Fast, LLAMA_8B, [1, context, queries])?;
    }
    bench.attention("prefill", Kernel::Fast, LLAMA_160M, [1, 4096, 4096])?;
    println!("\n| product | outputs x inputs | rows | µs | of copy | cuBLASLt µs | plain, µs |");
    println!("|---|---|---|---|---|---|---|");
    for (outputs, inputs, kind) in [
        (6144, 4096, SKINNY_BF16),
        (4096, 4096, SKINNY_BF16),
        (14_336, 4096, SKINNY_SWIGLU),
        (4096, 14_336, SKINNY_BF16),
        (128_256, 4096, SKINNY_F32),
        (1536, 8960, SKINNY_BF16),
    ] {
        for rows in [1, 8, 16] {
            bench.product(outputs, inputs, rows, kind)?;
        }
    }
    Ok(())
}

struct Bench {
    stream: Stream,
    copy: f64,
    rate: f64,
}

impl Bench {
    fn time(
        &self,
        count: usize,
        mut launch: impl FnMut(usize) -> std::result::Result<(), CudaError>,
    ) -> Result<f64> {
        launch(0)?;
        self.stream.synchronize()?;
        let graph = Graph::capture(&self.stream, || (0..count).try_for_each(&mut launch))?;
        Ok(median_microseconds(&self.stream, REPLAYS, || graph.launch(&self.stream))? / count as f64)
    }

    /// `sizes`: sequences, context and queries of each.
    fn attention(&self, name: &str, kernel: Kernel, heads: Heads, sizes: [usize; 3]) -> Result<()> {
        let [count, context, queries] = sizes;
        let shape = || vec![Sequence::chain((context - queries) as u32, queries); count];
        let bytes = bytes(heads, &shape());
        let sets = (CASES_BYTES / bytes + 1).min(CASES_MAX);
        let mut cases: Vec<Case> = (0..sets as u64)
            .map(|seed| Case::new(&Problem::new(heads, shape(), seed), &self.stream))
            .collect::<std::result::Result<_, _>>()?;
        let fast = self.time(LAUNCHES, |i| cases[i % sets].launch(kernel, &self.stream))?;
        let slow = operations(heads, &shape()) > 1e10;
        let plain = match slow {
            true => f64::NAN,
            false => self.time(1, |i| cases[i % sets].launch(Kernel::Naive, &self.stream))?,
        };
        let flops = operations(heads, &shape()) / fast * 1e6;
        println!(
            "| {name} | {}/{} x {} | {count} x {context} | {queries} | {:.1} | {fast:.1} | {:.0} % | {:.0} | {:.0} % | {plain:.0} |",
            heads.query,
            heads.kv,
            heads.dim,
            bytes as f64 / 1e6,
            100.0 * bytes as f64 / fast * 1e6 / self.copy,
            flops / 1e12,
            100.0 * flops / self.rate
        );
        Ok(())
    }

    fn product(&self, outputs: usize, inputs: usize, rows: usize, kind: u32) -> Result<()> {
        let weight_rows = if kind == SKINNY_SWIGLU { 2 * outputs } else { outputs };
        let bytes = 2 * weight_rows * inputs;
        let sets = (CASES_BYTES / bytes + 1).min(CASES_MAX);
        let weights: Vec<DeviceBuffer<u16>> = (0..sets)
            .map(|_| DeviceBuffer::filled(0x3c, weight_rows * inputs, &self.stream))
            .collect::<std::result::Result<_, _>>()?;
        let x = DeviceBuffer::<u16>::filled(0x3c, rows * inputs, &self.stream)?;
        let mut y = DeviceBuffer::<f32>::uninitialized(rows * weight_rows)?;
        let y = y.mut_ptr();
        let params = |set: usize| SkinnyParams {
            weights: weights[set % sets].ptr(),
            x: x.ptr(),
            y: y.cast(),
            outputs: outputs as i32,
            inputs: inputs as i32,
            rows: rows as i32,
            kind: kind as i32,
            ..SkinnyParams::default()
        };
        let raw = self.stream.raw();
        // SAFETY: the buffers above have the parameters' sizes.
        let fast = self.time(LAUNCHES, |i| unsafe {
            check_launch(kernels::specserve_skinny_gemm(&params(i), raw), "skinny_gemm")
        })?;
        // SAFETY: as above.
        let plain = self.time(1, |i| unsafe {
            check_launch(kernels::specserve_skinny_gemm_naive(&params(i), raw), "skinny_gemm_naive")
        })?;
        let mut gemm = Gemm::new()?;
        let output = if kind == SKINNY_F32 { GemmOutput::F32 } else { GemmOutput::Bf16 };
        let shape = GemmShape { outputs: weight_rows, inputs, rows, output };
        let operands =
            |set: usize| GemmOperands { weights: weights[set % sets].ptr(), x: x.ptr(), y: y.cast() };
        // SAFETY: as above.
        unsafe { gemm.tune(shape, operands(0), &self.stream)? };
        // SAFETY: as above.
        let library = self.time(LAUNCHES, |i| unsafe { gemm.run(shape, operands(i), &self.stream) })?;
        println!(
            "| {} | {weight_rows} x {inputs} | {rows} | {fast:.1} | {:.0} % | {library:.1} | {plain:.0} |",
            ["bf16", "fp32", "swiglu"][kind as usize],
            100.0 * bytes as f64 / fast * 1e6 / self.copy
        );
        Ok(())
    }
}

/// Bytes that any kernel must move: keys and values once, queries, output.
fn bytes(heads: Heads, sequences: &[Sequence]) -> usize {
    let positions: usize = sequences.iter().map(Sequence::end).sum();
    let rows: usize = sequences.iter().map(|sequence| sequence.tokens).sum();
    2 * (2 * positions * heads.kv + 2 * rows * heads.query) * heads.dim
}

/// Floating-point operations of the visible part.
fn operations(heads: Heads, sequences: &[Sequence]) -> f64 {
    let seen = |sequence: &Sequence| {
        let (start, tokens) = (f64::from(sequence.start), sequence.tokens as f64);
        tokens * start + tokens * (tokens + 1.0) / 2.0
    };
    4.0 * (heads.query * heads.dim) as f64 * sequences.iter().map(seen).sum::<f64>()
}

/// Operations per second of a large bf16 product of random numbers.
fn matrix_rate(stream: &Stream) -> Result<f64> {
    const SIZE: usize = 8192;
    let mut random = case::Random::new(1);
    let numbers: Vec<u16> = (0..SIZE * SIZE).map(|_| random.bf16()).collect();
    let a = DeviceBuffer::from_slice(&numbers, stream)?;
    let mut y = DeviceBuffer::<u16>::uninitialized(SIZE * SIZE)?;
    let shape = GemmShape { outputs: SIZE, inputs: SIZE, rows: SIZE, output: GemmOutput::Bf16 };
    let operands = GemmOperands { weights: a.ptr(), x: a.ptr(), y: y.mut_ptr().cast() };
    let mut gemm = Gemm::new()?;
    // SAFETY: the buffers have the shape's sizes.
    unsafe { gemm.tune(shape, operands, stream)? };
    // SAFETY: as above.
    let time = median_microseconds(stream, 5, || unsafe { gemm.run(shape, operands, stream) })?;
    Ok(2.0 * (SIZE as f64).powi(3) / time * 1e6)
}
