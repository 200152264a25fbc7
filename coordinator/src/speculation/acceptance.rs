//! How many of the expert's draft tokens stand.

use cosec_proto::MovingAverage;

/// The expert's acceptance rate: the share of its proposals that were the token decided.
#[derive(Clone, Copy, Debug)]
pub struct AcceptanceRate(MovingAverage);

impl AcceptanceRate {
    /// Assumed of a model about which nothing is known, as if a few proposals had told.
    const PRIOR: (f64, f64) = (0.75, 4.0);

    /// Proposals that the rate is averaged over.
    const MEMORY: f64 = 64.0;

    /// A rate for tests, which nothing moves.
    #[cfg(test)]
    pub(super) const fn known(rate: f64) -> Self {
        Self(MovingAverage::over(f64::INFINITY).with_prior(rate, f64::INFINITY))
    }

    /// Adds the proposals of a block up to the first that was not the token decided, of which so many were.
    pub fn add(&mut self, proposals: u32, stood: u32) {
        (0..proposals).for_each(|proposal| self.0.add(f64::from(u8::from(proposal < stood))));
    }

    /// Tokens that a round of `num_draft_tokens` is expected to decide: those before the first rejection and the one in
    /// its place. There is no token after the drafts.
    #[must_use]
    pub fn expected_tokens(&self, num_draft_tokens: u32) -> f64 {
        let rate = self.0.mean().unwrap_or(Self::PRIOR.0);
        std::iter::successors(Some(1.0), |power| Some(power * rate)).take(num_draft_tokens as usize).sum()
    }
}

impl Default for AcceptanceRate {
    fn default() -> Self {
        Self(MovingAverage::over(Self::MEMORY).with_prior(Self::PRIOR.0, Self::PRIOR.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_tokens_are_the_closed_form_of_the_rate_seen() {
        for (num_draft_tokens, stood) in [(1, 3), (4, 8), (16, 9)] {
            let mut acceptance = AcceptanceRate::default();
            (0..200).for_each(|_| acceptance.add(10, stood));
            let rate = acceptance.0.mean().unwrap_or_default();
            assert!((rate - f64::from(stood) / 10.0).abs() < 0.08, "{rate}");
            let closed = (1.0 - rate.powi(num_draft_tokens)) / (1.0 - rate);
            let expected = acceptance.expected_tokens(num_draft_tokens as u32);
            assert!((expected - closed).abs() < 1e-9, "{expected}, not {closed}");
        }
    }
}
