//! Text from token ids, one at a time.
//!
//! The pieces add up to what the tokenizer itself makes of all ids at once, whatever the ids: that is checked against
//! it. Special tokens give no text.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use tokenizers::Tokenizer;

/// Mark of a space in SentencePiece's vocabularies.
const SPACE_MARK: &str = "▁";

/// How a model's tokens spell text; shared by all its choices.
pub struct TokenDecoder {
    tokenizer: Arc<Tokenizer>,
    special: HashSet<u32>,
    spelling: TokenSpelling,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenSpelling {
    /// Every character of a token stands for a byte (GPT-2's table).
    Bytes,
    /// A mark stands for a space.
    Marks {
        mark: String,
        /// Tokens like `<0x0A>` stand for a byte; a run of them that is not UTF-8 becomes as many U+FFFD.
        byte_tokens: bool,
        start: TextStart,
    },
}

/// What a text loses at its very start, where the tokenizer once added it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextStart {
    /// So many spaces.
    Spaces(usize),
    /// The marks of the first token.
    Marks,
}

impl TokenDecoder {
    /// Reads how the tokenizer decodes.
    ///
    /// # Errors
    /// [`UnsupportedDecoder`] when it is neither byte-level nor SentencePiece's.
    pub fn of(tokenizer: Arc<Tokenizer>) -> Result<Self, UnsupportedDecoder> {
        let description = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let spelling = spelling(&description).ok_or_else(|| UnsupportedDecoder(description.to_string()))?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Self { tokenizer, special, spelling })
    }

    /// The bytes that a token stands for by itself; its name, if it is special; none, if there is no such token.
    #[must_use]
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Vec::new() };
        if self.special.contains(&id) {
            return token.into_bytes();
        }
        match &self.spelling {
            TokenSpelling::Bytes => spelled_bytes(token),
            TokenSpelling::Marks { byte_tokens: true, .. } if let Some(byte) = byte_token(&token) => vec![byte],
            TokenSpelling::Marks { mark, .. } => token.replace(mark, " ").into_bytes(),
        }
    }

    /// The token if it gives text.
    fn visible(&self, id: u32) -> Option<String> {
        if self.special.contains(&id) { None } else { self.tokenizer.id_to_token(id) }
    }
}

/// A tokenizer whose text this program cannot stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decoder {0} is not supported; it must be byte-level or SentencePiece's")]
pub struct UnsupportedDecoder(String);

fn spelling(description: &Value) -> Option<TokenSpelling> {
    match description.get("type")?.as_str()? {
        "ByteLevel" => Some(TokenSpelling::Bytes),
        "Metaspace" => {
            let never = description.get("prepend_scheme").and_then(Value::as_str) == Some("never");
            let mark = description.get("replacement")?.as_str()?.to_owned();
            let start = if never { TextStart::Spaces(0) } else { TextStart::Marks };
            Some(TokenSpelling::Marks { mark, byte_tokens: false, start })
        }
        "Sequence" => {
            let steps = description.get("decoders")?.as_array()?;
            match steps.as_slice() {
                [only] => spelling(only),
                _ => sentencepiece(steps),
            }
        }
        _ => None,
    }
}

/// SentencePiece as Llama's tokenizers write it: Replace, ByteFallback, Fuse, and Strip where a space was added in
/// front.
fn sentencepiece(steps: &[Value]) -> Option<TokenSpelling> {
    let name = |step: &Value| step.get("type").and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = steps.iter().map(name).collect::<Option<_>>()?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let stripped = match names.as_slice() {
        ["Replace", "ByteFallback", "Fuse"] => 0,
        ["Replace", "ByteFallback", "Fuse", "Strip"] => {
            let strip = steps.last()?;
            let spaces = strip.get("content")?.as_str()? == " " && strip.get("stop")?.as_u64()? == 0;
            if !spaces {
                return None;
            }
            usize::try_from(strip.get("start")?.as_u64()?).ok()?
        }
        _ => return None,
    };
    let replaces =
        steps[0].get("content")?.as_str()? == " " && steps[0].get("pattern")?.get("String")?.as_str()? == SPACE_MARK;
    let start = TextStart::Spaces(stripped);
    replaces.then(|| TokenSpelling::Marks { mark: SPACE_MARK.to_owned(), byte_tokens: true, start })
}

