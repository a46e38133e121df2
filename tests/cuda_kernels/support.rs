//! Device, random inputs, comparisons.

use std::time::{SystemTime, UNIX_EPOCH};

use bytemuck::Pod;
use half::bf16;
use specserve::executor::cuda::{DeviceBuffer, Gpu, Stream};
use specserve::random::SplitMix64;

/// Seed of the inputs; printed by failing tests.
const SEED_VARIABLE: &str = "SPECSERVE_TEST_SEED";

/// Environment variable that selects small cases, for tools that slow the device down 100x.
const SMALL_VARIABLE: &str = "SPECSERVE_TEST_SMALL";
/// Most numbers of a small case.
const SMALL_NUMBERS: usize = 1 << 16;

/// A device, a stream and a source of random numbers.
pub struct Bench {
    pub stream: Stream,
    pub random: Random,
    // The context that everything else lives in.
    _gpu: Gpu,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "a fresh seed for each run, printed to repeat it")]
    pub fn new() -> Bench {
        let gpu = Gpu::open(0).expect("these tests need a GPU");
        let seed = match std::env::var(SEED_VARIABLE) {
            Ok(text) => text.parse().expect("SPECSERVE_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos() as u64,
        };
        println!("{SEED_VARIABLE}={seed}");
        Bench { stream: Stream::new().expect("a stream"), random: Random(SplitMix64::new(seed)), _gpu: gpu }
    }

    /// Whether a case of this many elements is skipped.
    pub fn leaves_out(&self, numbers: usize) -> bool {
        numbers > SMALL_NUMBERS && std::env::var_os(SMALL_VARIABLE).is_some()
    }

    pub fn upload<T: Pod>(&self, values: &[T]) -> DeviceBuffer<T> {
        DeviceBuffer::from_slice(values, &self.stream).expect("device memory")
    }

    /// Every byte 0xff: NaN in bf16 and f32, -1 in integers.
    pub fn poisoned<T: Pod>(&self, len: usize) -> DeviceBuffer<T> {
        DeviceBuffer::filled(0xff, len, &self.stream).expect("device memory")
    }

    pub fn zeroed<T: Pod>(&self, len: usize) -> DeviceBuffer<T> {
        DeviceBuffer::filled(0, len, &self.stream).expect("device memory")
    }

    pub fn download<T: Pod>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        buffer.to_vec(&self.stream).expect("the kernel ran")
    }
}

/// Random numbers as the kernels take them.
pub struct Random(SplitMix64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0.uniform()
    }

    /// Approximately normal: a sum of four uniform variates, mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform()).sum::<f32>() * 1.732 - 3.464
    }

    pub fn bf16s(&mut self, len: usize, scale: f32) -> Vec<u16> {
        (0..len).map(|_| bf16::from_f32(self.normal() * scale).to_bits()).collect()
    }

    pub fn f32s(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.normal() * scale).collect()
    }
}

pub fn f64_of(bits: u16) -> f64 {
    f64::from(bf16::from_bits(bits).to_f32())
}

/// Asserts that bf16 results are the expected numbers, to a rounding of bf16 and a little
/// of fp32 (`slack`, relative to the row's largest number).
pub fn assert_close(got: &[u16], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
    for (i, (&bits, &want)) in got.iter().zip(want).enumerate() {
        let got = f64_of(bits);
        let allowed = want.abs() / 200.0 + largest * 1e-4 + 1e-30;
        assert!((got - want).abs() <= allowed, "{what}: number {i} is {got}, not {want}");
    }
}
