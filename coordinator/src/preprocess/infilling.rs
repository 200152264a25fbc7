//! Fill in the middle: the code before and after a hole as one prompt.

use tokenizers::Tokenizer;

use super::error::EncodeError;
use super::token_ids::encode;

/// How a family writes a hole: all in the order prefix, suffix, middle.
struct InfillingFamily {
    prefix: &'static str,
    suffix: &'static str,
    middle: &'static str,
    /// Ends the middle, where that is not the end of text.
    end: Option<&'static str>,
    /// Whether the tokenizer puts a space before a text's first word, which does not belong after a hole.
    leading_space: bool,
}

#[rustfmt::skip]
const FAMILIES: [InfillingFamily; 5] = [
    // StarCoder, StarCoder2.
    InfillingFamily { prefix: "<fim_prefix>", suffix: "<fim_suffix>", middle: "<fim_middle>", end: None, leading_space: false },
    // SantaCoder.
    InfillingFamily { prefix: "<fim-prefix>", suffix: "<fim-suffix>", middle: "<fim-middle>", end: None, leading_space: false },
    // CodeLlama.
    InfillingFamily { prefix: "▁<PRE>", suffix: "▁<SUF>", middle: "▁<MID>", end: Some("▁<EOT>"), leading_space: true },
    // DeepSeek-Coder.
    InfillingFamily { prefix: "<｜fim▁begin｜>", suffix: "<｜fim▁hole｜>", middle: "<｜fim▁end｜>", end: None, leading_space: false },
    // Qwen2.5-Coder.
    InfillingFamily { prefix: "<|fim_prefix|>", suffix: "<|fim_suffix|>", middle: "<|fim_middle|>", end: None, leading_space: false },
];

/// Stands before a suffix while it is tokenized, so that the leading space goes to it (as in CodeLlama's own code).
const SHIELD: &str = "☺";

/// The tokens of the family that a tokenizer belongs to.
pub struct Infilling {
    prefix: u32,
    suffix: u32,
    middle: u32,
    end: Option<u32>,
    leading_space: bool,
}

impl Infilling {
    /// Looks for the tokens in the vocabulary; `None` when no family's are there.
    #[must_use]
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        FAMILIES.iter().find_map(|family| {
            Some(Self {
                prefix: tokenizer.token_to_id(family.prefix)?,
                suffix: tokenizer.token_to_id(family.suffix)?,
                middle: tokenizer.token_to_id(family.middle)?,
                end: family.end.and_then(|end| tokenizer.token_to_id(end)),
                leading_space: family.leading_space,
            })
        })
    }

    /// The id that ends the middle, where that is not the end of text.
    #[must_use]
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// The prompt whose continuation is the code between `prefix` and `suffix`.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, tokenizer: &Tokenizer, prefix: &str, suffix: &str) -> Result<Vec<u32>, EncodeError> {
        // What the tokenizer puts before any text, such as a begin-of-sequence token.
        let mut ids = encode(tokenizer, "", true)?;
        ids.push(self.prefix);
        ids.extend(encode(tokenizer, prefix, false)?);
        ids.push(self.suffix);
        if self.leading_space {
            let shield = encode(tokenizer, SHIELD, false)?.len();
            let shielded = encode(tokenizer, &format!("{SHIELD}{suffix}"), false)?;
            ids.extend(shielded.get(shield..).unwrap_or_default());
        } else {
            ids.extend(encode(tokenizer, suffix, false)?);
        }
        ids.push(self.middle);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postprocess::samples;

    #[test]
    fn families_are_found_and_written() {
        for family in &FAMILIES {
            let added = [Some(family.prefix), Some(family.suffix), Some(family.middle), family.end];
            let added: Vec<&str> = added.into_iter().flatten().collect();
            let tokenizer =
                if family.leading_space { samples::sentencepiece(&added) } else { samples::byte_level(&added) };
            let infilling = Infilling::of(&tokenizer).unwrap();
            assert_eq!(infilling.end().is_some(), family.end.is_some());
            let ids = infilling.encode(&tokenizer, "ab", "b").unwrap();
            let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
            let expected: &[&str] = if family.leading_space {
                &[family.prefix, "▁", "a", "b", family.suffix, "b", family.middle]
            } else {
                &[family.prefix, "a", "b", family.suffix, "b", family.middle]
            };
            assert_eq!(pieces, expected);
        }
        assert!(Infilling::of(&samples::byte_level(&[])).is_none());
    }
}
