//! Names of cached tokens, so that sessions with the same beginning find the same blocks.

use sha2::{Digest as _, Sha256};

/// Keeps these hashes apart from other uses of the function.
const DOMAIN: &[u8] = b"cosec prefix, version 1";

/// Names a full block: its tokens, all tokens before them, whose they are and under which adapter they were cached.
///
/// A cryptographic hash, because tokens come from clients: nobody may find two prefixes of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixHash([u8; 32]);

impl PrefixHash {
    /// Of no tokens. Tenants and adapters never share.
    #[must_use]
    pub fn root(tenant: u64, adapter: Option<usize>) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(tenant.to_le_bytes());
        hash.update(adapter.map_or(0, |index| index as u64 + 1).to_le_bytes());
        Self(hash.finalize().into())
    }

    /// Of `tokens` after these.
    #[must_use]
    pub fn followed_by<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}
