//! Why an operation on a device failed.

/// Why an operation on a device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum KernelError {
    #[error("out of memory: {elements} elements of 4 bytes are wanted")]
    OutOfMemory { elements: usize },
    #[error("device: {0}")]
    Device(String),
}

/// The problem alone, for a message that names the device itself.
impl From<KernelError> for String {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Device(problem) => problem,
            error @ KernelError::OutOfMemory { .. } => error.to_string(),
        }
    }
}
