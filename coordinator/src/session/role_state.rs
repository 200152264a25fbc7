//! What a session knows of the worker of one role, which performs one operation at a time.

use cosec_proto::sampling::{SamplingParams, SamplingSeed};
use cosec_proto::{LogitsRequest, LogitsResult, LogitsView, OperationKind, WorkerRole};

use super::event::{LocateCause, RoleOperation, SessionAction};
use super::recovery::FailureCount;
use crate::merge::{TokenScore, score};

/// Prompt tokens scored at once: a worker holds the logits of all of them.
const SCORED_TOKENS: usize = 64;

/// What a worker is to find out next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NextOperation {
    /// Scores of the prompt's tokens, with so many alternatives each.
    Score { alternatives: u32 },
    /// Nothing yet; the cache is to hold so many tokens.
    Feed { until: usize },
    /// Views of the logits of the positions from `from` on; without any it only feeds.
    Read { from: usize, views: Vec<Vec<LogitsView>> },
    /// Tokens after the last one, drawn by the model, and views of the logits of each.
    Draft {
        k: u32,
        sampling: SamplingParams,
        seed: SamplingSeed,
        views: Vec<LogitsView>,
        /// Whether the tokens before it may yet be rejected.
        is_ahead: bool,
    },
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct InFlight {
    ticket: u64,
    pub(super) at: usize,
    /// Tokens of the sequence that are cached afterwards.
    until: usize,
    /// Logits of the positions below are known afterwards.
    known: usize,
    /// In the order of the views asked for, with their positions.
    pub(super) asked: Vec<(usize, LogitsView)>,
    /// Whether the model draws.
    pub(super) is_draft: bool,
}

/// A role of the session.
#[derive(Debug)]
pub(super) struct RoleState {
    role: WorkerRole,
    placement: Placement,
    /// Of the role's model; 0 before its first worker was found.
    vocabulary: u32,
    /// Logits of the positions below are known, or no longer of interest.
    known: usize,
    next_ticket: u64,
    failures: FailureCount,
}

/// Where a role's operations are performed.
#[derive(Debug)]
enum Placement {
    /// No worker is found yet, or the last one failed.
    Unplaced,
    /// On a worker.
    Placed {
        max_operation_tokens: usize,
        /// Tokens of the sequence that the worker is believed to have in its cache.
        cached: usize,
        in_flight: Option<InFlight>,
    },
}

impl RoleState {
    pub(super) fn new(role: WorkerRole) -> Self {
        let failures = FailureCount::default();
        Self { role, placement: Placement::Unplaced, vocabulary: 0, known: 0, next_ticket: 0, failures }
    }

    pub(super) fn is_placed(&self) -> bool {
        matches!(self.placement, Placement::Placed { .. })
    }

