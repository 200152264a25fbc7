//! Tells whether two models read the same token ids the same way.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// SHA-256, in hex, over the content of a `tokenizer.json`: the vocabulary by token, the merges in their order, and
/// the added tokens by id.
///
/// How the file is formatted, in which order it lists the vocabulary, and which of the two ways of writing merges it
/// uses makes no difference.
///
/// # Errors
/// [`TokenizerError`] when it is no tokenizer of the `tokenizers` library.
pub fn fingerprint(tokenizer_json: &[u8]) -> Result<String, TokenizerError> {
    let file: File = serde_json::from_slice(tokenizer_json)?;
    let mut content = Content(Sha256::new());
    match file.model.vocab {
        Vocabulary::Ids(ids) => {
            content.start("ids", ids.len());
            for (token, id) in ids {
                content.text(&token);
                content.number(id);
            }
        }
        Vocabulary::Scores(scores) => {
            content.start("scores", scores.len());
            for (token, score) in scores {
                content.text(&token);
                content.number(score.to_bits());
            }
        }
    }
    content.start("merges", file.model.merges.len());
    for merge in file.model.merges {
        let (left, right) = merge.pair();
        content.text(&left);
        content.text(&right);
    }
    let added: BTreeMap<u64, Added> = file.added_tokens.into_iter().map(|token| (token.id, token)).collect();
    content.start("added", added.len());
    for (id, token) in added {
        content.number(id);
        content.text(&token.content);
        content.number(u64::from(token.special));
    }
    Ok(format!("{:x}", content.0.finalize()))
}

/// The fingerprint of a model that comes without a tokenizer: such models agree when their vocabularies are as large.
#[must_use]
pub fn without_tokenizer(vocabulary: usize) -> String {
    let mut content = Content(Sha256::new());
    content.start("none", vocabulary);
    format!("{:x}", content.0.finalize())
}

/// A `tokenizer.json` has no vocabulary where one is expected.
#[derive(Debug, thiserror::Error)]
#[error("no tokenizer.json: {0}")]
pub struct TokenizerError(#[from] serde_json::Error);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocabulary {
    Ids(BTreeMap<String, u64>),
    /// Unigram: a token's id is its index.
    Scores(Vec<(String, f64)>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    /// Both in one string, as older versions write them.
    Joined(String),
}

impl Merge {
    fn pair(self) -> (String, String) {
        match self {
            Self::Pair(left, right) => (left, right),
            Self::Joined(joined) => match joined.split_once(' ') {
                Some((left, right)) => (left.to_owned(), right.to_owned()),
                None => (joined, String::new()),
            },
        }
    }
}

/// Hashes values with their lengths, so that no two contents run together.
struct Content(Sha256);

impl Content {
    fn start(&mut self, part: &str, entries: usize) {
        self.text(part);
        self.number(entries as u64);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_same(a: &str, b: &str, same: bool) {
        let fingerprints = [a, b].map(|json| fingerprint(json.as_bytes()).unwrap());
        assert_eq!(fingerprints[0] == fingerprints[1], same, "{a} and {b}");
    }

    #[test]
    fn content_counts_and_form_does_not() {
        let base = r#"{"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},"added_tokens":[]}"#;
        let reordered = r#"{ "model": {"merges": [["a", "b"]], "vocab": {"ab":2, "b":1, "a":0}} }"#;
        check_same(base, reordered, true);
        for other in [
            r#"{"model":{"vocab":{"a":1,"b":0,"ab":2},"merges":["a b"]}}"#,
            r#"{"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":["b a"]}}"#,
            r#"{"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":[]}}"#,
            r#"{"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},
                "added_tokens":[{"id":3,"content":"<|end|>","special":true}]}"#,
        ] {
            check_same(base, other, false);
        }
    }

    #[test]
    fn unigram_vocabularies_have_fingerprints() {
        check_same(
            r#"{"model":{"vocab":[["a",-1.5],["b",-2]]}}"#,
            r#"{"model":{"vocab":[["a",-1.5],["b",-2.0]]}}"#,
            true,
        );
        check_same(
            r#"{"model":{"vocab":[["a",-1.5],["b",-2]]}}"#,
            r#"{"model":{"vocab":[["b",-2],["a",-1.5]]}}"#,
            false,
        );
    }

    #[test]
    fn nonsense_is_an_error() {
        for nonsense in
            ["", "{}", "[]", "null", r#"{"model":{"vocab":3}}"#, r#"{"model":{"vocab":{"a":-1}}}"#, "\u{0}"]
        {
            assert!(fingerprint(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn without_tokenizer_the_size_decides() {
        assert_eq!(without_tokenizer(320), without_tokenizer(320));
        assert_ne!(without_tokenizer(320), without_tokenizer(384));
    }
}
