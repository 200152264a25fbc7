//! One operation of a worker, as a session asks for it.

use cosec_proto::sampling::{DrawPurpose, SamplingParams, SamplingSeed};
use cosec_proto::wire::worker;
use cosec_proto::{SessionId, row_runs};

/// Most survivors of a nucleus to ask for: 48 KiB at 12 bytes each, less than any full row of a code model.
pub const NUCLEUS_CAP: u32 = 4096;

/// Feeds `tokens` behind the first `at` tokens of a session and asks for something.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Whose cache.
    pub session: SessionId,
    /// Name of the adapter to apply; empty for none.
    pub adapter: String,
    /// Whose session it is.
    pub tenant: u64,
    /// Names the session's draws.
    pub randomness: SamplingSeed,
    /// Cached tokens that the operation assumes.
    pub at: u32,
    /// To feed.
    pub tokens: Vec<u32>,
    /// To answer.
    pub ask: Ask,
}

/// What an operation is to answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Views of rows; row `offset` is the distribution of the token at position `at + offset`. May be empty.
    Rows(Vec<RowAsk>),
    /// Tokens that the model draws itself.
    Draft {
        /// How many.
        k: u32,
        /// From what.
        warp: SamplingParams,
        /// Views of the rows that they are drawn from; row `offset`, below `k`, is that of the token so numbered.
        rows: Vec<RowAsk>,
    },
    /// Nothing; the session's cache is given back.
    Release,
}

impl Ask {
    /// Tokens that the worker is to draw.
    #[must_use]
    pub fn drafts(&self) -> u32 {
        match self {
            Self::Draft { k, .. } => *k,
            Self::Rows(_) | Self::Release => 0,
        }
    }

    /// What its operation is called in a trace.
    #[must_use]
    pub fn activity(&self) -> &'static str {
        match self {
            Self::Rows(rows) if rows.is_empty() => "prefill",
            Self::Rows(_) => "verify",
            Self::Draft { .. } => "draft",
            Self::Release => "release",
        }
    }
}

/// One view of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowAsk {
    /// See [`Ask::Rows`].
    pub offset: u32,
    /// What to return of it.
    pub view: View,
}

/// What to return of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// Probabilities of these ids.
    Gather {
        /// Under which law.
        warp: SamplingParams,
        /// At least one.
        ids: Vec<u32>,
    },
    /// The most probable survivors of the warp.
    Nucleus {
        /// Under which law.
        warp: SamplingParams,
        /// Most survivors to return.
        cap: u32,
    },
    /// A draw, with the number for `purpose` at the row's position.
    Sample {
        /// From what.
        warp: SamplingParams,
        /// Which number.
        purpose: DrawPurpose,
    },
    /// All raw logits in f32.
    Full,
}

impl Operation {
    /// Gives the session's cache back.
    #[must_use]
    pub fn release(session: SessionId) -> Self {
        let randomness = SamplingSeed { seed: 0, sample: 0 };
        Self { session, adapter: String::new(), tenant: 0, randomness, at: 0, tokens: Vec::new(), ask: Ask::Release }
    }

    /// What travels back, for metrics.
    #[must_use]
    pub fn view_name(&self) -> &'static str {
        match &self.ask {
            Ask::Draft { rows, .. } if rows.is_empty() => "draft",
            Ask::Release => "none",
            Ask::Rows(rows) | Ask::Draft { rows, .. } => match rows.first().map(|row| &row.view) {
                None => "none",
                Some(View::Gather { .. }) => "gather",
                Some(View::Nucleus { .. }) => "nucleus",
                Some(View::Sample { .. }) => "sample",
                Some(View::Full) => "full",
            },
        }
    }

    /// The message; `deadline_ms` counts from its receipt.
    #[must_use]
    pub fn to_wire(&self, op: u64, deadline_ms: u32) -> worker::StepRequest {
        use worker::step_request::Operation as Wire;
        let session = self.session.to_wire();
        let operation = match &self.ask {
            Ask::Rows(rows) => Wire::Extend(worker::Extend {
                session,
                at: self.at,
                tokens: self.tokens.clone(),
                rows: self.wire_rows(rows),
                adapter: self.adapter.clone(),
                tenant: self.tenant,
            }),
            Ask::Draft { k, warp, rows } => Wire::Draft(worker::Draft {
                session,
                at: self.at,
                tokens: self.tokens.clone(),
                k: *k,
                warp: Some((*warp).into()),
                randomness: Some(self.randomness.into()),
                adapter: self.adapter.clone(),
                rows: self.wire_rows(rows),
                tenant: self.tenant,
            }),
            Ask::Release => Wire::Release(worker::Release { session }),
        };
        worker::StepRequest { op, deadline_ms, operation: Some(operation) }
    }

    /// The views as they travel: see [`row_runs`].
    pub(super) fn wire_rows(&self, rows: &[RowAsk]) -> Vec<worker::RowRequest> {
        row_runs::join_requests(rows.iter().map(|row| self.row_request(row)).collect())
    }

    fn row_request(&self, row: &RowAsk) -> worker::RowRequest {
        use worker::row_request::View as Wire;
        let view = match &row.view {
            View::Gather { warp, ids } => {
                Wire::Gather(worker::Gather { warp: Some((*warp).into()), ids: ids.clone(), each: false })
            }
            View::Nucleus { warp, cap } => Wire::Nucleus(worker::Nucleus { warp: Some((*warp).into()), cap: *cap }),
            View::Sample { warp, purpose } => Wire::Sample(worker::Sample {
                warp: Some((*warp).into()),
                u: self.randomness.uniform(*purpose, self.at + row.offset),
            }),
            View::Full => Wire::Full(worker::Full { precision: worker::Precision::F32.into() }),
        };
        worker::RowRequest { offset: row.offset, view: Some(view) }
    }
}
