//! What a session has under way with the worker of one role: one operation at a time.

use cosec_proto::draw::Warp;

use super::plan::Want;
use super::state::Action;
use crate::merge::score;
use crate::request::Score;
use crate::role::Role;
use crate::worker_pool::operation::{Ask, RowAsk, View};
use crate::worker_pool::reply::RowView;

/// Failures in a row, without any answer between them, after which a session gives up.
const MAX_FAILURES: u32 = 4;

/// Times in a row that a worker may have lost its cache.
const MAX_REWINDS: u32 = 8;

/// Prompt tokens scored at once: a worker holds the rows of all of them.
const SCORED_TOKENS: usize = 64;

/// What a lane is to find out.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LaneWant {
    /// Of the next token's position.
    Position(Want),
    /// Of all tokens of the prompt.
    Scores {
        /// Most probable others per token.
        alternatives: u32,
    },
}

/// What became of an attempt to send.
pub(super) enum Progress {
    Send(Action),
    /// For a worker, an answer, or a wish.
    Waits,
    /// All is found out.
    Done,
}

/// An operation under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    ticket: u64,
    pub(super) at: u32,
    tokens: u32,
    /// A piece of a longer feed: its answer says nothing yet.
    pub(super) is_partial: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    role: Role,
    is_placed: bool,
    max_operation_tokens: usize,
    vocabulary: u32,
    /// Tokens of the sequence that the worker is believed to have in its cache.
    cached: u32,
    want: Option<LaneWant>,
    /// The want is answered; it stays until the lane notices.
    is_answered: bool,
    sent: Option<Sent>,
    next_ticket: u64,
    failures: u32,
    rewinds: u32,
}

impl Lane {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            is_placed: false,
            max_operation_tokens: 1,
            vocabulary: 0,
            cached: 0,
            want: None,
            is_answered: false,
            sent: None,
            next_ticket: 0,
            failures: 0,
            rewinds: 0,
        }
    }

    pub(super) fn is_placed(&self) -> bool {
        self.is_placed
    }

    pub(super) fn is_busy(&self) -> bool {
        self.want.is_some()
    }

    pub(super) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// A worker was found.
    pub(super) fn placed(&mut self, fresh: bool, max_operation_tokens: u32, vocabulary: u32) {
        self.is_placed = true;
        self.max_operation_tokens = max_operation_tokens.max(1) as usize;
        self.vocabulary = vocabulary;
        if fresh {
            self.cached = 0;
        }
    }

    pub(super) fn want(&mut self, want: LaneWant) {
        self.want = Some(want);
        self.is_answered = false;
    }

    /// Drops the wish and the interest in any answer.
    pub(super) fn forget(&mut self) {
        self.want = None;
        self.sent = None;
    }

    /// Composes the next operation towards the wish, if there is one and nothing is under way.
    pub(super) fn send(&mut self, tokens: &[u32], prompt_tokens: usize) -> Progress {
        if self.want.is_some() && self.is_answered {
            self.want = None;
            return Progress::Done;
        }
        if !self.is_placed || self.sent.is_some() {
            return Progress::Waits;
        }
        let cached = self.cached as usize;
        let (feed, ask, is_partial) = match &self.want {
            None => return Progress::Waits,
            Some(LaneWant::Scores { alternatives }) => {
                // The last token's row scores no prompt token.
                let until = (cached + self.max_operation_tokens.min(SCORED_TOKENS)).min(prompt_tokens - 1);
                if until <= cached {
                    self.want = None;
                    return Progress::Done;
                }
                (&tokens[cached..until], Ask::Rows(score_rows(&tokens[cached + 1..=until], *alternatives)), false)
            }
            Some(LaneWant::Position(_)) if tokens.len() - cached > self.max_operation_tokens => {
                (&tokens[cached..cached + self.max_operation_tokens], Ask::Rows(Vec::new()), true)
            }
            Some(LaneWant::Position(Want::Draft { k, warp })) => {
                (&tokens[cached..], Ask::Draft { k: *k, warp: *warp }, false)
            }
            Some(LaneWant::Position(Want::Views(views))) => {
                let offset = (tokens.len() - cached) as u32;
                let rows = views.iter().map(|view| RowAsk { offset, view: view.clone() }).collect();
                (&tokens[cached..], Ask::Rows(rows), false)
            }
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.sent = Some(Sent { ticket, at: self.cached, tokens: feed.len() as u32, is_partial });
        Progress::Send(Action::Send { role: self.role, ticket, at: self.cached, tokens: feed.to_vec(), ask })
    }

    /// The operation that `ticket` names, unless nobody is interested any more.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<Sent> {
        self.sent.take_if(|sent| sent.ticket == ticket)
    }

    /// The operation succeeded.
    pub(super) fn fed(&mut self, sent: &Sent) {
        self.cached = sent.at + sent.tokens;
        self.failures = 0;
        self.rewinds = 0;
        let scores = matches!(self.want, Some(LaneWant::Scores { .. }));
        self.is_answered = !sent.is_partial && !scores;
    }

    /// The worker has less than was believed; false when that happened too often.
    pub(super) fn rewind(&mut self, have: u32) -> bool {
        self.cached = have.min(self.cached);
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

/// The rows that score `next`: row `offset` (from 1) is the distribution of `next[offset - 1]`.
fn score_rows(next: &[u32], alternatives: u32) -> Vec<RowAsk> {
    let mut rows = Vec::new();
    for (offset, &id) in (1u32..).zip(next) {
        rows.push(RowAsk { offset, view: View::Gather { warp: Warp::RAW, ids: vec![id] } });
        if alternatives > 0 {
            // A capped nucleus is the most probable ids with their exact probabilities.
            rows.push(RowAsk { offset, view: View::Nucleus { warp: Warp::RAW, cap: alternatives } });
        }
    }
    rows
}

/// Enters the answer to [`score_rows`] for the tokens behind position `at`.
pub(super) fn note_scores(scores: &mut [Option<Score>], at: u32, rows: Vec<RowView>) {
    let mut position = at as usize;
    for row in rows {
        match row {
            RowView::Gathered(tokens) => {
                position += 1;
                if let (Some(slot), Some(token)) = (scores.get_mut(position), tokens.first()) {
                    let log_probability = token.probability.ln();
                    *slot = Some(Score { log_probability, alternatives: Vec::new() });
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
