//! From tokens to the text that a client sees.
//!
//! Text and reports leave together: a token is handed on with the first of its text that nothing can take back any more
//! (a character may be incomplete, a stop string may have begun). So a stream's parts add up to exactly the answer that
//! comes in one piece.

pub mod detokenizer;

pub mod stop;

#[cfg(test)]
pub(crate) mod samples;

use std::collections::VecDeque;
use std::sync::Arc;

use self::detokenizer::{Detokenizer, TokenDecoder};
use self::stop::StopScanner;
use crate::merge::{Decision, TokenScore};
use crate::request::{FinishReason, TokenEvent};

/// A piece of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextDelta {
    /// Whole characters only.
    pub text: String,
    /// The tokens whose text begins here or before.
    pub tokens: Vec<PlacedToken>,
}

impl TextDelta {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }

    /// Adds the piece that follows.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
    }
}

/// A token and where its text begins.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedToken {
    /// Token id.
    pub id: u32,
    /// Characters of the choice's text before it.
    pub offset: usize,
    /// Under the base's raw distribution; present when `logprobs` is set. The prompt's first token has none.
    pub score: Option<TokenScore>,
    /// How it came about; a token of the prompt has none, nor one that the client has from elsewhere.
    pub decision: Option<Decision>,
}

/// Assembles the text of one choice.
pub struct ChoiceText {
    detokenizer: Detokenizer,
    stop: StopScanner,
    min_tokens: u32,
    new_tokens: u32,
    /// Bytes and characters that left the detokenizer so far, and the bytes of them that the client has.
    decoded_bytes: usize,
    decoded_characters: usize,
    released_bytes: usize,
    /// Tokens that the client has not seen, with the byte where each begins.
    waiting: VecDeque<(usize, PlacedToken)>,
}

impl ChoiceText {
    /// Starts after a prompt. Stop strings count from the `min_tokens`-th new token on.
    #[must_use]
    pub fn new(decoder: Arc<TokenDecoder>, prompt: &[u32], stop: &[String], min_tokens: u32) -> Self {
        Self::with(Detokenizer::after(decoder, prompt), stop, min_tokens)
    }

    /// Starts with the prompt as part of the text, in the first delta.
    #[must_use]
    pub fn echoing(decoder: Arc<TokenDecoder>, stop: &[String], min_tokens: u32) -> Self {
        Self::with(Detokenizer::new(decoder), stop, min_tokens)
    }

    fn with(detokenizer: Detokenizer, stop: &[String], min_tokens: u32) -> Self {
        Self {
            detokenizer,
            stop: StopScanner::new(stop.to_vec()),
            min_tokens,
            new_tokens: 0,
            decoded_bytes: 0,
            decoded_characters: 0,
            released_bytes: 0,
            waiting: VecDeque::new(),
        }
    }

    /// The prompt's tokens with their scores, which are as many or none. No stop string is looked for.
    #[must_use]
    pub fn echo(&mut self, prompt: &[u32], scores: Vec<Option<TokenScore>>) -> TextDelta {
        let mut text = String::new();
        let mut scores = scores.into_iter();
        for &id in prompt {
            self.place(id, scores.next().flatten(), None);
            text.push_str(&self.decode(id));
        }
        self.released_bytes = self.decoded_bytes;
        TextDelta { text, tokens: self.waiting.drain(..).map(|(_, token)| token).collect() }
    }

    /// Takes the next token. `true` says that a stop string was found: what is handed on ends before it, and nothing
    /// follows.
    #[must_use]
    pub fn push(&mut self, event: TokenEvent) -> (TextDelta, bool) {
        self.take(event.decision.id, event.score, Some(event.decision))
    }

    /// Takes the next of the tokens that the client has from elsewhere, without what was said of it there.
    #[must_use]
    pub fn push_received(&mut self, id: u32) -> (TextDelta, bool) {
        self.take(id, None, None)
    }

    fn take(&mut self, id: u32, score: Option<TokenScore>, decision: Option<Decision>) -> (TextDelta, bool) {
        self.place(id, score, decision);
        self.new_tokens += 1;
        let text = self.decode(id);
        if self.new_tokens <= self.min_tokens { (self.release(text), false) } else { self.scan(&text) }
    }

    /// Hands on what was held back. The reason changes when the last characters complete a stop string.
    #[must_use]
    pub fn finish(&mut self, reason: FinishReason) -> (TextDelta, FinishReason) {
        let rest = self.detokenizer.finish();
        self.decoded_bytes += rest.len();
        let (mut delta, stopped) = self.scan(&rest);
        if stopped {
            return (delta, FinishReason::Stop);
        }
        let held = self.stop.finish();
        delta.append(self.release(held));
        delta.tokens.extend(self.waiting.drain(..).map(|(_, token)| token));
        (delta, reason)
    }

    fn place(&mut self, id: u32, score: Option<TokenScore>, decision: Option<Decision>) {
        let token = PlacedToken { id, offset: self.decoded_characters, score, decision };
        self.waiting.push_back((self.decoded_bytes, token));
    }