    /// Whether an operation can be sent.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.placement, Placement::Placed { in_flight: None, .. })
    }

    pub(super) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Tokens of the sequence in the worker's cache.
    pub(super) fn cached(&self) -> usize {
        match self.placement {
            Placement::Unplaced => 0,
            Placement::Placed { cached, .. } => cached,
        }
    }

    pub(super) fn known(&self) -> usize {
        self.known
    }

    /// Logits of the positions below are known or asked for.
    pub(super) fn asked(&self) -> usize {
        match &self.placement {
            Placement::Placed { in_flight: Some(in_flight), .. } => in_flight.known,
            Placement::Placed { in_flight: None, .. } | Placement::Unplaced => self.known,
        }
    }

    /// A worker was found.
    pub(super) fn place(&mut self, max_operation_tokens: u32, vocabulary: u32) {
        let max_operation_tokens = max_operation_tokens.max(1) as usize;
        self.placement = Placement::Placed { max_operation_tokens, cached: 0, in_flight: None };
        self.vocabulary = vocabulary;
    }

    /// Composes the next operation, or as much of it as the worker takes at once. `None` while another one is under way
    /// or no worker is there.
    pub(super) fn send(&mut self, tokens: &[u32], next: NextOperation) -> Option<SessionAction> {
        let Placement::Placed { max_operation_tokens, cached, in_flight: in_flight @ None } = &mut self.placement
        else {
            return None;
        };
        if let NextOperation::Read { from, .. } = next
            && *cached > from
        {
            // The worker keeps those logits no longer: the token before them is fed once more.
            *cached = from - 1;
        }
        let (at, reach) = (*cached, *cached + *max_operation_tokens);
        let mut known = self.known;
        let is_draft = matches!(next, NextOperation::Draft { .. }) && tokens.len() <= reach;
        let is_ahead = is_draft && matches!(next, NextOperation::Draft { is_ahead: true, .. });
        let (until, kind) = match next {
            NextOperation::Score { alternatives } => {
                // The last token's logits score no prompt token.
                let until = (at + (*max_operation_tokens).min(SCORED_TOKENS)).min(tokens.len() - 1);
                let logits = score_views(&tokens[at + 1..=until], alternatives);
                (until, OperationKind::Extend { logits })
            }
            NextOperation::Feed { until } => (until.min(reach), OperationKind::Extend { logits: Vec::new() }),
            NextOperation::Read { from, views } => {
                let until = (from + views.len() - 1).min(reach);
                if until >= from {
                    known = known.max(until + 1);
                }
                let positions = (from..=until).zip(views);
                let mut logits: Vec<_> =
                    positions.flat_map(|(position, views)| requests(position - at, views)).collect();
                // Views of one kind follow each other: they travel as runs.
                logits.sort_by_key(|request| !matches!(request.view, LogitsView::Gather { .. }));
                (until, OperationKind::Extend { logits })
            }
            NextOperation::Draft { k, sampling, seed, views, .. } if is_draft => {
                let logits = (0..k as usize).flat_map(|offset| requests(offset, views.clone())).collect();
                (tokens.len(), OperationKind::Draft { k, sampling, seed, logits })
            }
            NextOperation::Draft { .. } => (reach, OperationKind::Extend { logits: Vec::new() }),
        };
        let first = if is_draft { until } else { at };
        let asked = |request: &LogitsRequest| (first + request.offset as usize, request.view.clone());
        let asked = kind.logits().iter().map(asked).collect();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        *in_flight = Some(InFlight { ticket, at, until, known, asked, is_draft });
        let tokens = tokens[at..until].to_vec();
        Some(SessionAction::Send(RoleOperation { role: self.role, ticket, at: at as u32, tokens, kind, is_ahead }))
    }

    /// Takes the operation with this ticket; `None` where its answer is no longer of interest.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<InFlight> {
        match &mut self.placement {
            Placement::Unplaced => None,
            Placement::Placed { in_flight, .. } => in_flight.take_if(|in_flight| in_flight.ticket == ticket),
        }
    }

    /// The operation succeeded and fed `drafted` tokens after those given.
    pub(super) fn fed(&mut self, operation: &InFlight, drafted: usize) {
        self.set_cached(|_| operation.until + drafted);
        self.known = self.known.max(operation.known);
        self.failures = FailureCount::default();
    }

    /// From `position` on the sequence has changed. Withdraws an operation that knew the old tokens.
    pub(super) fn roll_back(&mut self, position: usize) -> Option<SessionAction> {
        self.known = self.known.min(position + 1);
        let Placement::Placed { cached, in_flight, .. } = &mut self.placement else { return None };
        let is_concerned = |of: &mut InFlight| of.is_draft || of.until > position || !of.asked.is_empty();
        let withdrawn = in_flight.take_if(is_concerned);
        // Whatever a withdrawn operation has done, what it began with is still cached.
        *cached = withdrawn.as_ref().map_or(*cached, |withdrawn| withdrawn.at).min(position);
        withdrawn.map(|withdrawn| SessionAction::Withdraw { role: self.role, ticket: withdrawn.ticket })
    }

    /// Nothing is known any more of the logits from `position` on.
    pub(super) fn forget(&mut self, position: usize) {
        self.known = self.known.min(position);
    }

    /// The worker has less than was believed. Returns false when that happened too often.
    pub(super) fn rewind(&mut self, have: u32) -> bool {
        self.set_cached(|cached| cached.min(have as usize));
        self.failures.rewound()
    }

    /// The worker failed. Returns the failures in a row, `None` when they are too many.
    pub(super) fn failed(&mut self, cause: LocateCause) -> Option<u32> {
        self.unplace();
        self.failures.failed(cause)
    }

    /// The worker is given back, with what it has cached.
    pub(super) fn unplace(&mut self) {
        self.placement = Placement::Unplaced;
    }

    fn set_cached(&mut self, new: impl FnOnce(usize) -> usize) {
        if let Placement::Placed { cached, .. } = &mut self.placement {
            *cached = new(*cached);
        }
    }
}

fn requests(offset: usize, views: Vec<LogitsView>) -> impl Iterator<Item = LogitsRequest> {
    views.into_iter().map(move |view| LogitsRequest { offset: offset as u32, view })
}

/// The views that score `next`: offset i (from 1) is the distribution of `next[i - 1]`.
fn score_views(next: &[u32], alternatives: u32) -> Vec<LogitsRequest> {
    let mut requests = Vec::new();
    let sampling = SamplingParams::RAW;
    for (offset, &id) in (1u32..).zip(next) {
        requests.push(LogitsRequest { offset, view: LogitsView::Gather { sampling, ids: vec![id] } });
        if alternatives > 0 {
            // A capped nucleus is the most probable ids with their exact probabilities.
            requests.push(LogitsRequest { offset, view: LogitsView::Nucleus { sampling, cap: alternatives } });
        }
    }
    requests
}

/// Enters the answer to [`score_views`] for the tokens after position `at`.
pub(super) fn note_scores(scores: &mut [Option<TokenScore>], at: usize, results: Vec<LogitsResult>) {
    let mut position = at;
    for result in results {
        match result {
            LogitsResult::Gathered(tokens) => {
                position += 1;
                if let (Some(slot), Some(token)) = (scores.get_mut(position), tokens.first()) {
                    let log_probability = token.probability.ln();
                    *slot = Some(TokenScore { log_probability, alternatives: Vec::new() });
                }
            }
            LogitsResult::Nucleus { survivors, .. } => {
                if let Some(Some(slot)) = scores.get_mut(position) {
                    slot.alternatives = score(&survivors, 0, survivors.ids().len()).alternatives;
                }
            }
            // Nothing else is asked for.
            _ => {}
        }
    }
}
