//! The GPU's part of `specserve doctor`.
#![deny(unsafe_code)]

use std::path::PathBuf;

use super::host::read;
use super::report::{DoctorReport, Severity};
use crate::executor::cuda::buffer::{DeviceBuffer, PinnedBuffer};
use crate::executor::cuda::driver::{Gpu, GpuInfo};
use crate::executor::cuda::error::CudaError;
use crate::executor::cuda::gemm::{Gemm, GemmOperands, GemmOutput, GemmShape};
use crate::executor::cuda::library::cublaslt_path;
use crate::executor::cuda::measure::{copy_bytes_per_second, median_microseconds};
use crate::executor::cuda::stream::Stream;

/// Lowest supported compute capability, times ten.
const COMPUTE_CAPABILITY_MIN: u32 = 80;
/// Free share of device memory below which another process is probably using it.
const MEMORY_FREE_SHARE: f64 = 0.9;
/// Edge of the square matrices in the matmul benchmark.
const MATRIX_EDGE: usize = 8192;
/// Bytes copied from page-locked memory in the upload benchmark.
const UPLOAD_BYTES: usize = 256 << 20;
/// Timed runs per benchmark; the median is reported.
const RUNS: usize = 9;

/// Adds the GPU's findings and problems.
pub(crate) fn examine(report: &mut DoctorReport) {
    report.finding("CUDA compiler", env!("SPECSERVE_NVCC"));
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => return report.problem(Severity::NoCuda, &error, remedy(&error)),
    };
    describe(report, gpu.info());
    if let Err(error) =
        memory(report, &gpu).and_then(|()| bandwidth(report)).and_then(|()| matrix_rate(report))
    {
        report.problem(Severity::NoCuda, &error, remedy(&error));
    }
}

fn remedy(error: &CudaError) -> &'static str {
    match error {
        CudaError::NoDriver => "install the NVIDIA driver, version 580 or newer",
        CudaError::NoDevice { .. } => {
            "check `nvidia-smi`, CUDA_VISIBLE_DEVICES, and in a container that /dev/nvidia* are passed in"
        }
        CudaError::DriverTooOld { .. } => "update the NVIDIA driver to version 580 or newer",
        CudaError::NoLibrary { .. } => {
            "install cuBLAS 13 (`pip install nvidia-cublas`, or a CUDA 13 toolkit), or name its libcublasLt.so.13 \
             in SPECSERVE_CUBLASLT"
        }
        CudaError::OutOfMemory { .. } => "find other processes on the GPU with `nvidia-smi`, and stop them",
        CudaError::Call { .. } => "see the kernel log (`dmesg | grep -i nvrm`); the GPU may need a reset",
    }
}

fn describe(report: &mut DoctorReport, info: &GpuInfo) {
    let GpuInfo { compute_capability, multiprocessors, .. } = info;
    report.finding("GPU", &info.name);
    let (major, minor) = (compute_capability / 10, compute_capability % 10);
    let gib = info.memory_bytes as f64 / f64::from(1 << 30);
    report.finding("compute capability", format!("{major}.{minor}, {multiprocessors} multiprocessors"));
    report.finding("device memory", format!("{gib:.1} GiB, {} MiB of L2 cache", info.l2_bytes >> 20));
    report.finding("CUDA", format!("driver supports {}, built with {}", info.driver_api, info.runtime));
    if *compute_capability < COMPUTE_CAPABILITY_MIN {
        let what = format!("compute capability {major}.{minor} is older than 8.0");
        report.problem(Severity::NoCuda, what, "use an Ampere, Ada, Hopper or newer GPU");
    }
    numa(report, &info.pci_address);
}

/// Checks whether this process may run on the GPU's NUMA node.
fn numa(report: &mut DoctorReport, pci_address: &str) {
    let device = PathBuf::from("/sys/bus/pci/devices").join(pci_address);
    let node = read(device.join("numa_node")).filter(|node| !node.starts_with('-'));
    report.finding("GPU's NUMA node", node.as_deref().unwrap_or("unknown"));
    let near = read(device.join("local_cpulist")).map(|list| cpus_of(&list));
    let mine = read("/proc/self/status").and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.map(|list| cpus_of(list.trim()))
    });
    if let (Some(_), Some(near), Some(mine)) = (node, near, mine)
        && !near.is_empty()
        && !mine.iter().any(|cpu| near.contains(cpu))
    {
        let what = "this process may not run on the GPU's NUMA node; every kernel launch crosses nodes";
        report.problem(Severity::Warning, what, "start it with `numactl --cpunodebind` on the GPU's node");
    }
}

