//! The choices of a request while they are generated: events of sessions become pieces of text.

use std::collections::VecDeque;
use std::sync::Arc;

use cosec_proto::ErrorCode;
use tokio::time::timeout_at;
use tokio_stream::{StreamExt, StreamMap};

use super::drain::RequestGuard;
use super::model_text::ModelText;
use super::sessions::BoxedSession;
use crate::api::error::ApiError;
use crate::merge::{Decision, Hardening};
use crate::postprocess::{ChoiceText, TextDelta};
use crate::request::{FinishReason, GenerationSettings, SessionEvent};

/// What happens next in one of a request's choices.
#[derive(Debug)]
pub(crate) enum ChoiceEvent {
    /// More text or tokens; never empty.
    Delta(TextDelta),
    /// The choice's last event.
    Finished(FinishReason),
}

/// Tokens of a request so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenUsage {
    /// Each prompt once.
    pub(crate) prompt: usize,
    /// New tokens.
    pub(crate) completion: usize,
    /// New tokens by what hardening did to them, where somebody looked.
    pub(crate) agreed: usize,
    pub(crate) expert: usize,
    pub(crate) base: usize,
}

impl TokenUsage {
    fn count(&mut self, decision: &Decision) {
        self.completion += 1;
        match decision.hardening {
            Some(Hardening::Agreed) => self.agreed += 1,
            Some(Hardening::Expert) => self.expert += 1,
            Some(Hardening::Base) => self.base += 1,
            None => {}
        }
    }
}

/// A request in flight. Dropping it ends its sessions.
pub(crate) struct RunningGeneration {
    text: Arc<ModelText>,
    settings: Arc<GenerationSettings>,
    streams: StreamMap<u32, BoxedSession>,
    choices: Vec<ChoiceState>,
    ready: VecDeque<(u32, ChoiceEvent)>,
    usage: TokenUsage,
    degraded: bool,
    guard: RequestGuard,
}

/// A choice's text so far.
struct ChoiceState {
    prompt: Arc<[u32]>,
    text: ChoiceText,
    new_tokens: u32,
    finished: bool,
}

impl RunningGeneration {
    pub(super) fn new(text: Arc<ModelText>, settings: Arc<GenerationSettings>, guard: RequestGuard) -> Self {
        Self {
            text,
            settings,
            streams: StreamMap::new(),
            choices: Vec::new(),
            ready: VecDeque::new(),
            usage: TokenUsage::default(),
            degraded: false,
            guard,
        }
    }

    /// How to generate.
    pub(crate) fn settings(&self) -> &GenerationSettings {
        &self.settings
    }

    /// The bytes of a token, for reports.
    pub(crate) fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> TokenUsage {
        self.usage
    }

    /// New tokens of a choice so far.
    pub(crate) fn new_tokens(&self, choice: usize) -> u32 {
        self.choices.get(choice).map_or(0, |choice| choice.new_tokens)
    }

    /// Whether the base went on without an expert, in any choice so far.
    pub(crate) fn degraded(&self) -> bool {
        self.degraded
    }

    /// Choices, numbered from 0.
    pub(crate) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Counts the tokens of a prompt, once for all of its choices.
    pub(super) fn add_prompt(&mut self, tokens: usize) {
        self.usage.prompt += tokens;
    }

    /// The base went on without an expert before the answer was resumed here.
    pub(super) fn set_degraded(&mut self) {
        self.degraded = true;
    }

    pub(super) fn next_index(&self) -> u32 {
        // The number of choices is bounded far below by the configuration's `max_choices`.
        u32::try_from(self.choices.len()).unwrap_or(u32::MAX)
    }

    /// Adds a choice of which the client has all `new_tokens`, and the end.
    pub(super) fn add_whole(&mut self, prompt: Arc<[u32]>, new_tokens: u32) {
        let text = self.choice_text(&prompt);
        self.usage.completion += new_tokens as usize;
        self.choices.push(ChoiceState { prompt, text, new_tokens, finished: true });
    }

    fn choice_text(&self, prompt: &[u32]) -> ChoiceText {
        let (decoder, settings) = (self.text.decoder.clone(), &self.settings);
        if settings.echo {
            ChoiceText::echoing(decoder, &settings.stop, settings.min_tokens)
        } else {
            ChoiceText::new(decoder, prompt, &settings.stop, settings.min_tokens)
        }
    }

