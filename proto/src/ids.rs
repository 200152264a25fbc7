//! Names of things that cross the wire.

use std::fmt;

use uuid::Uuid;

/// Names the sequence of a choice, whoever decodes it. Whoever knows the name may ask workers for its tokens, so it is
/// as hard to guess as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceName([u8; Self::BYTES]);

impl SequenceName {
    /// Length of a name.
    pub const BYTES: usize = 10;

    /// A name from as many bytes that nobody can guess.
    #[must_use]
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Draws a fresh name.
    #[must_use]
    pub fn random() -> Self {
        SessionId(Uuid::new_v4()).sequence()
    }

    /// Reads the bytes of a message.
    ///
    /// # Errors
    /// When there are more or fewer than [`Self::BYTES`].
    pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidName> {
        bytes.try_into().map(Self).map_err(|_| InvalidName { length: bytes.len(), expected: Self::BYTES })
    }

    /// The bytes of a message.
    #[must_use]
    pub fn to_wire(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// Names the cache of one sequence on the workers: the sequence's name, bytes that tell apart those who decode it (a
/// coordinator that is gone and the one that goes on), and the number of the seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Bytes of the name that all seats of a session share.
    pub const SHARED_BYTES: usize = 14;

    /// Draws a fresh name.
    #[must_use]
    pub fn random() -> Self {
        Self::of(SequenceName::random())
    }

    /// Draws a fresh name for a session that decodes `sequence`; no other session has it.
    #[must_use]
    pub fn of(sequence: SequenceName) -> Self {
        let mut bytes = *Uuid::new_v4().as_bytes();
        bytes[..SequenceName::BYTES].copy_from_slice(&sequence.0);
        Self(Uuid::from_bytes(bytes)).at_seat(0)
    }

    /// Stands for all sessions that decode `sequence`.
    #[must_use]
    pub fn all_of(sequence: SequenceName) -> Self {
        let mut bytes = [0; 16];
        bytes[..SequenceName::BYTES].copy_from_slice(&sequence.0);
        Self(Uuid::from_bytes(bytes))
    }

    /// What the session decodes.
    #[must_use]
    pub fn sequence(self) -> SequenceName {
        let bytes = self.0.as_bytes();
        SequenceName(std::array::from_fn(|at| bytes[at]))
    }

    /// The name of the same sequence at its seat of this number: the last two bytes. What is still on its way from a
    /// seat that was given up, however late it arrives, finds a cache of its own.
    #[must_use]
    pub fn at_seat(self, number: u16) -> Self {
        let mut bytes = *self.0.as_bytes();
        bytes[Self::SHARED_BYTES..].copy_from_slice(&number.to_be_bytes());
        Self(Uuid::from_bytes(bytes))
    }

    /// Reads the 16 bytes of a message.
    ///
    /// # Errors
    /// When there are more or fewer bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidName> {
        Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidName { length: bytes.len(), expected: 16 })
    }

    /// The 16 bytes of a message.
    #[must_use]
    pub fn to_wire(self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// A name that is too long or too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has {length} bytes; it takes exactly {expected}")]
pub struct InvalidName {
    length: usize,
    expected: usize,
}
