//! What a session has under way with the worker of one role: one operation at a time.

use cosec_proto::sampling::SamplingParams;

use super::event::Action;
use crate::merge::{TokenScore, score};
use crate::worker_pool::operation::{Ask, RowAsk, View};
use crate::worker_pool::reply::RowView;
use cosec_proto::WorkerRole;

/// Failures in a row, without any answer between them, after which a session gives up.
const MAX_FAILURES: u32 = 4;

/// Times in a row, without any answer between them, that a worker may have lost its cache.
const MAX_REWINDS: u32 = 8;

/// Prompt tokens scored at once: a worker holds the rows of all of them.
const SCORED_TOKENS: usize = 64;

/// What a lane is to find out next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Aim {
    /// Scores of the prompt's tokens, which are all there is.
    Scores {
        /// Most probable others per token.
        alternatives: u32,
    },
    /// Nothing yet; the cache is to hold so many tokens.
    Feed { until: usize },
    /// Views of the rows of the positions from `from` on; none only feeds.
    Rows { from: usize, views: Vec<Vec<View>> },
    /// Tokens behind the last, drawn by the model, and views of the row of each.
    Draft {
        k: u32,
        warp: SamplingParams,
        views: Vec<View>,
        /// Whether the tokens before it may yet be rejected.
        is_ahead: bool,
    },
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Sent {
    ticket: u64,
    pub(super) at: usize,
    /// Tokens of the sequence that are cached afterwards.
    until: usize,
    /// Rows of the positions below are known afterwards.
    known: usize,
    /// In the order of the views asked for, with their positions.
    pub(super) asked: Vec<(usize, View)>,
    /// Whether the model draws.
    pub(super) is_draft: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    role: WorkerRole,
    is_placed: bool,
    max_operation_tokens: usize,
    vocabulary: u32,
    /// Tokens of the sequence that the worker is believed to have in its cache.
    cached: usize,
    /// Rows of the positions below are known, or no longer of interest.
    known: usize,
    sent: Option<Sent>,
    next_ticket: u64,
    failures: u32,
    rewinds: u32,
}

impl Lane {
    pub(super) fn new(role: WorkerRole) -> Self {
        Self {
            role,
            is_placed: false,
            max_operation_tokens: 1,
            vocabulary: 0,
            cached: 0,
            known: 0,
            sent: None,
            next_ticket: 0,
            failures: 0,
            rewinds: 0,
        }
    }

    pub(super) fn is_placed(&self) -> bool {
        self.is_placed
    }

