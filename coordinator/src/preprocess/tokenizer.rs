//! Turns prompts into token ids.
//!
//! The text of a special token inside a prompt becomes that token, as Hugging Face's tokenizers and the servers built
//! on them have it: clients that render their own templates depend on it.

use std::path::Path;
use std::sync::Arc;

use cosec_proto::tokenizer_fingerprint;
use tokenizers::Tokenizer;

use super::chat_template::ChatTemplate;
use super::error::{EncodeError, LoadError};
use super::infilling::Infilling;
use super::token_ids::encode;
use crate::request::Prompt;

/// Encodes the prompts of one model.
pub struct PromptEncoder {
    tokenizer: Arc<Tokenizer>,
    fingerprint: String,
    template: Option<ChatTemplate>,
    infilling: Option<Infilling>,
}

impl PromptEncoder {
    /// Reads tokenizer.json, and the chat template where there is one, from a Hugging Face directory.
    ///
    /// # Errors
    /// [`LoadError`] names the file.
    pub fn load(directory: &Path) -> Result<Self, LoadError> {
        let file = directory.join("tokenizer.json");
        let failed = |cause: String| LoadError::File { file: file.clone(), cause };
        let json = std::fs::read(&file).map_err(|cause| failed(cause.to_string()))?;
        let fingerprint = tokenizer_fingerprint::fingerprint(&json).map_err(|cause| failed(cause.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(|cause| failed(cause.to_string()))?;
        // A prompt is refused when it is too long, never cut; and it is never filled up.
        tokenizer.with_truncation(None).map_err(|cause| failed(cause.to_string()))?;
        tokenizer.with_padding(None);
        let infilling = Infilling::of(&tokenizer);
        let template = ChatTemplate::load(directory)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), fingerprint, template, infilling })
    }

    /// Over the content of tokenizer.json: workers with another one do not belong to the model.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The tokenizer, for the way back.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The id that ends a fill in the middle, where the family has another than the end of text.
    #[must_use]
    pub fn end_of_infill(&self) -> Option<u32> {
        self.infilling.as_ref().and_then(Infilling::end)
    }

    /// Token ids of `prompt`, with the hole before `suffix` when there is one. Takes time in proportion to the text:
    /// not for an async thread. Of a conversation the model's template makes at most `most_bytes` of text.
    ///
    /// # Errors
    /// [`EncodeError`] when the model cannot take such a prompt, or nothing is left of it.
    pub fn encode(&self, prompt: &Prompt, suffix: Option<&str>, most_bytes: usize) -> Result<Vec<u32>, EncodeError> {
        let ids = match (prompt, suffix) {
            (Prompt::Text(prefix), Some(suffix)) => {
                let infilling = self.infilling.as_ref().ok_or(EncodeError::NoInfilling)?;
                infilling.encode(&self.tokenizer, prefix, suffix)?
            }
            (_, Some(_)) => return Err(EncodeError::SuffixNeedsText),
            // The tokenizer would make a beginning of text of it, and nobody wants a completion of that.
            (Prompt::Text(text), None) if text.is_empty() => return Err(EncodeError::Empty),
            (Prompt::Text(text), None) => encode(&self.tokenizer, text, true)?,
            (Prompt::Tokens(ids), None) => ids.clone(),
            (Prompt::Chat(messages), None) => {
                let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
                // The template writes the special tokens itself.
                encode(&self.tokenizer, &template.render(messages, most_bytes)?, false)?
            }
        };
        if ids.is_empty() { Err(EncodeError::Empty) } else { Ok(ids) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postprocess::detokenizer::{Detokenizer, TokenDecoder};
    use crate::postprocess::samples;

    #[test]
    fn text_becomes_the_tokenizers_ids() {
        let encoder = PromptEncoder::load(&samples::codegen_directory()).unwrap();
        let ids = encoder.encode(&Prompt::Text("def add(a, b):".to_owned()), None, usize::MAX).unwrap();
        assert_eq!(encoder.tokenizer().decode(&ids, false).unwrap(), "def add(a, b):");
        assert_eq!(ids, [4299, 751, 7, 64, 11, 275, 2599]);
        let special = encoder.encode(&Prompt::Text("a<|endoftext|>".to_owned()), None, usize::MAX).unwrap();
        assert_eq!(special.last(), Some(&50256), "the tokenizer's default is kept");
    }

    /// Ids as Hugging Face's Python library gives them; spaces and tabs in runs are added tokens, from 50257 on.
    #[test]
    fn prompts_survive_the_way_there_and_back() {
        let encoder = PromptEncoder::load(&samples::codegen_directory()).unwrap();
        let decoder = Arc::new(TokenDecoder::of(encoder.tokenizer().clone()).unwrap());
        let check = |text: &str, expected: &[u32]| {
            let ids = encoder.encode(&Prompt::Text(text.to_owned()), None, usize::MAX).unwrap();
            assert_eq!(ids, expected, "{text:?}");
            let mut detokenizer = Detokenizer::new(decoder.clone());
            let streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            assert_eq!(streamed + &detokenizer.finish(), encoder.tokenizer().decode(&ids, true).unwrap());
            // A special token is an id and no text.
            assert_eq!(encoder.tokenizer().decode(&ids, false).unwrap(), text);
        };
        check(
            "def find(conn, name):\n        cur = conn.cursor()\n        cur.execute(",
            &[
                4299, 1064, 7, 37043, 11, 1438, 2599, 198, 50280, 22019, 796, 48260, 13, 66, 21471, 3419, 198, 50280,
                22019, 13, 41049, 7,
            ],
        );
        check(
            "static int copy(char *to, const char *from)\n{\n\t\tsize_t n = strlen(from);\n",
            &[
                12708, 493, 4866, 7, 10641, 1635, 1462, 11, 1500, 1149, 1635, 6738, 8, 198, 90, 198, 50294, 7857, 62,
                83, 299, 796, 965, 11925, 7, 6738, 1776, 198,
            ],
        );
        check(
            "# naïve café → 日本 🦀<|endoftext|>    print('ok')\n",
            &[
                2, 41492, 40304, 15168, 10545, 245, 98, 17312, 105, 12520, 99, 222, 50256, 50284, 4798, 10786, 482,
                11537, 198,
            ],
        );
    }

    #[test]
    fn prompts_that_a_model_cannot_take() {
        let encoder = PromptEncoder::load(&samples::codegen_directory()).unwrap();
        let check = |prompt: Prompt, suffix: Option<&str>, expected: EncodeError| {
            assert_eq!(encoder.encode(&prompt, suffix, usize::MAX), Err(expected));
        };
        check(Prompt::Text(String::new()), None, EncodeError::Empty);
        check(Prompt::Tokens(vec![]), None, EncodeError::Empty);
        check(Prompt::Chat(vec![]), None, EncodeError::NoTemplate);
        check(Prompt::Text("a".to_owned()), Some("b"), EncodeError::NoInfilling);
        check(Prompt::Tokens(vec![1]), Some("b"), EncodeError::SuffixNeedsText);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = PromptEncoder::load(Path::new("/nonexistent")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/tokenizer.json"), "{error}");
    }
}
