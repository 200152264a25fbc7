//! What logits travel as from a worker.

/// What logits travel as. All give the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogitsTransport {
    /// The least that the request needs.
    #[default]
    Auto,
    /// The worker looks up the proposal's probability.
    Gather,
    /// The ids that survive the sampling parameters.
    Nucleus,
    /// The worker draws.
    Sample,
    /// All logits.
    Full,
}

impl LogitsTransport {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Gather, Self::Nucleus, Self::Sample, Self::Full];

    /// Name in requests and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gather => "gather",
            Self::Nucleus => "nucleus",
            Self::Sample => "sample",
            Self::Full => "full",
        }
    }
}
