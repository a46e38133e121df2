//! The skinny matrix products against double precision, and for batch invariance.
#![cfg(feature = "cuda")]

mod fused;

use half::bf16;
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, SKINNY_ADD_F32, SKINNY_BF16, SKINNY_F32, SKINNY_ROWS_MAX, SKINNY_SWIGLU, SkinnyParams,
};
use specserve::executor::cuda::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use specserve::executor::cuda::{DeviceBuffer, Gpu, Stream};

/// Outputs that are compared with the double-precision product, per row.
const CHECKED: usize = 40;
/// Relative error of fp32 sums of bf16 products, and of a result that is rounded to bf16.
const F32_ERROR_MAX: f64 = 1e-4;
const BF16_ERROR_MAX: f64 = 6e-3;

/// Random bf16 numbers on both sides.
struct Matrix {
    numbers: Vec<u16>,
    device: DeviceBuffer<u16>,
}

fn random(count: usize, seed: u64, stream: &Stream) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let numbers: Vec<u16> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bf16::from_f32((state >> 40) as f32 / 8_388_608.0 - 1.0).to_bits()
        })
        .collect();
    let device = DeviceBuffer::from_slice(&numbers, stream).expect("fits");
    Matrix { numbers, device }
}

/// Bits of the result, one word per output, from a poisoned buffer.
fn run(kind: u32, sizes: [usize; 3], weights: &Matrix, x: &Matrix, stream: &Stream) -> Vec<u32> {
    run_staged(kind, sizes, [weights, x], false, stream)
}

/// The same, with the variant for devices with little shared memory if `few_stages`.
fn run_staged(
    kind: u32,
    sizes: [usize; 3],
    [weights, x]: [&Matrix; 2],
    few_stages: bool,
    stream: &Stream,
) -> Vec<u32> {
    let [outputs, inputs, rows] = sizes;
    let words = if kind == SKINNY_F32 { outputs * rows } else { (outputs * rows).div_ceil(2) };
    let mut y = DeviceBuffer::<u32>::filled(0xff, words, stream).expect("fits");
    let params = SkinnyParams {
        weights: weights.device.ptr(),
        x: x.device.ptr(),
        y: y.mut_ptr().cast(),
        outputs: outputs as i32,
        inputs: inputs as i32,
        rows: rows as i32,
        kind: kind as i32,
        few_stages: i32::from(few_stages),
        ..SkinnyParams::default()
    };
    // SAFETY: the buffers have the parameters' sizes.
    check_launch(unsafe { kernels::specserve_skinny_gemm(&params, stream.raw()) }, "skinny_gemm")
        .expect("runs");
    let words = y.to_vec(stream).expect("reads");
    match kind {
        SKINNY_F32 => words,
        _ => words.iter().flat_map(|word| [word & 0xffff, word >> 16]).take(outputs * rows).collect(),
    }
}

fn value(kind: u32, bits: u32) -> f64 {
    match kind {
        SKINNY_F32 => f64::from(f32::from_bits(bits)),
        _ => f64::from(bf16::from_bits(bits as u16)),
    }
}

fn product(weights: &Matrix, x: &Matrix, output: usize, row: usize, inputs: usize) -> f64 {
    let number = |bits: u16| f64::from(bf16::from_bits(bits));
    let w = &weights.numbers[output * inputs..(output + 1) * inputs];
    let x = &x.numbers[row * inputs..(row + 1) * inputs];
    w.iter().zip(x).map(|(&w, &x)| number(w) * number(x)).sum()
}

fn want(kind: u32, sizes: [usize; 3], weights: &Matrix, x: &Matrix, output: usize, row: usize) -> f64 {
    let [outputs, inputs, _] = sizes;
    let first = product(weights, x, output, row, inputs);
    if kind != SKINNY_SWIGLU {
        return first;
    }
    first / (1.0 + (-first).exp()) * product(weights, x, output + outputs, row, inputs)
}

/// Outputs and inputs: tiny models, uneven shares, few and many tiles, short and long rows.
const SHAPES: [(usize, usize); 8] =
    [(64, 128), (256, 384), (4096, 384), (1536, 896), (1536, 1536), (1024, 8960), (9216, 1536), (4096, 4096)];

/// All shapes; the first few for compute-sanitizer (`SPECSERVE_TEST_SMALL`).
fn shapes() -> &'static [(usize, usize)] {
    if std::env::var_os("SPECSERVE_TEST_SMALL").is_some() { &SHAPES[..4] } else { &SHAPES }
}

