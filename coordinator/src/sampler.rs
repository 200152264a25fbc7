//! The random numbers of one position, named by what they are for.

use cosec_proto::draw::{Purpose, Randomness};

/// Numbers in [0, 1) for the token at one position; computed anew at each call, never stored.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Names the sequence of draws.
    pub randomness: Randomness,
    /// Of the token, the prompt counted.
    pub position: u32,
}

impl Draws {
    /// For the expert's proposal.
    #[must_use]
    pub fn draft(&self) -> f64 {
        self.randomness.uniform(Purpose::Draft, self.position)
    }

    /// For the token in place of a rejected proposal.
    #[must_use]
    pub fn fallback(&self) -> f64 {
        self.randomness.uniform(Purpose::Fallback, self.position)
    }

    /// For keeping a proposal by chance.
    #[must_use]
    pub fn acceptance(&self) -> f64 {
        self.randomness.uniform(Purpose::Acceptance, self.position)
    }
}
