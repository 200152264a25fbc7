//! Memory for weights and the cache.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use super::simd8::StoredFloat;
use crate::kernels::KernelError;

/// Bytes of a huge page, where there are any.
const HUGE_PAGE: usize = 2 << 20;

/// Memory for numbers, in pages of its own.
#[derive(Debug)]
pub(super) struct PagedMemory<T> {
    memory: MmapMut,
    /// Bytes before the first number.
    offset: usize,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Copy> PagedMemory<T> {
    /// `len` times `value`, in huge pages where the system has them, which spares the walks through page tables that
    /// cost a good part of the bandwidth when weights are read from first to last.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub(super) fn filled(len: usize, value: T) -> Result<Self, KernelError> {
        let bytes = len.saturating_mul(size_of::<T>());
        // Huge pages are aligned by address. The bytes before the first are never touched and take no memory.
        let align = if bytes < HUGE_PAGE { align_of::<T>() } else { HUGE_PAGE };
        let mut pages = Self::mapped(len, align)?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE {
            // Without huge pages the weights are read more slowly, and that is all.
            drop(pages.memory.advise_range(memmap2::Advice::HugePage, pages.offset, bytes));
        }
        let first = pages.memory.as_mut_ptr().wrapping_add(pages.offset).cast::<T>();
        for index in 0..len {
            #[expect(unsafe_code, reason = "the map has bytes, which are no numbers before they are written")]
            // SAFETY: `offset + len · size_of::<T>()` bytes are mapped, from an address aligned for `T`.
            unsafe {
                first.add(index).write(value);
            }
        }
        Ok(pages)
    }

    /// Room for `len` numbers from an address that is a multiple of `align`; its bytes are zeros.
    fn mapped(len: usize, align: usize) -> Result<Self, KernelError> {
        let too_many = KernelError::OutOfMemory { elements: len };
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(align));
        let Some(bytes) = bytes else { return Err(too_many) };
        let memory = MmapMut::map_anon(bytes).map_err(|_| too_many)?;
        let offset = memory.as_ptr().align_offset(align);
        Ok(Self { memory, offset, len, numbers: PhantomData })
    }
}

impl<T: StoredFloat> PagedMemory<T> {
    /// `len` zeros. They take no memory before they are written.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub(super) fn zeros(len: usize) -> Result<Self, KernelError> {
        Self::mapped(len, align_of::<T>())
    }
}

impl<T> Deref for PagedMemory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let first = self.memory.as_ptr().wrapping_add(self.offset).cast();
        #[expect(unsafe_code, reason = "the map has bytes")]
        // SAFETY: there are `len` numbers: those that `filled` wrote, or floats whose bytes are zeros.
        unsafe {
            std::slice::from_raw_parts(first, self.len)
        }
    }
}

impl<T> DerefMut for PagedMemory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let first = self.memory.as_mut_ptr().wrapping_add(self.offset).cast();
        #[expect(unsafe_code, reason = "the map has bytes")]
        // SAFETY: as above, and the map is this value's own.
        unsafe {
            std::slice::from_raw_parts_mut(first, self.len)
        }
    }
}