#[test]
#[ignore = "needs a CUDA device"]
fn products_of_every_shape_and_row_count_are_those_of_double_precision() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    for (index, &(outputs, inputs)) in shapes().iter().enumerate() {
        let weights = random(2 * outputs * inputs, index as u64, &stream);
        let x = random(SKINNY_ROWS_MAX as usize * inputs, 100 + index as u64, &stream);
        for kind in [SKINNY_BF16, SKINNY_F32, SKINNY_SWIGLU] {
            for rows in [1usize, 3, 8, 9, 16] {
                let sizes = [outputs, inputs, rows];
                let got = run(kind, sizes, &weights, &x, &stream);
                let (mut error, mut length) = (0.0, 0.0);
                for check in 0..CHECKED {
                    let (output, row) = (check * 7919 % outputs, check % rows);
                    let want = want(kind, sizes, &weights, &x, output, row);
                    error += (value(kind, got[row * outputs + output]) - want).powi(2);
                    length += want * want;
                }
                let error = (error / length).sqrt();
                let most = if kind == SKINNY_F32 { F32_ERROR_MAX } else { BF16_ERROR_MAX };
                assert!(error < most, "kind {kind} {outputs} x {inputs}, {rows} rows: {error}");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_row_has_the_same_bits_whatever_rows_go_with_it() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    for &(outputs, inputs) in shapes() {
        let weights = random(2 * outputs * inputs, 5, &stream);
        let x = random(16 * inputs, 6, &stream);
        for kind in [SKINNY_BF16, SKINNY_F32, SKINNY_SWIGLU] {
            let all = run(kind, [outputs, inputs, 16], &weights, &x, &stream);
            for rows in [1usize, 2, 7, 8, 11] {
                let few = run(kind, [outputs, inputs, rows], &weights, &x, &stream);
                assert!(few[..] == all[..rows * outputs], "kind {kind} {outputs} x {inputs}, {rows} rows");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_product_can_be_added_to_what_is_there() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    let mut gemm = Gemm::new().expect("cuBLASLt");
    for (outputs, inputs) in [(4096, 64), (1536, 256), (2048, 1536)] {
        let weights = random(outputs * inputs, 25, &stream);
        let x = random(64 * inputs, 26, &stream);
        for rows in [1usize, 8, 9, 16, 24, 64] {
            let before: Vec<f32> = (0..outputs * rows).map(|at| (at % 97) as f32 - 48.0).collect();
            let mut y = DeviceBuffer::from_slice(&before, &stream).expect("fits");
            if rows <= SKINNY_ROWS_MAX as usize {
                let params = SkinnyParams {
                    weights: weights.device.ptr(),
                    x: x.device.ptr(),
                    y: y.mut_ptr().cast(),
                    outputs: outputs as i32,
                    inputs: inputs as i32,
                    rows: rows as i32,
                    kind: SKINNY_ADD_F32 as i32,
                    ..SkinnyParams::default()
                };
                // SAFETY: the buffers have the named sizes.
                let status = unsafe { kernels::specserve_skinny_gemm(&params, stream.raw()) };
                check_launch(status, "skinny_gemm").expect("launches");
            } else {
                let shape = GemmShape { outputs, inputs, rows, output: GemmOutput::AddF32 };
                let operands =
                    GemmOperands { weights: weights.device.ptr(), x: x.device.ptr(), y: y.mut_ptr().cast() };
                gemm.prepare(shape).expect("an algorithm");
                // SAFETY: the buffers have the shape's sizes.
                unsafe { gemm.run(shape, operands, &stream).expect("runs") };
            }
            let got = y.to_vec(&stream).expect("reads");
            for check in 0..CHECKED {
                let (output, row) = (check * 7919 % outputs, check % rows);
                let at = row * outputs + output;
                let want = f64::from(before[at]) + product(&weights, &x, output, row, inputs);
                let error = (f64::from(got[at]) - want).abs();
                assert!(error < 2e-3, "{outputs} x {inputs}, {rows} rows: {} for {want}", got[at]);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn chips_with_little_shared_memory_get_the_same_bits() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    for &(outputs, inputs) in shapes() {
        let weights = random(2 * outputs * inputs, 15, &stream);
        let x = random(16 * inputs, 16, &stream);
        for kind in [SKINNY_BF16, SKINNY_F32, SKINNY_SWIGLU] {
            for rows in [1usize, 16] {
                let sizes = [outputs, inputs, rows];
                let [many, few] =
                    [false, true].map(|few| run_staged(kind, sizes, [&weights, &x], few, &stream));
                assert!(many == few, "kind {kind} {outputs} x {inputs}, {rows} rows");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cublaslt_products_are_those_of_double_precision() {
    let _gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    let mut gemm = Gemm::new().expect("cuBLASLt");
    for (outputs, inputs, rows) in [(4096, 384, 24), (256, 128, 64), (1536, 8960, 1), (4096, 4096, 128)] {
        let weights = random(outputs * inputs, 8, &stream);
        let x = random(rows * inputs, 9, &stream);
        let mut y = DeviceBuffer::<f32>::filled(0xff, outputs * rows, &stream).expect("fits");
        let shape = GemmShape { outputs, inputs, rows, output: GemmOutput::F32 };
        let operands =
            GemmOperands { weights: weights.device.ptr(), x: x.device.ptr(), y: y.mut_ptr().cast() };
        // SAFETY: the buffers have the shape's sizes.
        unsafe {
            gemm.tune(shape, operands, &stream).expect("an algorithm");
            gemm.run(shape, operands, &stream).expect("runs");
        }
        let got = y.to_vec(&stream).expect("reads");
        let (mut error, mut length) = (0.0, 0.0);
        for check in 0..CHECKED {
            let (output, row) = (check * 7919 % outputs, check * 31 % rows);
            let want = product(&weights, &x, output, row, inputs);
            error += (f64::from(got[row * outputs + output]) - want).powi(2);
            length += want * want;
        }
        assert!((error / length).sqrt() < F32_ERROR_MAX, "{outputs} x {inputs} x {rows}");
        assert!(got.iter().all(|value| value.is_finite()));
    }
}