    /// Whether an operation can be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.is_placed && self.sent.is_none()
    }

    pub(super) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    pub(super) fn known(&self) -> usize {
        self.known
    }

    /// Rows of the positions below are known or under way.
    pub(super) fn asked(&self) -> usize {
        self.sent.as_ref().map_or(self.known, |sent| sent.known)
    }

    /// A worker was found.
    pub(super) fn placed(&mut self, max_operation_tokens: u32, vocabulary: u32) {
        self.is_placed = true;
        self.max_operation_tokens = max_operation_tokens.max(1) as usize;
        self.vocabulary = vocabulary;
        self.cached = 0;
    }

    /// Composes the next operation towards `aim`, or as much of it as one operation can take.
    pub(super) fn send(&mut self, tokens: &[u32], aim: Aim) -> Action {
        if let Aim::Rows { from, .. } = aim
            && self.cached > from
        {
            // The row in question is kept no longer: the token before it is fed once more.
            self.cached = from - 1;
        }
        let (at, reach) = (self.cached, self.cached + self.max_operation_tokens);
        let mut known = self.known;
        let is_draft = matches!(aim, Aim::Draft { .. }) && tokens.len() <= reach;
        let is_ahead = is_draft && matches!(aim, Aim::Draft { is_ahead: true, .. });
        let (until, ask) = match aim {
            Aim::Scores { alternatives } => {
                // The last token's row scores no prompt token.
                let until = (at + self.max_operation_tokens.min(SCORED_TOKENS)).min(tokens.len() - 1);
                (until, Ask::Rows(score_rows(&tokens[at + 1..=until], alternatives)))
            }
            Aim::Feed { until } => (until.min(reach), Ask::Rows(Vec::new())),
            Aim::Rows { from, views } => {
                let until = (from + views.len() - 1).min(reach);
                if until >= from {
                    known = known.max(until + 1);
                }
                let positions = (from..=until).zip(views);
                let mut asks: Vec<_> =
                    positions.flat_map(|(position, views)| row_asks(position - at, views)).collect();
                // Like views side by side: they travel as runs.
                asks.sort_by_key(|ask| matches!(ask.view, View::Sample { .. }));
                (until, Ask::Rows(asks))
            }
            Aim::Draft { k, warp, views, .. } if is_draft => {
                let rows = (0..k as usize).flat_map(|offset| row_asks(offset, views.clone())).collect();
                (tokens.len(), Ask::Draft { k, warp, rows })
            }
            Aim::Draft { .. } => (reach, Ask::Rows(Vec::new())),
        };
        let (first, rows) = match &ask {
            Ask::Rows(rows) => (at, rows.as_slice()),
            Ask::Draft { rows, .. } => (until, rows.as_slice()),
            Ask::Release => (at, [].as_slice()),
        };
        let asked = rows.iter().map(|row| (first + row.offset as usize, row.view.clone())).collect();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.sent = Some(Sent { ticket, at, until, known, asked, is_draft });
        Action::Send { role: self.role, ticket, at: at as u32, tokens: tokens[at..until].to_vec(), ask, is_ahead }
    }

    /// The operation that `ticket` names, unless nobody is interested any more.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<Sent> {
        self.sent.take_if(|sent| sent.ticket == ticket)
    }

    /// The operation succeeded and fed `drafted` tokens beside those given.
    pub(super) fn fed(&mut self, sent: &Sent, drafted: usize) {
        self.cached = sent.until + drafted;
        self.known = self.known.max(sent.known);
        self.failures = 0;
        self.rewinds = 0;
    }

    /// From the token at `position` on the sequence is another one. Withdraws an operation that knew the old one.
    pub(super) fn roll_back(&mut self, position: usize) -> Option<Action> {
        self.known = self.known.min(position + 1);
        let is_concerned = |sent: &mut Sent| sent.is_draft || sent.until > position || !sent.asked.is_empty();
        match self.sent.take_if(is_concerned) {
            Some(sent) => {
                // Whatever it has done, what it began with is there.
                self.cached = sent.at.min(position);
                Some(Action::Withdraw { role: self.role, ticket: sent.ticket })
            }
            None => {
                self.cached = self.cached.min(position);
                None
            }
        }
    }

    /// Nothing is known any more of the row at `position`, nor of those behind it.
    pub(super) fn forget(&mut self, position: usize) {
        self.known = self.known.min(position);
    }

    /// The worker has less than was believed; false when that happened too often.
    pub(super) fn rewind(&mut self, have: u32) -> bool {
        self.cached = self.cached.min(have as usize);
        self.rewinds += 1;
        self.rewinds <= MAX_REWINDS
    }

    /// The worker failed; counts the failures in a row, `None` when they are too many.
    pub(super) fn failed(&mut self) -> Option<u32> {
        self.is_placed = false;
        self.failures += 1;
        (self.failures <= MAX_FAILURES).then_some(self.failures)
    }
}

fn row_asks(offset: usize, views: Vec<View>) -> impl Iterator<Item = RowAsk> {
    views.into_iter().map(move |view| RowAsk { offset: offset as u32, view })
}

/// The rows that score `next`: row `offset` (from 1) is the distribution of `next[offset - 1]`.
fn score_rows(next: &[u32], alternatives: u32) -> Vec<RowAsk> {
    let mut rows = Vec::new();
    for (offset, &id) in (1u32..).zip(next) {
        rows.push(RowAsk { offset, view: View::Gather { warp: SamplingParams::RAW, ids: vec![id] } });
        if alternatives > 0 {
            // A capped nucleus is the most probable ids with their exact probabilities.
            rows.push(RowAsk { offset, view: View::Nucleus { warp: SamplingParams::RAW, cap: alternatives } });
        }
    }
    rows
}

/// Enters the answer to [`score_rows`] for the tokens behind position `at`.
pub(super) fn note_scores(scores: &mut [Option<TokenScore>], at: usize, rows: Vec<RowView>) {
    let mut position = at;
    for row in rows {
        match row {
            RowView::Gathered(tokens) => {
                position += 1;
                if let (Some(slot), Some(token)) = (scores.get_mut(position), tokens.first()) {
                    let log_probability = token.probability.ln();
                    *slot = Some(TokenScore { log_probability, alternatives: Vec::new() });
                }
            }
            RowView::Nucleus { survivors, .. } => {
                if let Some(Some(slot)) = scores.get_mut(position) {
                    slot.alternatives = score(&survivors, 0, survivors.ids().len()).alternatives;
                }
            }
            RowView::Sampled(_) | RowView::Full(_) => {}
        }
    }
}
