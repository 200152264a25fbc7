//! What a client that lost its coordinator has of an answer already, and by which names the workers know the choices.

use cosec_proto::SequenceName;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Digest of the new tokens of a choice.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenDigest(Sha256);

impl TokenDigest {
    /// Of all of `tokens`.
    fn of(tokens: &[u32]) -> Self {
        let mut digest = Self::default();
        tokens.iter().for_each(|&id| digest.add(id));
        digest
    }

    pub(crate) fn add(&mut self, id: u32) {
        self.0.update(id.to_le_bytes());
    }

    /// Tells tokens apart that come out different by accident: it travels sealed.
    pub(crate) fn value(&self) -> [u8; 4] {
        let digest = self.0.clone().finalize();
        std::array::from_fn(|at| digest[at])
    }
}

/// The new tokens of a choice that a client has. They need not be decoded again where a worker still knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedTokens {
    /// How many; at least 1.
    pub(crate) count: u32,
    /// The last of them: a worker may have been told another one in its place, which was rejected.
    pub(crate) last: u32,
    /// See [`TokenDigest::value`].
    pub(crate) digest: [u8; 4],
}

impl ReceivedTokens {
    /// Describes these tokens; `None` without any.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Option<Self> {
        let (&last, count) = (tokens.last()?, u32::try_from(tokens.len()).ok()?);
        Some(Self { count, last, digest: TokenDigest::of(tokens).value() })
    }

    /// Tokens before the last one.
    pub(crate) fn before_last(&self) -> u32 {
        self.count.saturating_sub(1)
    }

    /// All of them, if `before_last` are those before the last one.
    pub(crate) fn completed(&self, mut before_last: Vec<u32>) -> Option<Vec<u32>> {
        before_last.push(self.last);
        (Self::of(&before_last).as_ref() == Some(self)).then_some(before_last)
    }
}

/// What a client has of one choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChoiceReceipt {
    /// Some of it, or nothing.
    Part(Option<ReceivedTokens>),
    /// All of it, its end included.
    Whole {
        /// New tokens, for the usage.
        tokens: u32,
    },
}

/// Names of the choices of one answer, which only coordinators with the same key know.
#[derive(Clone)]
pub(crate) struct SequenceNames(Hmac<Sha256>);

impl SequenceNames {
    /// Derives the names from a secret of the answer.
    pub(crate) fn new(secret: Hmac<Sha256>) -> Self {
        Self(secret)
    }

    /// Of the choice with this number.
    pub(crate) fn of(&self, choice: u32) -> SequenceName {
        let mut name = self.0.clone();
        name.update(&choice.to_le_bytes());
        let name = name.finalize().into_bytes();
        SequenceName::new(std::array::from_fn(|at| name[at]))
    }
}

/// How an answer is found again, and how much of it a client has.
pub(crate) struct Continuation {
    pub(crate) names: SequenceNames,
    /// By choice; empty at the beginning of an answer.
    pub(crate) choices: Vec<ChoiceReceipt>,
    /// Whether the base went on alone somewhere in what the client has.
    pub(crate) degraded: bool,
}

impl Continuation {
    /// What the client has of a choice.
    pub(crate) fn receipt(&self, choice: u32) -> ChoiceReceipt {
        self.choices.get(choice as usize).copied().unwrap_or(ChoiceReceipt::Part(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tokens_that_were_received_complete_them() {
        assert_eq!(ReceivedTokens::of(&[]), None);
        let received = ReceivedTokens::of(&[5, 6, 7]).unwrap();
        assert_eq!(received.completed(vec![5, 6]), Some(vec![5, 6, 7]));
        for other in [vec![5], vec![5, 7], vec![6, 5], vec![5, 6, 7], vec![]] {
            assert_eq!(received.completed(other), None);
        }
        assert_eq!(ReceivedTokens::of(&[9]).unwrap().completed(Vec::new()), Some(vec![9]));
    }
}
