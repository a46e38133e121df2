//! Skinny products with fused epilogues: the division by a row's root mean square, the addition
//! to the residual stream, the rotation and the write to the cache.

use half::bf16;
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, QkvParams, SKINNY_BF16, SKINNY_F32, SKINNY_QKV, SKINNY_RESIDUAL, SKINNY_SQUARES_WIDTH,
    SKINNY_SWIGLU, SkinnyParams,
};
use specserve::executor::cuda::{DeviceBuffer, Gpu, Stream};

use super::{BF16_ERROR_MAX, Matrix, product, random};

const ROWS_MAX: usize = 16;
const BLOCK_TOKENS: usize = 16;
const SQUARES_WIDTH: usize = SKINNY_SQUARES_WIDTH as usize;
const POSITIONS: usize = 300;
const EPS: f32 = 1e-5;
const POISON: u16 = 0xffff;

/// Shape of a fused projection.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inputs: usize,
}

impl Shape {
    fn outputs(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Few and many tiles, short and long rows, rows with more sums of squares than lanes hold.
fn shapes() -> Vec<Shape> {
    let all = [
        (2, 1, 64, 128),
        (6, 2, 128, 384),
        (12, 12, 64, 768),
        (12, 2, 128, 1536),
        (2, 1, 64, 8192),
        (32, 8, 128, 4096),
    ];
    let count = if std::env::var_os("SPECSERVE_TEST_SMALL").is_some() { 3 } else { all.len() };
    let shape = |(heads, kv_heads, head_dim, inputs)| Shape { heads, kv_heads, head_dim, inputs };
    all[..count].iter().copied().map(shape).collect()
}

/// Variant of the product under test.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    Fast,
    FewStages,
    Naive,
}

/// All inputs of a product, on host and device.
struct Problem {
    shape: Shape,
    weights: Matrix,
    x: Matrix,
    x_squares: Vec<f32>,
    residual: Vec<f32>,
    norm_weight: Matrix,
    bias: Matrix,
    /// Cosines and sines of every position and pair.
    rotations: Vec<f32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
}

/// Outputs of a product.
#[derive(PartialEq)]
struct Written {
    y: Vec<u16>,
    residual: Vec<f32>,
    squares: Vec<f32>,
    cache: Vec<u16>,
}

impl Problem {
    fn new(shape: Shape, seed: u64, stream: &Stream) -> Problem {
        let (outputs, inputs) = (shape.outputs(), shape.inputs);
        let numbers = |count: usize, salt: u64| {
            let made = random(count, seed * 97 + salt, stream).numbers;
            made.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect::<Vec<f32>>()
        };
        let angles = numbers(POSITIONS * shape.head_dim / 2, 4).into_iter().map(|x| 3.0 * x);
        let mut slots: Vec<i32> = (0..ROWS_MAX as i32).map(|row| (row * 7 + 3) % 48).collect();
        slots[4] = -1;
        Problem {
            weights: random(2 * outputs * inputs, seed * 97 + 1, stream),
            x: random(ROWS_MAX * inputs, seed * 97 + 2, stream),
            x_squares: numbers(ROWS_MAX * inputs / SQUARES_WIDTH, 3).iter().map(|x| 40.0 * x.abs()).collect(),
            residual: numbers(ROWS_MAX * outputs, 5).iter().map(|x| 20.0 * x).collect(),
            norm_weight: random(outputs, seed * 97 + 6, stream),
            bias: random(outputs, seed * 97 + 7, stream),
            rotations: angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect(),
            positions: (0..ROWS_MAX as i32).map(|row| row * 17 % POSITIONS as i32).collect(),
            slots,
            shape,
        }
    }

