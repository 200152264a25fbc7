//! The caches of sessions, and the operations on them.

use std::collections::HashMap;
use std::time::Duration;

use cosec_proto::sampling::{DrawPurpose, SamplingSeed};
use cosec_proto::wire::worker::{self, step_request, step_response};
use cosec_proto::{ErrorCode, row_runs};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::model::MockModel;
use super::views::{failure, law, view, warp};

/// A worker without its socket: a model, and the cache of every session.
#[derive(Debug)]
pub struct MockEngine {
    pub(super) model: MockModel,
    sessions: Mutex<HashMap<Vec<u8>, Cache>>,
}

#[derive(Debug)]
struct Cache {
    tokens: Vec<u32>,
    /// When something was last fed.
    last_fed: Instant,
    /// Whether the row behind the last token is kept.
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
        self.sessions.lock().contains_key(session)
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
    pub fn perform(&self, request: worker::StepRequest) -> step_response::Outcome {
        let performed = match request.operation {
            Some(step_request::Operation::Extend(extend)) => self.extend(&extend),
            Some(step_request::Operation::Draft(draft)) => self.draft(&draft),
            Some(step_request::Operation::Release(release)) => {
                self.sessions.lock().remove(&release.session);
                Ok(step_response::Outcome::Released(worker::Released {}))
            }
            Some(step_request::Operation::Cancel(_)) | None => {
                Err(failure(ErrorCode::InvalidArgument, "no operation"))
            }
        };
        performed.unwrap_or_else(|outcome| outcome)
    }

    /// An operation that is withdrawn before its second forward pass: what it fed in the first stays.
    pub fn begin(&self, request: worker::StepRequest) {
        match request.operation {
            Some(step_request::Operation::Draft(draft)) => {
                let _ = self.feed(&draft.session, draft.at, &draft.tokens, draft.tokens.is_empty());
            }
            Some(step_request::Operation::Release(release)) => {
                self.sessions.lock().remove(&release.session);
            }
            _ => {}
        }
    }

    /// Truncates and feeds; returns the history afterwards.
    fn feed(
        &self,
        session: &[u8],
        at: u32,
        tokens: &[u32],
        reads_kept: bool,
    ) -> Result<Vec<u32>, step_response::Outcome> {
        if tokens.iter().any(|&token| token >= self.model.vocabulary) {
            return Err(failure(ErrorCode::InvalidArgument, "a token id is out of range"));
        }
        if tokens.len() > self.model.max_operation_tokens as usize {
            return Err(failure(ErrorCode::InvalidArgument, "too many tokens"));
        }
        if at as usize + tokens.len() > self.model.context_tokens as usize {
            return Err(failure(ErrorCode::ContextLengthExceeded, "too long"));
        }
        let need = |have: usize| step_response::Outcome::NeedPrefix(worker::NeedPrefix { have: have as u32 });
        let mut sessions = self.sessions.lock();
        let at = at as usize;
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
        let cache = sessions.entry(session.to_vec()).or_insert_with(new);
        cache.last_fed = now;
        cache.tokens.truncate(at);
        cache.tokens.extend_from_slice(tokens);
        cache.kept = kept || !tokens.is_empty();
        Ok(cache.tokens.clone())
    }

    fn extend(&self, extend: &worker::Extend) -> Result<step_response::Outcome, step_response::Outcome> {
        let reads_kept = extend.rows.iter().any(|row| row.offset == 0);
        if extend.rows.iter().any(|row| row.offset as usize > extend.tokens.len()) {
            return Err(failure(ErrorCode::InvalidArgument, "offset behind the tokens"));
        }
        let history = self.feed(&extend.session, extend.at, &extend.tokens, reads_kept)?;
        let mut rows = Vec::new();
        let (asks, lengths) = row_runs::split_requests(extend.rows.clone());
        if asks.iter().any(|ask| ask.offset as usize > extend.tokens.len()) {
            return Err(failure(ErrorCode::InvalidArgument, "a run behind the tokens"));
        }
        for ask in &asks {
            let logits = self.model.row(&history[..(extend.at + ask.offset) as usize]);
            rows.push(worker::Row { offset: ask.offset, content: Some(view(ask, &logits)?) });
        }
        let rows = row_runs::join_rows(rows, &lengths);
        Ok(step_response::Outcome::Rows(worker::Rows { length: history.len() as u32, rows }))
    }

    fn draft(&self, draft: &worker::Draft) -> Result<step_response::Outcome, step_response::Outcome> {
        if draft.at as usize + draft.tokens.len() + draft.k as usize > self.model.context_tokens as usize + 1 {
            return Err(failure(ErrorCode::ContextLengthExceeded, "drafts beyond the context"));
        }
        let mut history = self.feed(&draft.session, draft.at, &draft.tokens, draft.tokens.is_empty())?;
        let warp = warp(draft.warp)?;
        let randomness = draft.randomness.map_or(SamplingSeed { seed: 0, sample: 0 }, SamplingSeed::from);
        let (mut ids, mut probabilities, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for offset in 0..draft.k {
            let logits = self.model.row(&history);
            for ask in draft.rows.iter().filter(|ask| ask.offset == offset) {
                rows.push(worker::Row { offset, content: Some(view(ask, &logits)?) });
            }
            let law = law(&logits, &warp)?;
            let id = law.sample(randomness.uniform(DrawPurpose::Draft, history.len() as u32));
            ids.push(id);
            probabilities.push(law.probability(id));
            history.push(id);
        }
        history.pop();
        let length = history.len() as u32;
        if let Some(cache) = self.sessions.lock().get_mut(&draft.session) {
            cache.tokens = history;
        }
        Ok(step_response::Outcome::Drafted(worker::Drafted { length, ids, probabilities, rows }))
    }
}
