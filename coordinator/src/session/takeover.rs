//! Takes over what another coordinator decoded: the tokens that a client has are asked of the workers that hold them,
//! and the session goes on behind them.
//!
//! Nothing is taken from the other coordinator, should it still be there: the tokens are read, and the new session
//! shares the cached blocks of the old one. So an id that is old or used twice harms nobody.

use std::time::Duration;

use cosec_proto::WorkerRole;
use futures::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::plan::DecodePlan;
use crate::request::TokenizedRequest;
use crate::worker_pool::placement::prefix_hash;
use crate::worker_pool::{RecallRequest, WorkerPool};

/// How long workers are waited for. One that does not answer costs a prefill, or at worst decoding anew.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tokens that need not be decoded again.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    /// All that the client has, none if no worker knows them.
    pub(super) tokens: Vec<u32>,
    /// Addresses of the workers that have them in their cache, by role.
    pub(super) holders: [Option<String>; 3],
}

/// Asks the workers for the tokens that the client has; `None` where it has none.
pub(super) async fn take_over(pool: &WorkerPool, request: &TokenizedRequest, plan: &DecodePlan) -> Option<TakenOver> {
    let received = request.received?;
    let mut taken = TakenOver::default();
    if received.before_last() == 0 {
        taken.tokens = received.completed(Vec::new()).unwrap_or_default();
        return Some(taken);
    }
    let roles: Vec<WorkerRole> = WorkerRole::ALL.into_iter().filter(|&role| plan.reads(role)).collect();
    let at = u32::try_from(request.prompt.len()).ok()?;
    let asked = RecallRequest {
        sequence: request.sequence,
        prefix: prefix_hash(&request.prompt, request.tenant.id),
        at,
        count: received.before_last(),
    };
    let mut answers = pool.recall(&request.model, &roles, asked);
    let until = Instant::now() + PATIENCE;
    while roles.iter().any(|role| taken.holders[role.index()].is_none())
        && let Ok(Some(answer)) = timeout_at(until, answers.next()).await
    {
        if let Some(tokens) = received.completed(answer.tokens) {
            taken.tokens = tokens;
            taken.holders[answer.role.index()].get_or_insert(answer.address);
        }
    }
    Some(taken)
}