/// The byte of a token like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// A token with a character outside GPT-2's table was added by hand and stands for itself.
fn spelled_bytes(token: String) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTE_OF.get(c as usize).copied().flatten()).collect();
    bytes.unwrap_or_else(|| token.into_bytes())
}

/// GPT-2's table from character to byte: printable Latin-1 stands for itself, the other bytes for U+0100 on, in order.
static BYTE_OF: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    let stands_for_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(|&byte| !stands_for_itself(byte));
    (0..=u8::MAX).map(|byte| stands_for_itself(byte).then_some(byte)).chain(others.map(Some)).collect()
});

/// Decodes one sequence.
pub struct Detokenizer {
    decoder: Arc<TokenDecoder>,
    /// Bytes that are not a character yet.
    pending: Vec<u8>,
    /// Whether the text has begun, so that nothing is taken from its start any more.
    begun: bool,
    /// Spaces that are still to be taken from the start.
    to_strip: usize,
}

impl Detokenizer {
    /// Starts a text.
    #[must_use]
    pub fn new(decoder: Arc<TokenDecoder>) -> Self {
        let to_strip = match &decoder.spelling {
            TokenSpelling::Marks { start: TextStart::Spaces(spaces), .. } => *spaces,
            TokenSpelling::Marks { start: TextStart::Marks, .. } | TokenSpelling::Bytes => 0,
        };
        Self { decoder, pending: Vec::new(), begun: false, to_strip }
    }

    /// Starts after a prompt: a space before the first token is then text.
    #[must_use]
    pub fn after(decoder: Arc<TokenDecoder>, prompt: &[u32]) -> Self {
        let begun = prompt.iter().any(|&id| decoder.visible(id).is_some());
        let mut fresh = Self::new(decoder);
        if begun {
            fresh.begun = true;
            fresh.to_strip = 0;
        }
        fresh
    }

    /// The text that the next token completes; may be empty.
    #[must_use]
    pub fn push(&mut self, id: u32) -> String {
        let Some(token) = self.decoder.visible(id) else { return String::new() };
        let first = !std::mem::replace(&mut self.begun, true);
        let decoder = self.decoder.clone();
        match &decoder.spelling {
            TokenSpelling::Bytes => {
                self.pending.extend(spelled_bytes(token));
                complete_characters(&mut self.pending)
            }
            TokenSpelling::Marks { mark, byte_tokens, start } => {
                if let Some(byte) = byte_token(&token).filter(|_| *byte_tokens) {
                    // A later byte can still spoil the whole run.
                    self.pending.push(byte);
                    return String::new();
                }
                let run = self.byte_run();
                let space = if first && *start == TextStart::Marks { "" } else { " " };
                self.stripped(run + &token.replace(mark, space))
            }
        }
    }

    /// The text of what stayed incomplete.
    #[must_use]
    pub fn finish(&mut self) -> String {
        match self.decoder.spelling {
            TokenSpelling::Bytes => String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned(),
            TokenSpelling::Marks { .. } => {
                let run = self.byte_run();
                self.stripped(run)
            }
        }
    }

    fn byte_run(&mut self) -> String {
        let bytes = std::mem::take(&mut self.pending);
        let length = bytes.len();
        String::from_utf8(bytes).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string().repeat(length))
    }

    fn stripped(&mut self, mut text: String) -> String {
        while self.to_strip > 0 && !text.is_empty() {
            if text.starts_with(' ') {
                text.remove(0);
                self.to_strip -= 1;
            } else {
                self.to_strip = 0;
            }
        }
        text
    }
}