    /// Runs a product of the first `rows` rows into poisoned outputs.
    fn run(&self, kind: u32, rows: usize, version: Version, stream: &Stream) -> Written {
        let Shape { heads, kv_heads, head_dim, inputs } = self.shape;
        let outputs = self.shape.outputs();
        let words = rows * outputs;
        let mut y = DeviceBuffer::<u16>::filled(0xff, words, stream).expect("fits");
        let mut residual = DeviceBuffer::from_slice(&self.residual, stream).expect("fits");
        let mut squares =
            DeviceBuffer::<f32>::filled(0xff, rows * outputs / SQUARES_WIDTH, stream).expect("fits");
        let blocks = 48 / BLOCK_TOKENS;
        let cache_size = blocks * kv_heads * 2 * BLOCK_TOKENS * head_dim;
        let mut cache = DeviceBuffer::<u16>::filled(0xff, cache_size, stream).expect("fits");
        let x_squares = DeviceBuffer::from_slice(&self.x_squares, stream).expect("fits");
        let rotations = DeviceBuffer::from_slice(&self.rotations, stream).expect("fits");
        let positions = DeviceBuffer::from_slice(&self.positions, stream).expect("fits");
        let slots = DeviceBuffer::from_slice(&self.slots, stream).expect("fits");
        let params = SkinnyParams {
            weights: self.weights.device.ptr(),
            x: self.x.device.ptr(),
            y: y.mut_ptr().cast(),
            outputs: outputs as i32,
            inputs: inputs as i32,
            rows: rows as i32,
            kind: kind as i32,
            few_stages: i32::from(version == Version::FewStages),
            x_squares: if scales(kind) { x_squares.ptr() } else { std::ptr::null() },
            x_eps: EPS,
            residual: residual.mut_ptr(),
            norm_weight: self.norm_weight.device.ptr(),
            y_squares: squares.mut_ptr(),
            qkv: QkvParams {
                bias: self.bias.device.ptr(),
                rotations: rotations.ptr(),
                positions: positions.ptr(),
                slots: slots.ptr(),
                kv: cache.mut_ptr(),
                heads: heads as i32,
                kv_heads: kv_heads as i32,
                head_dim: head_dim as i32,
                ..QkvParams::default()
            },
        };
        // SAFETY: the buffers have the parameters' sizes and live until the downloads below.
        let status = unsafe {
            match version {
                Version::Naive => kernels::specserve_skinny_gemm_naive(&params, stream.raw()),
                _ => kernels::specserve_skinny_gemm(&params, stream.raw()),
            }
        };
        check_launch(status, "skinny_gemm").expect("runs");
        Written {
            y: y.to_vec(stream).expect("reads"),
            residual: residual.to_vec(stream).expect("reads"),
            squares: squares.to_vec(stream).expect("reads"),
            cache: cache.to_vec(stream).expect("reads"),
        }
    }

    fn product(&self, output: usize, row: usize) -> f64 {
        product(&self.weights, &self.x, output, row, self.shape.inputs)
    }

    /// The product, divided by the row's root mean square.
    fn normalised(&self, output: usize, row: usize) -> f64 {
        let count = self.shape.inputs / SQUARES_WIDTH;
        let sum: f64 = self.x_squares[row * count..(row + 1) * count].iter().map(|&s| f64::from(s)).sum();
        let mean = sum / self.shape.inputs as f64 + f64::from(EPS);
        self.product(output, row) / mean.sqrt()
    }

    /// A pair of a head's elements as attention reads them: with bias, and rotated except for values.
    fn pair(&self, head: usize, column: usize, row: usize) -> [f64; 2] {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let half = head_dim / 2;
        let [low, high] = [column, column + half].map(|column| {
            let output = head * head_dim + column;
            self.normalised(output, row) + number(self.bias.numbers[output])
        });
        if head >= heads + kv_heads {
            return [low, high];
        }
        let at = 2 * (self.positions[row] as usize * half + column);
        let [cosine, sine] = [self.rotations[at], self.rotations[at + 1]].map(f64::from);
        [low * cosine - high * sine, high * cosine + low * sine]
    }
}

/// Whether a kind multiplies by the scale of the preceding norm.
fn scales(kind: u32) -> bool {
    matches!(kind, SKINNY_SWIGLU | SKINNY_QKV)
}

fn number(bits: u16) -> f64 {
    f64::from(bf16::from_bits(bits))
}

/// The relative error of many numbers together.
fn relative_error(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut error, mut length) = (0.0, 0.0);
    for (got, want) in pairs {
        error += (got - want).powi(2);
        length += want * want;
    }
    let relative: f64 = error / length;
    relative.sqrt()
}

