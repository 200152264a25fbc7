//! The caches of sessions, and the operations on them.

use std::collections::HashMap;
use std::time::Duration;

use cosec_proto::sampling::{DrawPurpose, SamplingParams, SamplingSeed};
use cosec_proto::wire::worker;
use cosec_proto::{
    LogitsRequest, Operation, OperationError, OperationKind, OperationOutcome, ReplyLayout, SessionId, StepCost,
    encode_response,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::model::MockModel;
use super::views::{distribution, view};

/// A worker without its socket: a model, and the cache of every session.
#[derive(Debug)]
pub struct MockEngine {
    pub(super) model: MockModel,
    sessions: Mutex<HashMap<SessionId, Cache>>,
}

#[derive(Debug)]
struct Cache {
    tokens: Vec<u32>,
    /// When something was last fed.
    last_fed: Instant,
    /// Whether the logits after the last token are kept.
    kept: bool,
}

impl MockEngine {
    /// An engine without sessions.
    #[must_use]
    pub fn new(model: MockModel) -> Self {
        Self { model, sessions: Mutex::default() }
    }

    /// Sessions that hold a cache.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Whether a session holds a cache.
    #[must_use]
    pub fn holds(&self, session: &[u8]) -> bool {
        SessionId::from_wire(session).is_ok_and(|session| self.sessions.lock().contains_key(&session))
    }

    /// Forgets all caches.
    pub fn evict(&self) {
        self.sessions.lock().clear();
    }

    /// Drops the caches of sessions that have been idle for `lease`.
    pub fn expire_leases(&self, lease: Duration) {
        self.sessions.lock().retain(|_, cache| cache.last_fed.elapsed() < lease);
    }

    /// Performs one operation.
    #[must_use]
    pub fn perform(&self, request: worker::StepRequest) -> worker::StepResponse {
        let decoded = match request.operation {
            Some(message) => Operation::decode(message, &self.model.limits()),
            None => Err(OperationError::invalid("no operation")),
        };
        let (result, layout) = match decoded {
            Ok((operation, layout)) => (self.run(&operation), layout),
            Err(error) => (Err(error), ReplyLayout::default()),
        };
        encode_response(request.op, result, StepCost::default(), &layout)
    }

    fn run(&self, operation: &Operation) -> Result<OperationOutcome, OperationError> {
        match &operation.kind {
            OperationKind::Extend { logits } => self.extend(operation, logits),
            OperationKind::Draft { k, sampling, seed, logits } => self.draft(operation, *k, sampling, *seed, logits),
            OperationKind::Release => {
                self.sessions.lock().remove(&operation.session);
                Ok(OperationOutcome::Released)
            }
            OperationKind::Recall { count } => {
                let sessions = self.sessions.lock();
                let of_sequence = sessions.iter().filter(|(id, _)| id.sequence() == operation.session.sequence());
                let longest = of_sequence.map(|(_, cache)| cache.tokens.as_slice()).max_by_key(|tokens| tokens.len());
                let tokens = longest.unwrap_or_default().iter().skip(operation.at as usize).take(*count as usize);
                Ok(OperationOutcome::Recalled(tokens.copied().collect()))
            }
        }
    }

    /// An operation that is withdrawn before its second forward pass: what it fed in the first stays.
    pub fn begin(&self, request: worker::StepRequest) {
        let Some(Ok((operation, _))) =
            request.operation.map(|message| Operation::decode(message, &self.model.limits()))
        else {
            return;
        };
        match operation.kind {
            OperationKind::Draft { .. } => drop(self.feed(&operation, operation.tokens.is_empty())),
            OperationKind::Release => drop(self.sessions.lock().remove(&operation.session)),
            OperationKind::Extend { .. } | OperationKind::Recall { .. } => {}
        }
    }

    /// Truncates and feeds; returns the history afterwards.
    fn feed(&self, operation: &Operation, reads_kept: bool) -> Result<Vec<u32>, OperationOutcome> {
        let Operation { session, at, tokens, .. } = operation;
        let need = |have: usize| OperationOutcome::NeedPrefix { have: have as u32 };
        let mut sessions = self.sessions.lock();
        let at = *at as usize;
        let have = sessions.get(session).map_or(0, |cache| cache.tokens.len());
        if have < at {
            return Err(need(have));
        }
        let kept = sessions.get(session).is_some_and(|cache| cache.kept && cache.tokens.len() == at);
        if reads_kept && !kept {
            return Err(need(at.saturating_sub(1)));
        }
        let now = Instant::now();
        let new = || Cache { tokens: Vec::new(), last_fed: now, kept: false };
        let cache = sessions.entry(*session).or_insert_with(new);
        cache.last_fed = now;
        cache.tokens.truncate(at);
        cache.tokens.extend_from_slice(tokens);
        cache.kept = kept || !tokens.is_empty();
        Ok(cache.tokens.clone())
    }

    fn extend(&self, operation: &Operation, logits: &[LogitsRequest]) -> Result<OperationOutcome, OperationError> {
        let history = match self.feed(operation, logits.iter().any(|request| request.offset == 0)) {
            Ok(history) => history,
            Err(need_prefix) => return Ok(need_prefix),
        };
        let result = |request: &LogitsRequest| {
            let after = &history[..(operation.at + request.offset) as usize];
            view(&request.view, &self.model.row(after))
        };
        Ok(OperationOutcome::Extended(logits.iter().map(result).collect::<Result<_, _>>()?))
    }

    fn draft(
        &self,
        operation: &Operation,
        k: u32,
        sampling: &SamplingParams,
        seed: SamplingSeed,
        requests: &[LogitsRequest],
    ) -> Result<OperationOutcome, OperationError> {
        let mut history = match self.feed(operation, operation.tokens.is_empty()) {
            Ok(history) => history,
            Err(need_prefix) => return Ok(need_prefix),
        };
        let (mut tokens, mut results) = (Vec::new(), Vec::new());
        for offset in 0..k {
            let logits = self.model.row(&history);
            for request in requests.iter().filter(|request| request.offset == offset) {
                results.push(view(&request.view, &logits)?);
            }
            let u = seed.uniform(DrawPurpose::Draft, history.len() as u32);
            let token = distribution(&logits, sampling)?.sample_token(u);
            tokens.push(token);
            history.push(token.id);
        }
        history.pop();
        if let Some(cache) = self.sessions.lock().get_mut(&operation.session) {
            cache.tokens = history;
        }
        Ok(OperationOutcome::Drafted { tokens, logits: results })
    }
}
