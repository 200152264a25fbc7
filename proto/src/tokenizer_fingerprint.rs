//! Tells whether two models read the same token ids the same way, and where they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Differences of one kind that a description lists; the others are counted.
const LISTED: usize = 4;

/// Most characters of what stands at one place of a tokenizer, in a description.
const SHOWN: usize = 48;

/// SHA-256, in hex, over the [`Content`] of a `tokenizer.json`.
///
/// # Errors
/// As [`Content::parse`].
pub fn fingerprint(tokenizer_json: &[u8]) -> Result<String, TokenizerError> {
    Ok(Content::parse(tokenizer_json)?.fingerprint())
}

/// The fingerprint of a model that comes without a tokenizer: such models agree when their vocabularies are as large.
#[must_use]
pub fn without_tokenizer(vocabulary: usize) -> String {
    let mut digest = Sha256::new();
    digest.update("without tokenizer");
    digest.update((vocabulary as u64).to_le_bytes());
    format!("{:x}", digest.finalize())
}

/// What a tokenizer's ids mean: the vocabulary by id, the merges in their order, and the added tokens by id.
///
/// How the file is formatted, in which order it lists the vocabulary, and which of the two ways of writing merges it
/// uses makes no difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    parts: [Part; 3],
}

/// What stands at each place, spelled so that different things have different spellings.
type Part = BTreeMap<u64, String>;

/// What the parts of a content are called.
const PARTS: [&str; 3] = ["token ids", "merges", "added or special tokens"];

impl Content {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] when it is no tokenizer of the `tokenizers` library.
    pub fn parse(tokenizer_json: &[u8]) -> Result<Self, TokenizerError> {
        let File { model, added_tokens } = serde_json::from_slice(tokenizer_json)?;
        let vocabulary = match model.vocab {
            Vocabulary::Ids(ids) => by_id(ids),
            Vocabulary::Scores(scores) => {
                (0..).zip(scores.into_iter().map(|(token, score)| format!("{token:?} of score {score:?}"))).collect()
            }
        };
        let merge = |merge: Merge| {
            let (left, right) = merge.pair();
            format!("{left:?} with {right:?}")
        };
        let merges = (0..).zip(model.merges.into_iter().map(merge)).collect();
        let kind = |special| if special { "special" } else { "added" };
        let added =
            added_tokens.into_iter().map(|token| (token.id, format!("{:?}, {}", token.content, kind(token.special))));
        Ok(Self { parts: [vocabulary, merges, added.collect()] })
    }

    /// SHA-256 over everything, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for part in &self.parts {
            digest.update((part.len() as u64).to_le_bytes());
            for (place, spelled) in part {
                digest.update(place.to_le_bytes());
                digest.update((spelled.len() as u64).to_le_bytes());
                digest.update(spelled);
            }
        }
        format!("{:x}", digest.finalize())
    }

    /// Says in what `self` and `other` differ, a few of each kind by name and all of them by number; `None` when their
    /// fingerprints are equal.
    #[must_use]
    pub fn differences(&self, other: &Self, [own_name, other_name]: [&str; 2]) -> Option<String> {
        let mut description = String::new();
        for ((own, other), name) in self.parts.iter().zip(&other.parts).zip(PARTS) {
            let places: BTreeSet<&u64> = own.keys().chain(other.keys()).collect();
            let differ = |place: &&u64| own.get(place) != other.get(place);
            let differing: Vec<&u64> = places.into_iter().filter(differ).collect();
            if differing.is_empty() {
                continue;
            }
            let list = differing.iter().take(LISTED).map(|&place| {
                format!(
                    "{place} is {} in {own_name} and {} in {other_name}",
                    shown(own.get(place)),
                    shown(other.get(place))
                )
            });
            let list = list.collect::<Vec<_>>().join(", ");
            let more = if differing.len() > LISTED { ", …" } else { "" };
            let before = if description.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(description, "{before}{} {name} differ: {list}{more}", differing.len());
        }
        (!description.is_empty()).then_some(description)
    }
}

/// All tokens of every id; a sound vocabulary has one each.
fn by_id(ids: BTreeMap<String, u64>) -> Part {
    let mut part = Part::new();
    for (token, id) in ids {
        let spelled = part.entry(id).or_default();
        let before = if spelled.is_empty() { "" } else { " and " };
        let _ = write!(spelled, "{before}{token:?}");
    }
    part
}

fn shown(spelled: Option<&String>) -> String {
    let Some(spelled) = spelled else { return "absent".to_owned() };
    match spelled.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &spelled[..end]),
        None => spelled.clone(),
    }
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

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::{Value, json};

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

    /// Files of few tokens, so that two of them are often alike.
    fn files() -> impl Strategy<Value = Value> {
        let token = || "[ab\"]{1,2}";
        let ids = btree_map(token(), 0u64..3, 0..3).prop_map(|ids| json!(ids));
        let scores = vec((token(), 0i8..2), 0..2).prop_map(|scores| json!(scores));
        let merges = vec((token(), token()), 0..2);
        let added = vec((0u64..2, token(), any::<bool>()), 0..2);
        (prop_oneof![3 => ids, 1 => scores], merges, added).prop_map(|(vocab, merges, added)| {
            let added: Vec<Value> = added
                .into_iter()
                .map(|(id, content, special)| json!({"id": id, "content": content, "special": special}))
                .collect();
            json!({"model": {"vocab": vocab, "merges": merges}, "added_tokens": added})
        })
    }

    proptest! {
        #[test]
        fn fingerprints_are_equal_where_nothing_differs(one in files(), other in files()) {
            let contents = [&one, &other].map(|file| Content::parse(file.to_string().as_bytes()).unwrap());
            let same = contents[0].fingerprint() == contents[1].fingerprint();
            prop_assert_eq!(contents[0].differences(&contents[1], ["a", "b"]).is_none(), same);
            prop_assert_eq!(contents[0] == contents[1], same);
            prop_assert_eq!(contents[0].differences(&contents[0], ["a", "b"]), None);
        }
    }

    #[test]
    fn differences_are_named_and_counted() {
        let parse = |json: Value| Content::parse(json.to_string().as_bytes()).unwrap();
        let long = "x".repeat(100);
        let base = parse(json!({
            "model": {"vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}, "merges": ["a b", "c d"]},
            "added_tokens": [{"id": 7, "content": "<|end|>", "special": true}],
        }));
        let expert = parse(json!({
            "model": {"vocab": {"a": 0, "c": 1, "b": 2, "D": 3, "E": 4, long: 6}, "merges": [["a", "b"]]},
            "added_tokens": [{"id": 7, "content": "<|end|>"}],
        }));
        let differences = base.differences(&expert, ["the base", "the expert"]).unwrap();
        assert_eq!(
            differences,
            "6 token ids differ: 1 is \"b\" in the base and \"c\" in the expert, \
             2 is \"c\" in the base and \"b\" in the expert, 3 is \"d\" in the base and \"D\" in the expert, \
             4 is \"e\" in the base and \"E\" in the expert, …; \
             1 merges differ: 1 is \"c\" with \"d\" in the base and absent in the expert; \
             1 added or special tokens differ: 7 is \"<|end|>\", special in the base and \"<|end|>\", added in the expert"
        );
        let nothing = parse(json!({"model": {"vocab": {}}}));
        let long =
            nothing.differences(&parse(json!({"model": {"vocab": {"x".repeat(100): 0}}})), ["a", "b"]).unwrap();
        assert!(
            long.len() < 100 && long.contains("0 is absent in a and \"xxx") && long.contains("xxx… in b"),
            "{long}"
        );
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
