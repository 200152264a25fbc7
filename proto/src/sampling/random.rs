//! The random numbers of a session: functions of seed, sample, position and purpose.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a random number is for; part of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawPurpose {
    /// The expert's proposal.
    Draft = 0,
    /// The token in place of a rejected proposal.
    Fallback = 1,
    /// Whether a rule that keeps proposals by chance keeps this one.
    Acceptance = 2,
    /// Whether the token is held against the base's own draw where that is done for a sample only.
    Comparison = 3,
}

/// The random numbers of one sample of one request.
///
/// Counter-based (ChaCha with 12 rounds, keyed by the request's seed): there is no state, so any process computes any
/// number, in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingSeed {
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's samples.
    pub sample: u32,
}

/// Keeps these numbers apart from other uses of the same seed; the seed takes the last eight bytes.
const DOMAIN: &[u8; 32] = b"cosec draws, version 1..........";

impl SamplingSeed {
    /// The number in [0, 1) for the token at `position` of the sequence (the prompt counts).
    #[must_use]
    pub fn uniform(&self, purpose: DrawPurpose, position: u32) -> f64 {
        let mut key = *DOMAIN;
        key[24..].copy_from_slice(&self.seed.to_le_bytes());
        let mut numbers = ChaCha12Rng::from_seed(key);
        numbers.set_stream(u64::from(self.sample) << 8 | purpose as u64);
        numbers.set_word_pos(2 * u128::from(position));
        // 53 bits fill the mantissa exactly.
        (numbers.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl From<crate::wire::worker::SamplingSeed> for SamplingSeed {
    fn from(wire: crate::wire::worker::SamplingSeed) -> Self {
        Self { seed: wire.seed, sample: wire.sample }
    }
}

impl From<SamplingSeed> for crate::wire::worker::SamplingSeed {
    fn from(seed: SamplingSeed) -> Self {
        Self { seed: seed.seed, sample: seed.sample }
    }
}

/// The random numbers of the token at one position, by what they are for; computed anew at each call.
#[derive(Clone, Copy, Debug)]
pub struct PositionRandom {
    /// Of the request and its sample.
    pub seed: SamplingSeed,
    /// Of the token in the sequence; the prompt counts.
    pub position: u32,
}

impl PositionRandom {
    /// For the expert's proposal.
    #[must_use]
    pub fn draft(&self) -> f64 {
        self.seed.uniform(DrawPurpose::Draft, self.position)
    }

    /// For the token in place of a rejected proposal.
    #[must_use]
    pub fn fallback(&self) -> f64 {
        self.seed.uniform(DrawPurpose::Fallback, self.position)
    }

    /// For keeping a proposal by chance.
    #[must_use]
    pub fn acceptance(&self) -> f64 {
        self.seed.uniform(DrawPurpose::Acceptance, self.position)
    }

    /// For holding the token against the base's own draw.
    #[must_use]
    pub fn comparison(&self) -> f64 {
        self.seed.uniform(DrawPurpose::Comparison, self.position)
    }
}
