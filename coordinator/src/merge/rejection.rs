//! Modified rejection sampling (Leviathan et al. 2023, Chen et al. 2023): a draw from any law that takes the expert's
//! proposal as often as the law allows.
//!
//! Draft x ~ q; keep it with probability `min(1, L(x) / q(x))`; else draw from `max(0, L - q)`, normalised. The draw follows
//! L whatever q is. All three numbers belong to the position, and no token beyond the drafts is ever taken, so that the same
//! seed gives the same tokens however many are drafted at a time.

use cosec_proto::sampling::Distribution;

use super::blend::blend;
use super::{Laws, MergeError};
use crate::request::{ChosenBy, Decision, Rejected};
use cosec_proto::sampling::PositionRandom;

/// Draws from `law`.
///
/// # Errors
/// Unless the laws of base and expert are known.
pub(super) fn decide(law: &Distribution, laws: &Laws, draws: &PositionRandom) -> Result<Decision, MergeError> {
    let (base, expert) = (laws.fallback_law()?, laws.expert_law()?);
    let proposal = laws.proposal(draws.draft())?;
    let merged = |id, rejected| Decision {
        id,
        chosen_by: ChosenBy::Merged,
        p: Some(base.probability(id)),
        q: Some(expert.probability(id)),
        rejected,
    };
    if draws.acceptance() * proposal.probability < law.probability(proposal.id) {
        return Ok(merged(proposal.id, None));
    }
    match blend((law, |_, mass| mass), (expert, |_, q| -q)) {
        Ok(residual) => {
            let rejected = Rejected { id: proposal.id, p: base.probability(proposal.id), q: proposal.probability };
            Ok(merged(residual.sample(draws.fallback()), Some(rejected)))
        }
        // Both laws are the same but for rounding.
        Err(_) => Ok(merged(proposal.id, None)),
    }
}
