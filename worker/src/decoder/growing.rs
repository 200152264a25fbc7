//! A buffer that grows on its own.

use crate::kernels::{KernelError, Kernels};

/// As large as it ever had to be.
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

    /// The buffer, with room for `elements`; what it held is lost when it grows.
    pub(super) fn reserve(&mut self, kernels: &K, elements: usize) -> Result<&mut K::Buffer, KernelError> {
        if elements > self.elements {
            self.buffer = kernels.buffer(elements)?;
            self.elements = elements;
        }
        Ok(&mut self.buffer)
    }
}
