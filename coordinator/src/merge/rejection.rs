//! Modified rejection sampling (Leviathan et al. 2023, Chen et al. 2023): a draw from any distribution that takes the
//! expert's proposal as often as the distribution allows.
//!
//! Draft x ~ q; keep it with probability `min(1, m(x) / q(x))`; else draw from `max(0, m - q)`, normalised. The draw
//! follows m whatever q is. All three numbers belong to the position, and no token beyond the drafts is ever taken, so
//! that the same seed gives the same tokens however many are drafted at a time.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::decision::{RejectedProposal, Verdict};
use super::evidence::{MergeError, PositionDistributions};
use cosec_proto::sampling::PositionRandom;

/// Draws from `merged`.
///
/// # Errors
/// Unless the distributions of base and expert are known.
pub(super) fn decide(
    merged: &Distribution,
    models: &PositionDistributions,
    draws: &PositionRandom,
) -> Result<Verdict, MergeError> {
    let (base, expert) = (models.fallback_distribution()?, models.expert_distribution()?);
    let proposal = models.proposal(draws.draft())?;
    let decision =
        |id, rejected| Verdict { id, p: Some(base.probability(id)), q: Some(expert.probability(id)), rejected };
    if draws.acceptance() * proposal.probability < merged.probability(proposal.id) {
        return Ok(decision(proposal.id, None));
    }
    match blend((merged, |_, mass| mass), (expert, |_, q| -q)) {
        Ok(residual) => {
            let p = base.probability(proposal.id);
            let rejected = RejectedProposal { id: proposal.id, p, q: proposal.probability };
            Ok(decision(residual.sample(draws.fallback()), Some(rejected)))
        }
        // Both distributions are the same but for rounding.
        Err(_) => Ok(decision(proposal.id, None)),
    }
}
