//! The CUDA driver: its version and its errors.

use cudarc::driver::{DriverError, sys};

use crate::kernels::KernelError;

/// An address in the GPU's memory; 0 is none.
pub(super) type DeviceAddress = u64;

#[expect(unsafe_code, reason = "cudarc asks for a library's file so")]
pub(super) fn driver_is_present() -> bool {
    // SAFETY: it only looks for a file.
    unsafe { sys::is_culib_present() }
}

/// The CUDA version of the driver, 13.0 being (13, 0).
#[expect(unsafe_code, reason = "the driver is a C library")]
pub(super) fn driver_version() -> Result<(i32, i32), KernelError> {
    let mut version = 0;
    // SAFETY: the place is there to be written.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(device)?;
    Ok((version / 1000, version % 1000 / 10))
}

pub(super) fn device(error: DriverError) -> KernelError {
    KernelError::Device(error.to_string())
}

pub(super) fn out_of_memory<T>(elements: usize, error: DriverError) -> KernelError {
    match error.0 {
        sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
            KernelError::OutOfMemory { elements: elements.saturating_mul(size_of::<T>()).div_ceil(4) }
        }
        _ => device(error),
    }
}
