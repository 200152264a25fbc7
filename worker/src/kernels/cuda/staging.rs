//! Pinned host memory, which the GPU reads asynchronously.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice};

use super::driver::out_of_memory;
use crate::kernels::KernelError;

/// Initial capacity of the staging buffer, in 32-bit numbers.
pub(super) const UPLOADS: usize = 1 << 16;

/// A staging buffer for small uploads. It fills up until the stream has been waited for.
pub(super) struct UploadStaging {
    pub(super) host: PinnedHostSlice<u32>,
    pub(super) device: CudaSlice<u32>,
    pub(super) used: usize,
    /// Full buffers that queued operations still read.
    pub(super) outgrown: Vec<(PinnedHostSlice<u32>, CudaSlice<u32>)>,
}

impl UploadStaging {
    pub(super) fn new(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        numbers: usize,
    ) -> Result<Self, KernelError> {
        let device = stream.alloc_zeros(numbers).map_err(|error| out_of_memory::<u32>(numbers, error))?;
        Ok(Self { host: pinned(context, numbers)?, device, used: 0, outgrown: Vec::new() })
    }
}

#[expect(unsafe_code, reason = "pinned memory comes as it is")]
pub(super) fn pinned<T: DeviceRepr>(
    context: &Arc<CudaContext>,
    elements: usize,
) -> Result<PinnedHostSlice<T>, KernelError> {
    // SAFETY: `T` is a plain number, of which every bit pattern is one.
    unsafe { context.alloc_pinned_with_flags(elements.max(1), 0) }
        .map_err(|error| out_of_memory::<T>(elements, error))
}