    pub(super) fn add(&mut self, prompt: Arc<[u32]>, events: BoxedSession) {
        let (index, settings) = (self.next_index(), &self.settings);
        let mut text = self.choice_text(&prompt);
        if settings.echo && settings.logprobs.is_none() {
            let delta = text.echo(&prompt, Vec::new());
            self.ready.push_back((index, ChoiceEvent::Delta(delta)));
        }
        self.choices.push(ChoiceState { prompt, text, new_tokens: 0, finished: false });
        self.streams.insert(index, events);
    }

    /// The next event of any choice, with its number; `None` after the last choice has finished.
    ///
    /// # Errors
    /// When a choice failed; the others end with it, and nothing follows.
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, ChoiceEvent), ApiError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.choices.iter().all(|choice| choice.finished) {
                return None;
            }
            let step = match self.next_session_event().await {
                Ok((index, event)) => self.take(index, event),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                self.streams.clear();
                self.choices.clear();
                self.ready.clear();
                return Some(Err(error));
            }
        }
    }

    async fn next_session_event(&mut self) -> Result<(u32, SessionEvent), ApiError> {
        let deadline = self.settings.deadline;
        tokio::select! {
            biased;
            () = self.guard.halted() => {
                Err(ApiError::new(ErrorCode::Unavailable, "this coordinator shut down before the request was finished"))
            }
            event = timeout_at(deadline, self.streams.next()) => match event {
                Ok(Some(event)) => Ok(event),
                Ok(None) => Err(ApiError::new(ErrorCode::Internal, "a session ended without a reason")),
                Err(_) => Err(ApiError::new(ErrorCode::DeadlineExceeded, "the request took longer than it may")),
            },
        }
    }

    fn take(&mut self, index: u32, event: SessionEvent) -> Result<(), ApiError> {
        let Some(choice) = self.choices.get_mut(index as usize) else {
            return Err(ApiError::new(ErrorCode::Internal, "a session that was not opened spoke"));
        };
        match event {
            SessionEvent::Prompt(scores) => {
                let delta = choice.text.echo(&choice.prompt, scores);
                self.ready.push_back((index, ChoiceEvent::Delta(delta)));
            }
            SessionEvent::TakenOver(tokens) => self.take_over(index, &tokens),
            SessionEvent::Token(token) if Some(token.decision.id) == self.text.encoder.end_of_infill() => {
                self.stop(index);
                self.finish(index, FinishReason::Stop);
            }
            SessionEvent::Token(token) => {
                self.usage.count(&token.decision);
                choice.new_tokens += 1;
                let (delta, stopped) = choice.text.push(token);
                self.pass_on(index, delta, stopped);
            }
            SessionEvent::Degraded => self.degraded = true,
            SessionEvent::Finished(reason) => self.finish(index, reason),
            SessionEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Goes through the tokens that the client has: what they gave is counted again, and what they left incomplete goes
    /// on.
    fn take_over(&mut self, index: u32, tokens: &[u32]) {
        let settings = &self.settings;
        let Some(choice) = self.choices.get_mut(index as usize) else { return };
        if settings.echo && settings.logprobs.is_some() {
            let delta = choice.text.echo(&choice.prompt, Vec::new());
            self.ready.push_back((index, ChoiceEvent::Delta(delta)));
        }
        for &id in tokens {
            let Some(choice) = self.choices.get_mut(index as usize).filter(|choice| !choice.finished) else { return };
            choice.new_tokens += 1;
            // What hardening did to it was counted where it was decoded.
            self.usage.completion += 1;
            let (delta, stopped) = choice.text.push_received(id);
            self.pass_on(index, delta, stopped);
        }
    }

    fn pass_on(&mut self, index: u32, delta: TextDelta, stopped: bool) {
        if !delta.is_empty() {
            self.ready.push_back((index, ChoiceEvent::Delta(delta)));
        }
        if stopped {
            self.stop(index);
            self.end(index, FinishReason::Stop);
        }
    }

    /// Ends a session whose text has come to its end.
    fn stop(&mut self, index: u32) {
        if let Some(session) = self.streams.remove(&index) {
            session.stop();
        }
    }

    fn finish(&mut self, index: u32, reason: FinishReason) {
        if let Some(choice) = self.choices.get_mut(index as usize) {
            let (delta, reason) = choice.text.finish(reason);
            if !delta.is_empty() {
                self.ready.push_back((index, ChoiceEvent::Delta(delta)));
            }
            self.end(index, reason);
        }
    }

    fn end(&mut self, index: u32, reason: FinishReason) {
        self.streams.remove(&index);
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.finished = true;
            self.ready.push_back((index, ChoiceEvent::Finished(reason)));
        }
    }
}
