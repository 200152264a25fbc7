//! The tokens of a choice: those decided, then the expert's drafts with what is known of each.

use std::collections::VecDeque;

use crate::merge::ModelEvidence;
use cosec_proto::sampling::TokenProbability;
use cosec_proto::{LogitsResult, LogitsView, WorkerRole};

/// What is known of one position, in the order of [`WorkerRole::ALL`].
type PositionEvidence = Box<[ModelEvidence; 3]>;

#[derive(Debug)]
pub(super) struct TokenSequence {
    /// Prompt, new tokens, drafts.
    tokens: Vec<u32>,
    prompt: usize,
    /// Prompt and new tokens.
    decided: usize,
    /// Of the positions from `decided` on.
    evidence: VecDeque<PositionEvidence>,
}

impl TokenSequence {
    pub(super) fn new(prompt: Vec<u32>) -> Self {
        let length = prompt.len();
        Self { tokens: prompt, prompt: length, decided: length, evidence: VecDeque::new() }
    }

    /// Enters new tokens that were decided elsewhere, before any others.
    pub(super) fn take_over(&mut self, tokens: &[u32]) {
        self.tokens.extend(tokens);
        self.decided = self.tokens.len();
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt
    }

    /// Position of the token to decide next.
    pub(super) fn decided(&self) -> usize {
        self.decided
    }

    pub(super) fn new_tokens(&self) -> usize {
        self.decided - self.prompt
    }

    /// Tokens that wait to be decided.
    pub(super) fn drafts(&self) -> &[u32] {
        &self.tokens[self.decided..]
    }

    fn at(&mut self, position: usize) -> Option<&mut PositionEvidence> {
        let index = position.checked_sub(self.decided)?;
        while self.evidence.len() <= index {
            self.evidence.push_back(PositionEvidence::default());
        }
        self.evidence.get_mut(index)
    }

    /// Appends the expert's draws.
    pub(super) fn draft(&mut self, drawn: &[TokenProbability]) {
        for &draw in drawn {
            if let Some(known) = self.at(self.tokens.len()) {
                known[WorkerRole::Expert.index()].drawn = Some(draw);
            }
            self.tokens.push(draw.id);
        }
    }

    /// Enters the probability of the proposal at the next position.
    pub(super) fn look_up(&mut self, role: WorkerRole, looked_up: TokenProbability) {
        if let Some(known) = self.at(self.decided) {
            known[role.index()].looked_up = Some(looked_up);
        }
    }

    /// Enters what a worker said of the logits at `position`.
    pub(super) fn note(&mut self, role: WorkerRole, position: usize, view: &LogitsView, result: LogitsResult) {
        let Some(known) = self.at(position) else { return };
        let evidence = &mut known[role.index()];
        match (result, view) {
            (LogitsResult::Gathered(tokens), _) => evidence.looked_up = tokens.first().copied(),
            (LogitsResult::Sampled(token), _) => evidence.drawn = Some(token),
            (LogitsResult::Full(logits), _) => evidence.logits = Some(logits),
            (LogitsResult::Nucleus { survivors, complete: true }, LogitsView::Nucleus { sampling, .. }) => {
                evidence.nuclei.push((*sampling, survivors));
            }
            // Cut short: the rule will say that it misses the rest.
            (LogitsResult::Nucleus { .. }, _) => {}
        }
    }

    /// Lends out what is known of the next position.
    pub(super) fn take(&mut self) -> PositionEvidence {
        self.at(self.decided).map(std::mem::take).unwrap_or_default()
    }

    /// Takes back what was lent out.
    pub(super) fn give_back(&mut self, lent: PositionEvidence) {
        if let Some(known) = self.at(self.decided) {
            *known = lent;
        }
    }

    /// Enters the next token. Returns whether it is the one that was drafted: then the drafts after it still stand,
    /// else they are gone.
    pub(super) fn decide(&mut self, id: u32) -> bool {
        let stands = self.drafts().first() == Some(&id);
        if stands {
            self.evidence.pop_front();
        } else {
            self.discard();
            self.tokens.push(id);
        }
        self.decided += 1;
        stands
    }

    /// Forgets the drafts and all that is known.
    pub(super) fn discard(&mut self) {
        self.tokens.truncate(self.decided);
        self.evidence.clear();
    }
}