/// Calls `check` with every shape, row count and version.
fn for_each_case(mut check: impl FnMut(&Problem, usize, Version, &Stream)) {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    for (seed, shape) in shapes().into_iter().enumerate() {
        let problem = Problem::new(shape, seed as u64, &stream);
        for rows in [1, 5, 8, 9, 16] {
            for version in [Version::Fast, Version::Naive] {
                check(&problem, rows, version, &stream);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn activated_products_of_rows_before_their_division_are_divided_by_their_root_mean_square() {
    for_each_case(|problem, rows, version, stream| {
        let outputs = problem.shape.outputs();
        let got = problem.run(SKINNY_SWIGLU, rows, version, stream).y;
        let checked = (0..40).map(|i| (i * 7919 % outputs, i % rows)).map(|(output, row)| {
            let gate = problem.normalised(output, row);
            let want = gate / (1.0 + (-gate).exp()) * problem.normalised(output + outputs, row);
            (number(got[row * outputs + output]), want)
        });
        let error = relative_error(checked);
        assert!(error < BF16_ERROR_MAX, "{version:?}, {:?}, {rows} rows: {error}", problem.shape);
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn sums_of_squares_are_refused_where_nothing_is_scaled() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let squares = DeviceBuffer::<f32>::uninitialized(64).expect("fits");
    let stream = Stream::new().expect("a stream");
    for kind in [SKINNY_BF16, SKINNY_F32, SKINNY_RESIDUAL] {
        let params = SkinnyParams {
            x_squares: squares.ptr(),
            outputs: 64,
            inputs: 64,
            rows: 1,
            kind: kind as i32,
            ..SkinnyParams::default()
        };
        // SAFETY: rejected before anything is launched.
        let status = unsafe { kernels::specserve_skinny_gemm(&params, stream.raw()) };
        assert!(check_launch(status, "skinny_gemm").is_err(), "kind {kind}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn residual_products_add_to_the_stream_and_leave_the_next_norm_its_input() {
    for_each_case(|problem, rows, version, stream| {
        let outputs = problem.shape.outputs();
        let got = problem.run(SKINNY_RESIDUAL, rows, version, stream);
        let case = format!("{version:?}, {:?}, {rows} rows", problem.shape);
        let added = (0..40).map(|i| (i * 7919 % outputs, i % rows)).map(|(output, row)| {
            let at = row * outputs + output;
            (f64::from(got.residual[at] - problem.residual[at]), problem.product(output, row))
        });
        let error = relative_error(added);
        assert!(error < BF16_ERROR_MAX, "{case}: {error}");
        assert!(got.residual[rows * outputs..] == problem.residual[rows * outputs..], "{case}: other rows");
        for (at, &residual) in got.residual[..rows * outputs].iter().enumerate() {
            let weight = bf16::from_bits(problem.norm_weight.numbers[at % outputs]).to_f32();
            assert_eq!(got.y[at], bf16::from_f32(residual * weight).to_bits(), "{case}: y at {at}");
        }
        for (at, &square) in got.squares.iter().enumerate() {
            let part = &got.residual[at * SQUARES_WIDTH..(at + 1) * SQUARES_WIDTH];
            let want: f64 = part.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((f64::from(square) - want).abs() <= 1e-5 * want, "{case}: sum {at}");
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn qkv_products_turn_queries_and_keys_and_fill_the_cache() {
    for_each_case(|problem, rows, version, stream| {
        let Shape { heads, kv_heads, head_dim, .. } = problem.shape;
        let (outputs, half) = (problem.shape.outputs(), head_dim / 2);
        let got = problem.run(SKINNY_QKV, rows, version, stream);
        let case = format!("{version:?}, {:?}, {rows} rows", problem.shape);
        let mut pairs = Vec::new();
        for (row, &slot) in problem.slots[..rows].iter().enumerate() {
            for head in 0..heads + 2 * kv_heads {
                let y = &got.y[row * outputs + head * head_dim..][..head_dim];
                let poison = y.iter().all(|&bits| bits == POISON);
                assert_eq!(poison, slot < 0 || head >= heads, "{case}: only queries of real rows");
                let Ok(slot) = usize::try_from(slot) else { continue };
                let values = usize::from(head >= heads + kv_heads);
                let kv_head = head.saturating_sub(heads) % kv_heads;
                let block = (slot / BLOCK_TOKENS * kv_heads + kv_head) * 2 + values;
                let cached =
                    &got.cache[(block * BLOCK_TOKENS + slot % BLOCK_TOKENS) * head_dim..][..head_dim];
                let seen = if head < heads { y } else { cached };
                for column in [row % half, half - 1 - head % half] {
                    let want = problem.pair(head, column, row);
                    pairs.push((number(seen[column]), want[0]));
                    pairs.push((number(seen[column + half]), want[1]));
                }
            }
        }
        let written = got.cache.iter().filter(|&&bits| bits != POISON).count();
        let real = problem.slots[..rows].iter().filter(|&&slot| slot >= 0).count();
        assert_eq!(written, real * 2 * kv_heads * head_dim, "{case}: the cache's other slots");
        let error = relative_error(pairs.into_iter());
        assert!(error < BF16_ERROR_MAX, "{case}: {error}");
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn fused_rows_have_the_same_bits_whatever_rows_go_with_them() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    for (seed, shape) in shapes().into_iter().enumerate() {
        let problem = Problem::new(shape, seed as u64, &stream);
        let outputs = shape.outputs();
        for kind in [SKINNY_BF16, SKINNY_SWIGLU, SKINNY_RESIDUAL, SKINNY_QKV] {
            let all = problem.run(kind, ROWS_MAX, Version::Fast, &stream);
            let few_stages = problem.run(kind, ROWS_MAX, Version::FewStages, &stream);
            assert!(all.y == few_stages.y, "kind {kind}, {shape:?}: y with few stages");
            assert!(all.residual == few_stages.residual, "kind {kind}, {shape:?}: residual with few stages");
            for rows in [1, 2, 7, 8, 11] {
                let few = problem.run(kind, rows, Version::Fast, &stream);
                let case = format!("kind {kind}, {shape:?}, {rows} rows");
                assert!(few.y[..] == all.y[..rows * outputs], "{case}: y");
                assert!(few.residual[..rows * outputs] == all.residual[..rows * outputs], "{case}: residual");
                if kind == SKINNY_RESIDUAL {
                    assert!(few.squares[..] == all.squares[..few.squares.len()], "{case}: squares");
                }
                let cached = few.cache.iter().zip(&all.cache).all(|(&few, &all)| few == POISON || few == all);
                assert!(cached, "{case}: cache");
            }
        }
    }
}