/// Takes the whole characters from the front; bytes that can never be one become U+FFFD, as `from_utf8_lossy` has it.
fn complete_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = pending.as_slice();
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                rest = &[];
            }
            Err(error) => {
                let (whole, broken) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(whole));
                let Some(invalid) = error.error_len() else {
                    rest = broken;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &broken[invalid..];
            }
        }
    }
    *pending = rest.to_vec();
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::postprocess::samples;

    fn decode(decoder: &Arc<TokenDecoder>, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new(decoder.clone());
        let pieces: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        pieces + &detokenizer.finish()
    }

    /// The text of `ids` and of every split of them into prompt and answer is the tokenizer's own.
    fn check(tokenizer: Arc<Tokenizer>, ids: &[u32], split: usize) -> Result<(), TestCaseError> {
        let decoder = Arc::new(TokenDecoder::of(tokenizer.clone()).unwrap());
        prop_assert_eq!(decode(&decoder, ids), tokenizer.decode(ids, true).unwrap());
        let (prompt, answer) = ids.split_at(split.min(ids.len()));
        let mut before = Detokenizer::new(decoder.clone());
        let prompt_text: String = prompt.iter().map(|&id| before.push(id)).collect();
        if before.pending.is_empty() && !prompt_text.is_empty() {
            let mut after = Detokenizer::after(decoder, prompt);
            let answer: String = answer.iter().map(|&id| after.push(id)).collect();
            let whole = prompt_text + &answer + &after.finish();
            prop_assert_eq!(whole, tokenizer.decode(ids, true).unwrap());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn byte_level_pieces_add_up(
            ids in prop::collection::vec(prop_oneof![0u32..51_300, 94u32..260], 0..40), split in 0usize..40,
        ) {
            check(samples::codegen(), &ids, split)?;
        }

        #[test]
        fn sentencepiece_pieces_add_up(ids in prop::collection::vec(0u32..300, 0..40), split in 0usize..40) {
            check(Arc::new(samples::sentencepiece(&["<s>"])), &ids, split)?;
        }

        #[test]
        fn metaspace_pieces_add_up(ids in prop::collection::vec(0u32..300, 0..40), split in 0usize..40) {
            check(Arc::new(samples::metaspace()), &ids, split)?;
        }

        #[test]
        fn text_survives_the_way_there_and_back(text in "\\PC{0,40}") {
            let tokenizer = samples::codegen();
            let ids = tokenizer.encode(text.as_str(), false).unwrap();
            let decoder = Arc::new(TokenDecoder::of(tokenizer).unwrap());
            prop_assert_eq!(decode(&decoder, ids.get_ids()), text);
        }
    }

    #[test]
    fn a_character_is_never_split() {
        let tokenizer = samples::codegen();
        let ids = tokenizer.encode("日🦀", false).unwrap().get_ids().to_vec();
        let mut detokenizer = Detokenizer::new(Arc::new(TokenDecoder::of(tokenizer).unwrap()));
        let pieces: Vec<String> =
            ids.iter().map(|&id| detokenizer.push(id)).filter(|piece| !piece.is_empty()).collect();
        assert!(ids.len() > 2);
        assert_eq!(pieces, ["日", "🦀"]);
    }

    #[test]
    fn tokens_by_themselves() {
        let decoder = TokenDecoder::of(samples::codegen()).unwrap();
        assert_eq!(decoder.bytes(50256), b"<|endoftext|>");
        assert_eq!(decoder.bytes(198), b"\n");
        assert_eq!(decoder.bytes(1_000_000), b"");
        let decoder = TokenDecoder::of(Arc::new(samples::sentencepiece(&[]))).unwrap();
        assert_eq!(decoder.bytes(0x0A), b"\n");
        assert_eq!(decoder.bytes(256), b" ");
    }

    #[test]
    fn other_decoders_are_refused() {
        let mut tokenizer = samples::byte_level(&[]);
        tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
        let error = TokenDecoder::of(Arc::new(tokenizer)).err().unwrap();
        assert!(error.to_string().contains("WordPiece"), "{error}");
    }
}
