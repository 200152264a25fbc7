//! A batch of tokens.

use crate::kernels::TokenPlace;

/// The tokens of several sequences, concatenated.
#[derive(Clone, Debug, Default)]
pub struct DecoderBatch<'a> {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row.
    pub places: Vec<TokenPlace<'a>>,
    /// Rows whose logits are wanted.
    pub wanted: Vec<usize>,
    /// Rows by the adapter that they chose.
    pub adapted: Vec<AdaptedRows>,
    /// Indices into `wanted` by the adapter that their rows chose.
    pub adapted_wanted: Vec<AdaptedRows>,
}

impl DecoderBatch<'_> {
    /// An empty batch with the same memory.
    #[must_use]
    pub fn reused<'a>(self) -> DecoderBatch<'a> {
        let Self { mut tokens, places, mut wanted, mut adapted, mut adapted_wanted } = self;
        tokens.clear();
        wanted.clear();
        adapted.clear();
        adapted_wanted.clear();
        // Collects in place.
        let places = places.into_iter().map_while(|_| None).collect();
        DecoderBatch { tokens, places, wanted, adapted, adapted_wanted }
    }

    pub(super) fn rows(&self) -> BatchRows<'_> {
        BatchRows { count: self.tokens.len(), adapted: &self.adapted }
    }

    pub(super) fn wanted_rows(&self) -> BatchRows<'_> {
        BatchRows { count: self.wanted.len(), adapted: &self.adapted_wanted }
    }
}

/// The rows that a layer is applied to.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchRows<'a> {
    pub(super) count: usize,
    pub(super) adapted: &'a [AdaptedRows],
}

/// Rows that one adapter applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdaptedRows {
    /// Index of the adapter.
    pub adapter: usize,
    /// Ascending.
    pub rows: Vec<usize>,
}
