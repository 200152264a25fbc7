//! Asks workers for the tokens of a sequence that another coordinator decoded.

use std::cmp::Reverse;
use std::pin::Pin;

use cosec_proto::{Operation, OperationOutcome, SequenceName, WorkerRole};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};

use super::WorkerPool;
use super::placement::weight;
use super::readiness::ReadyWorker;

/// Most workers of a role that are asked: those that sessions with the prefix go to first.
const MOST_ASKED: usize = 16;

/// Which tokens of which sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecallRequest {
    pub(crate) sequence: SequenceName,
    /// Names the beginning of its prompt.
    pub(crate) prefix: u64,
    /// Position of the first token.
    pub(crate) at: u32,
    /// At least 1.
    pub(crate) count: u32,
}

/// Tokens that a worker knows.
#[derive(Debug)]
pub(crate) struct RecalledTokens {
    /// Of the worker.
    pub(crate) role: WorkerRole,
    /// Of the worker.
    pub(crate) address: String,
    /// At least one.
    pub(crate) tokens: Vec<u32>,
}

impl WorkerPool {
    /// Asks the workers that new sessions go to for tokens. Those that know some answer, in any order.
    pub(crate) fn recall(
        &self,
        model: &str,
        roles: &[WorkerRole],
        request: RecallRequest,
    ) -> Pin<Box<dyn Stream<Item = RecalledTokens> + Send>> {
        let RecallRequest { sequence, prefix, at, count } = request;
        let (operation, deadline) = (Operation::recall(sequence, at, count), self.step_deadline());
        let asked = FuturesUnordered::new();
        for &role in roles {
            let mut ready = self.readiness.elected_workers(model, role).unwrap_or_default();
            ready.sort_by_key(|ready| Reverse(weight(prefix, &ready.worker.member.address)));
            for ReadyWorker { worker, .. } in ready.into_iter().take(MOST_ASKED) {
                let operation = operation.clone();
                asked.push(async move {
                    let (reply, address) = (worker.call(&operation, "", deadline).await, &worker.member.address);
                    match reply.map(|reply| reply.outcome) {
                        Ok(OperationOutcome::Recalled(tokens)) if !tokens.is_empty() => {
                            Some(RecalledTokens { role, address: address.clone(), tokens })
                        }
                        Ok(_) => None,
                        Err(error) => {
                            tracing::debug!(address, %error, "tokens not recalled");
                            None
                        }
                    }
                });
            }
        }
        Box::pin(asked.filter_map(std::future::ready))
    }
}
