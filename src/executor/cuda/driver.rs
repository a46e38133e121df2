//! The device and its context.

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};

use super::error::CudaError;
use super::ffi::kernels;

unsafe extern "C" {
    /// Of crates/find_cuda_helper: non-zero when libcuda.so.1 could be opened.
    fn cuda_shim_driver_present() -> i32;
}

/// Facts about a GPU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GpuInfo {
    /// Which one, counted as `CUDA_VISIBLE_DEVICES` leaves them.
    pub ordinal: u32,
    /// The maker's name.
    pub name: String,
    /// Compute capability times ten: 90 for Hopper.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory in bytes.
    pub memory_bytes: usize,
    /// Second-level cache in bytes.
    pub l2_bytes: usize,
    /// Most shared memory one CTA can have, in bytes.
    pub shared_bytes_max: usize,
    /// PCI address as sysfs spells it (`0000:1b:00.0`).
    pub pci_address: String,
    /// CUDA version that the driver supports, `13.0`.
    pub driver_api: String,
    /// CUDA version that the kernels are linked with.
    pub runtime: String,
}

/// An open GPU. Its primary context lives as long as the process, because the CUDA
/// runtime and cuBLASLt keep state in it.
pub struct Gpu {
    context: &'static Context,
    info: GpuInfo,
}

impl Gpu {
    /// Opens a GPU and makes its context current on this thread.
    ///
    /// # Errors
    /// Says what is missing: the driver, the GPU, or a driver new enough.
    pub fn open(ordinal: u32) -> Result<Gpu, CudaError> {
        // SAFETY: takes nothing, opens a library once.
        if unsafe { cuda_shim_driver_present() } == 0 {
            return Err(CudaError::NoDriver);
        }
        let missing = |error| CudaError::NoDevice { ordinal, detail: format!("{error:?}") };
        cust::init(cust::CudaFlags::empty()).map_err(missing)?;
        let driver = cust::CudaApiVersion::get().map_err(missing)?;
        // SAFETY: takes nothing, reads a constant of the linked runtime.
        let runtime = unsafe { kernels::specserve_runtime_version() };
        check_versions(driver.major() * 1000 + driver.minor() * 10, runtime)?;
        let device = Device::get_device(ordinal).map_err(missing)?;
        let info = read_info(device, ordinal, runtime).map_err(missing)?;
        // Leaked on purpose: see the type.
        let context: &'static Context = Box::leak(Box::new(Context::new(device).map_err(missing)?));
        let gpu = Gpu { context, info };
        gpu.bind_to_thread()?;
        Ok(gpu)
    }

    /// Makes the context current for the calling thread; every thread that touches the
    /// device needs this once.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn bind_to_thread(&self) -> Result<(), CudaError> {
        CurrentContext::set_current(self.context).map_err(|error| CudaError::Call {
            what: "cuCtxSetCurrent",
            code: -1,
            detail: format!("{error:?}"),
        })
    }

    /// Facts about it.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Free device memory in bytes, as the driver counts it now.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn memory_free_bytes(&self) -> Result<usize, CudaError> {
        let (free, _total) = cust::memory::mem_get_info().map_err(|error| CudaError::Call {
            what: "cuMemGetInfo",
            code: -1,
            detail: format!("{error:?}"),
        })?;
        Ok(free)
    }
}

/// The driver may have a newer minor version or an older one of the same major.
fn check_versions(driver: i32, runtime: i32) -> Result<(), CudaError> {
    if driver / 1000 >= runtime / 1000 {
        return Ok(());
    }
    Err(CudaError::DriverTooOld { driver: version_text(driver), runtime: version_text(runtime) })
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// cust lacks this attribute.
fn shared_bytes_max(device: Device) -> Result<usize, cust::error::CudaError> {
    use cust::sys::{CUdevice_attribute_enum as Attribute, cuDeviceGetAttribute, cudaError_enum};
    let mut bytes = 0;
    let which = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: `bytes` outlives the call, which writes to it; the device exists.
    match unsafe { cuDeviceGetAttribute(&mut bytes, which, device.as_raw()) } {
        cudaError_enum::CUDA_SUCCESS => Ok(bytes as usize),
        _ => Err(cust::error::CudaError::InvalidValue),
    }
}

fn read_info(device: Device, ordinal: u32, runtime: i32) -> Result<GpuInfo, cust::error::CudaError> {
    let attribute = |which| device.get_attribute(which);
    let major = attribute(DeviceAttribute::ComputeCapabilityMajor)?;
    let minor = attribute(DeviceAttribute::ComputeCapabilityMinor)?;
    let driver = cust::CudaApiVersion::get()?;
    Ok(GpuInfo {
        ordinal,
        name: device.name()?,
        compute_capability: (10 * major + minor) as u32,
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)? as u32,
        memory_bytes: device.total_memory()?,
        l2_bytes: attribute(DeviceAttribute::L2CacheSize)? as usize,
        shared_bytes_max: shared_bytes_max(device)?,
        pci_address: format!(
            "{:04x}:{:02x}:{:02x}.0",
            attribute(DeviceAttribute::PciDomainId)?,
            attribute(DeviceAttribute::PciBusId)?,
            attribute(DeviceAttribute::PciDeviceId)?
        ),
        driver_api: format!("{}.{}", driver.major(), driver.minor()),
        runtime: version_text(runtime),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_an_older_major_version_is_refused_with_both_versions() {
        assert_eq!(check_versions(13000, 13000), Ok(()));
        assert_eq!(check_versions(14020, 13000), Ok(()));
        let error = check_versions(12080, 13000).expect_err("older");
        assert!(error.to_string().contains("12.8") && error.to_string().contains("13.0"), "{error}");
    }

    #[test]
    fn without_a_driver_opening_says_so_instead_of_failing_to_start() {
        // SAFETY: takes nothing, opens a library once.
        if unsafe { cuda_shim_driver_present() } == 0 {
            assert_eq!(Gpu::open(0).err(), Some(CudaError::NoDriver));
        } else {
            assert!(matches!(Gpu::open(9_999), Err(CudaError::NoDevice { ordinal: 9_999, .. })));
        }
    }
}
