//! Memory of a GPU, and copies between it and the host.

use std::ops::Range;

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result};

use super::GpuDevice;
use crate::kernels::KernelError;
use crate::kernels::cuda::driver::{DeviceAddress, device, out_of_memory};
use crate::kernels::cuda::staging::{UploadStaging, pinned};

impl GpuDevice {
    /// Uninitialised memory.
    #[expect(unsafe_code, reason = "memory that is written before it is read")]
    pub(in crate::kernels::cuda) fn allocate<T: DeviceRepr>(
        &self,
        elements: usize,
    ) -> Result<CudaSlice<T>, KernelError> {
        // SAFETY: `T` is a plain number, of which every bit pattern is one.
        unsafe { self.stream.alloc(elements.max(1)) }.map_err(|error| out_of_memory::<T>(elements, error))
    }

    /// Memory of zeros.
    pub(in crate::kernels::cuda) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        elements: usize,
    ) -> Result<CudaSlice<T>, KernelError> {
        self.stream.alloc_zeros(elements.max(1)).map_err(|error| out_of_memory::<T>(elements, error))
    }

    /// Copies `values` to the GPU and waits.
    pub(in crate::kernels::cuda) fn copy<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, KernelError> {
        let mut slice = self.allocate(values.len())?;
        if !values.is_empty() {
            self.stream.memcpy_htod(values, &mut slice).map_err(device)?;
            self.stream.synchronize().map_err(device)?;
        }
        Ok(slice)
    }

    /// Address of `slice`, which must live until the operations that use it are queued.
    pub(in crate::kernels::cuda) fn address<T>(&self, slice: &CudaSlice<T>) -> DeviceAddress {
        slice.device_ptr(&self.stream).0
    }

    /// Queues an upload of `numbers`, valid until the next wait.
    pub(in crate::kernels::cuda) fn upload(&self, numbers: &[u32]) -> Result<DeviceAddress, KernelError> {
        let mut uploads = self.uploads.borrow_mut();
        let at = self.stage(&mut uploads, numbers)?;
        let to = self.address(&uploads.device) + 4 * at as u64;
        self.copy_staged(&uploads, at..at + numbers.len(), to)?;
        Ok(to)
    }

    /// Queues a copy of `values` to the beginning of `to`.
    pub(in crate::kernels::cuda) fn write(&self, values: &[f32], to: &CudaSlice<f32>) -> Result<(), KernelError> {
        let mut uploads = self.uploads.borrow_mut();
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let at = self.stage(&mut uploads, &bits)?;
        self.copy_staged(&uploads, at..at + values.len(), self.address(to))
    }

    /// Appends `numbers` to the staging buffer and returns their offset.
    fn stage(&self, uploads: &mut UploadStaging, numbers: &[u32]) -> Result<usize, KernelError> {
        // Aligned to 16 bytes for fast copies on the GPU.
        let at = uploads.used.next_multiple_of(4);
        let (at, end) = match at + numbers.len() {
            end if end <= uploads.host.len() => (at, end),
            end => {
                let larger = UploadStaging::new(&self.context, &self.stream, (2 * end).next_power_of_two())?;
                let UploadStaging { host, device, mut outgrown, .. } = std::mem::replace(uploads, larger);
                outgrown.push((host, device));
                uploads.outgrown = outgrown;
                (0, numbers.len())
            }
        };
        uploads.host.as_mut_slice().map_err(device)?[at..end].copy_from_slice(numbers);
        uploads.used = end;
        Ok(at)
    }

    #[expect(unsafe_code, reason = "an asynchronous copy")]
    fn copy_staged(
        &self,
        uploads: &UploadStaging,
        range: Range<usize>,
        to: DeviceAddress,
    ) -> Result<(), KernelError> {
        let from = &uploads.host.as_slice().map_err(device)?[range];
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the host's part is pinned and not written again before the stream has been waited for; the device's
        // part belongs to a slice of at least that length.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(device)
    }

    /// Queues a copy of `bytes` within the GPU.
    #[expect(unsafe_code, reason = "an asynchronous copy")]
    pub(in crate::kernels::cuda) fn copy_on_gpu(
        &self,
        from: DeviceAddress,
        to: DeviceAddress,
        bytes: usize,
    ) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the callers in this module pass addresses of memory of at least that length, which is freed in the
        // stream's order.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(device)
    }

    /// Waits for all queued work and copies the beginning of `from` to `values`.
    ///
    /// # Errors
    /// The first failure since the last wait.
    pub(in crate::kernels::cuda) fn read(
        &self,
        from: &CudaSlice<f32>,
        values: &mut [f32],
    ) -> Result<(), KernelError> {
        if values.len() > from.len() {
            return Err(KernelError::Device(format!("{} numbers are read of {}", values.len(), from.len())));
        }
        let mut values = values.iter_mut();
        self.fetch_with(&[(self.address(from), values.len())], |words| {
            values.by_ref().zip(words).for_each(|(value, &bits)| *value = f32::from_bits(bits));
        })
    }

    /// Waits for all queued work and appends to `words` the 32-bit numbers at `places`, given as address and count.
    ///
    /// # Errors
    /// The first failure since the last wait.
    pub(in crate::kernels::cuda) fn fetch(
        &self,
        places: &[(DeviceAddress, usize)],
        words: &mut Vec<u32>,
    ) -> Result<(), KernelError> {
        self.fetch_with(places, |fetched| words.extend_from_slice(fetched))
    }

    fn fetch_with(&self, places: &[(DeviceAddress, usize)], take: impl FnOnce(&[u32])) -> Result<(), KernelError> {
        let len = places.iter().map(|(_, len)| len).sum();
        let mut downloads = self.downloads.borrow_mut();
        let pinned = match downloads.take() {
            Some(pinned) if pinned.len() >= len => pinned,
            _ => pinned(&self.context, len.next_power_of_two())?,
        };
        let pinned = downloads.insert(pinned);
        let copied = self.copy_back(places, pinned);
        let waited = self.stream.synchronize().map_err(device);
        let mut uploads = self.uploads.borrow_mut();
        uploads.used = 0;
        uploads.outgrown.clear();
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        copied.and(waited)?;
        if let Some(profile) = &mut *self.profile.borrow_mut() {
            profile.add_up()?;
        }
        take(&pinned.as_slice().map_err(device)?[..len]);
        Ok(())
    }

    #[expect(unsafe_code, reason = "an asynchronous copy")]
    fn copy_back(&self, places: &[(DeviceAddress, usize)], to: &mut PinnedHostSlice<u32>) -> Result<(), KernelError> {
        let mut to = to.as_mut_slice().map_err(device)?;
        self.context.bind_to_thread().map_err(device)?;
        for &(from, len) in places.iter().filter(|&&(_, len)| len > 0) {
            let (part, rest) = to.split_at_mut(len);
            // SAFETY: the callers in this module say how long their memory is, and the caller here waits for the stream
            // before it looks at the host's.
            unsafe { result::memcpy_dtoh_async(part, from, self.stream.cu_stream()) }.map_err(device)?;
            to = rest;
        }
        Ok(())
    }
}
