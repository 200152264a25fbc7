//! Why a device could not do what it was told.

/// Why a device could not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Not so much memory.
    #[error("out of memory: {elements} elements of 4 bytes are wanted")]
    OutOfMemory {
        /// What was wanted.
        elements: usize,
    },
    /// The device, or a tensor that was to go there.
    #[error("device: {0}")]
    Device(String),
}

/// What went wrong, for a sentence that names the device itself.
impl From<KernelError> for String {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Device(problem) => problem,
            error @ KernelError::OutOfMemory { .. } => error.to_string(),
        }
    }
}