    fn decode(&mut self, id: u32) -> String {
        let text = self.detokenizer.push(id);
        self.decoded_bytes += text.len();
        self.decoded_characters += text.chars().count();
        text
    }

    fn scan(&mut self, text: &str) -> (TextDelta, bool) {
        let (safe, stopped) = self.stop.push(text);
        (self.release(safe), stopped)
    }

    fn release(&mut self, text: String) -> TextDelta {
        self.released_bytes += text.len();
        let begun = self.waiting.iter().take_while(|(start, _)| *start < self.released_bytes).count();
        TextDelta { text, tokens: self.waiting.drain(..begun).map(|(_, token)| token).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    fn token(id: u32) -> TokenEvent {
        let decision = Decision { id, hardening: None, p: None, q: None, law: None, rejected: None };
        TokenEvent { decision, score: None }
    }

    /// Feeds `ids` and returns text, ids handed on and whether a stop string ended it.
    fn run(decoder: &Arc<TokenDecoder>, ids: &[u32], stop: &[String], min_tokens: u32) -> (String, Vec<u32>, bool) {
        let mut choice = ChoiceText::new(decoder.clone(), &[], stop, min_tokens);
        let mut whole = TextDelta::default();
        let mut stopped = false;
        for &id in ids {
            let (delta, found) = choice.push(token(id));
            whole.append(delta);
            stopped = found;
            if found {
                break;
            }
        }
        if !stopped {
            let (delta, reason) = choice.finish(FinishReason::Length);
            whole.append(delta);
            stopped = reason == FinishReason::Stop;
        }
        let offsets: Vec<usize> = whole.tokens.iter().map(|token| token.offset).collect();
        assert!(offsets.is_sorted());
        (whole.text, whole.tokens.iter().map(|token| token.id).collect(), stopped)
    }

    #[test]
    fn tokens_leave_with_their_text() {
        let tokenizer = samples::codegen();
        let decoder = Arc::new(TokenDecoder::of(tokenizer.clone()).unwrap());
        let ids = tokenizer.encode("x = 1\nreturn x", false).unwrap().get_ids().to_vec();
        let check = |stop: &[&str], min_tokens: u32, text: &str, tokens: usize, stopped: bool| {
            let stop: Vec<String> = stop.iter().map(|&s| s.to_owned()).collect();
            let (got_text, got_tokens, got_stopped) = run(&decoder, &ids, &stop, min_tokens);
            assert_eq!((got_text.as_str(), got_stopped), (text, stopped), "{stop:?}");
            assert_eq!(got_tokens, ids[..tokens], "{stop:?}");
        };
        // x| =| 1|\n|return| x
        assert_eq!(ids.len(), 6);
        check(&[], 0, "x = 1\nreturn x", 6, false);
        check(&["\n"], 0, "x = 1", 3, true);
        check(&["1\nret"], 0, "x = ", 3, true);
        check(&["urn"], 0, "x = 1\nret", 5, true);
        check(&["x"], 0, "", 0, true);
        check(&["x"], 1, "x = 1\nreturn ", 6, true);
        check(&["= 1"], 2, "x = 1\nreturn x", 6, false);
        check(&["x!"], 0, "x = 1\nreturn x", 6, false);
    }

    #[test]
    fn an_echoed_prompt_comes_first_and_is_not_searched() {
        let tokenizer = samples::codegen();
        let decoder = Arc::new(TokenDecoder::of(tokenizer.clone()).unwrap());
        let prompt = tokenizer.encode("a\n", false).unwrap().get_ids().to_vec();
        let mut choice = ChoiceText::echoing(decoder, &["\n".to_owned()], 0);
        let score = TokenScore { log_probability: -1.0, alternatives: vec![] };
        let delta = choice.echo(&prompt, vec![None, Some(score.clone())]);
        assert_eq!(delta.text, "a\n");
        assert_eq!(
            delta.tokens.iter().map(|t| (t.offset, t.score.clone())).collect::<Vec<_>>(),
            [(0, None), (1, Some(score))]
        );
        let (delta, stopped) = choice.push(token(64));
        assert_eq!((delta.text.as_str(), delta.tokens[0].offset, stopped), ("a", 2, false));
    }

    proptest! {
        #[test]
        fn the_text_is_the_decoded_text_up_to_the_first_stop(
            ids in prop::collection::vec(prop_oneof![0u32..300, 50250u32..50300], 0..40),
            stop in prop::collection::vec("[a-c!�é]{1,3}", 0..3),
        ) {
            let tokenizer = samples::codegen();
            let whole = tokenizer.decode(&ids, true).unwrap();
            let decoder = Arc::new(TokenDecoder::of(tokenizer).unwrap());
            let (text, tokens, stopped) = run(&decoder, &ids, &stop, 0);
            let first = stop.iter().filter_map(|s| whole.find(s.as_str()).map(|at| (at + s.len(), at))).min();
            prop_assert_eq!(stopped, first.is_some());
            prop_assert_eq!(&text, &whole[..first.map_or(whole.len(), |(_, start)| start)]);
            if !stopped {
                prop_assert_eq!(tokens, ids);
            }
        }
    }
}
