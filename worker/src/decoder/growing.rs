//! A buffer that grows as needed.

use crate::kernels::{KernelError, Kernels};

/// Grown to the largest size so far.
pub(super) struct GrowingBuffer<K: Kernels> {
    buffer: K::Buffer,
    elements: usize,
}

impl<K: Kernels> GrowingBuffer<K> {
    pub(super) fn new(kernels: &K) -> Result<Self, KernelError> {
        Ok(Self { buffer: kernels.buffer(0)?, elements: 0 })
    }

    /// The buffer as it is.
    pub(super) fn buffer(&self) -> &K::Buffer {
        &self.buffer
    }

    /// The buffer, with room for `elements`. Growing discards its content.
    pub(super) fn reserve(&mut self, kernels: &K, elements: usize) -> Result<&mut K::Buffer, KernelError> {
        if elements > self.elements {
            self.buffer = kernels.buffer(elements)?;
            self.elements = elements;
        }
        Ok(&mut self.buffer)
    }
}
