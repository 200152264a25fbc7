//! One decision of the rule, on whichever thread suits it.

use cosec_proto::ErrorCode;
use cosec_proto::sampling::PositionRandom;

use super::event::SessionInput;
use crate::merge::{MergeError, ModelEvidence, PositionDistributions, SelectedRule, TokenQuestions, next_token};
use crate::request::{SessionError, TokenEvent};

/// Logits of at most so many tokens are merged on the spot.
const FEW_LOGITS: usize = 1024;

/// Evidence of one position with the rule that decides on it.
pub(super) struct MergeJob {
    pub(super) rule: SelectedRule,
    pub(super) models: PositionDistributions,
    pub(super) random: PositionRandom,
    pub(super) asked: TokenQuestions,
}

/// Whether a decision is worth another thread: all logits of a code model take milliseconds, a few less than the way
/// there.
pub(super) fn is_heavy(evidence: &[ModelEvidence; 3]) -> bool {
    evidence.iter().any(|of_role| of_role.logits.as_ref().is_some_and(|logits| logits.len() > FEW_LOGITS))
}

impl MergeJob {
    /// Runs on a thread of its own where that `is_heavy`.
    pub(super) async fn run(self, is_heavy: bool) -> SessionInput {
        if !is_heavy {
            return self.merge();
        }
        let merged = tokio::task::spawn_blocking(|| self.merge()).await;
        merged.unwrap_or_else(|error| {
            SessionInput::MergeFailed(SessionError::new(ErrorCode::Internal, error.to_string()))
        })
    }

    fn merge(self) -> SessionInput {
        match self.decide() {
            Ok(token) => SessionInput::Decided(token),
            Err(MergeError::Missing(missing)) => {
                SessionInput::Missing { missing, evidence: self.models.into_evidence() }
            }
            Err(error @ MergeError::OverAdjusted(_)) => {
                SessionInput::MergeFailed(SessionError::new(ErrorCode::InvalidArgument, error.to_string()))
            }
            Err(error @ (MergeError::Logits(_) | MergeError::Blend(_))) => {
                SessionInput::MergeFailed(SessionError::new(ErrorCode::WorkerFault, error.to_string()))
            }
        }
    }

    fn decide(&self) -> Result<TokenEvent, MergeError> {
        let (decision, score) = next_token(&*self.rule, &self.models, &self.random, self.asked)?;
        Ok(TokenEvent { decision, score })
    }
}