/// Parses a CPU list such as `0-3,8`.
fn cpus_of(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn memory(report: &mut DoctorReport, gpu: &Gpu) -> Result<(), CudaError> {
    let (free, all) = (gpu.memory_free_bytes()? as f64, gpu.info().memory_bytes as f64);
    report.finding("device memory free", format!("{:.1} GiB", free / f64::from(1 << 30)));
    if free < MEMORY_FREE_SHARE * all {
        let what = format!("only {:.0} % of the device memory is free", 100.0 * free / all);
        report.problem(Severity::Warning, what, "find other processes on the GPU with `nvidia-smi`");
    }
    Ok(())
}

#[expect(unsafe_code, reason = "enqueues an asynchronous copy")]
fn bandwidth(report: &mut DoctorReport) -> Result<(), CudaError> {
    let stream = Stream::new()?;
    let copy = copy_bytes_per_second(&stream)?;
    report.finding("copy bandwidth", format!("{:.0} GB/s on the device, read and written", copy / 1e9));
    let host = PinnedBuffer::<u8>::zeroed(UPLOAD_BYTES)?;
    let mut device = DeviceBuffer::<u8>::uninitialized(UPLOAD_BYTES)?;
    // SAFETY: `host` outlives the timed runs, which end synchronised.
    let time = median_microseconds(&stream, RUNS, || unsafe { device.upload_async(0, &host, &stream) })?;
    report.finding(
        "host to device",
        format!("{:.1} GB/s from page-locked memory", UPLOAD_BYTES as f64 / time / 1e3),
    );
    Ok(())
}

#[expect(unsafe_code, reason = "enqueues an asynchronous matrix product")]
fn matrix_rate(report: &mut DoctorReport) -> Result<(), CudaError> {
    let stream = Stream::new()?;
    let mut gemm = Gemm::new()?;
    let path = cublaslt_path().map_or("path unknown".to_owned(), |path| path.display().to_string());
    report.finding("cuBLASLt", path);
    let shape =
        GemmShape { outputs: MATRIX_EDGE, inputs: MATRIX_EDGE, rows: MATRIX_EDGE, output: GemmOutput::Bf16 };
    gemm.prepare(shape)?;
    // Random data: on zeros the chip draws less power and clocks higher.
    let numbers: Vec<u16> = (0..MATRIX_EDGE * MATRIX_EDGE).map(pseudo_random_bf16).collect();
    let (weights, x) =
        (DeviceBuffer::from_slice(&numbers, &stream)?, DeviceBuffer::from_slice(&numbers, &stream)?);
    let mut y = DeviceBuffer::<u16>::uninitialized(numbers.len())?;
    let operands = GemmOperands { weights: weights.ptr(), x: x.ptr(), y: y.mut_ptr().cast() };
    // SAFETY: three matrices of MATRIX_EDGE squared numbers, which outlive the timed runs.
    let time = median_microseconds(&stream, RUNS, || unsafe { gemm.run(shape, operands, &stream) })?;
    let operations = 2.0 * (MATRIX_EDGE as f64).powi(3);
    report.finding(
        "bf16 matrix rate",
        format!("{:.0} TFLOP/s at {MATRIX_EDGE} cubed", operations / time / 1e6),
    );
    Ok(())
}

fn pseudo_random_bf16(index: usize) -> u16 {
    let word = (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    0x3c80 | (word as u16 & 0x807f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpus_of("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(cpus_of(""), Vec::<u32>::new());
    }

    #[test]
    fn a_missing_driver_is_a_problem_with_a_remedy() {
        let mut report = DoctorReport::default();
        examine(&mut report);
        assert!(!report.findings.is_empty());
        assert!(report.problems.iter().all(|problem| !problem.remedy.is_empty()));
    }
}
