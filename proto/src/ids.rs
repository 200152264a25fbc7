//! Names of things that cross the wire.

use std::fmt;

use uuid::Uuid;

/// Names one sequence on the workers that cache it. Chosen at random by the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Bytes of the name that all seats of a session share.
    pub const SHARED_BYTES: usize = 14;

    /// Draws a fresh name.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
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
    pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidSessionId> {
        Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidSessionId { length: bytes.len() })
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

/// A `session` field that is not 16 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session has {length} bytes; it takes exactly 16")]
pub struct InvalidSessionId {
    length: usize,
}
