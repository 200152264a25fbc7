//! The secret that coordinators share: it seals the ids of streams and numbers tenants, by a key of its own for each.

use std::path::{Path, PathBuf};

use cosec_proto::secret_file;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Fewest bytes of a secret that is worth the name.
const MIN_BYTES: usize = 32;

/// The secret; all keys that are derived from it are as unknown to outsiders as the secret is.
#[derive(Clone)]
pub struct SharedKey(Hmac<Sha256>);

impl SharedKey {
    /// A secret that no other coordinator has.
    #[must_use]
    pub fn random() -> Self {
        Self(keyed(&rand::random()))
    }

    /// Reads the secret from a file, without the white space at its end, and warns where others may read it.
    ///
    /// # Errors
    /// When the file cannot be read or is too short.
    pub fn read(path: &Path) -> Result<Self, InvalidSharedKey> {
        let invalid = |problem: String| InvalidSharedKey { path: path.to_owned(), problem };
        let bytes = std::fs::read(path).map_err(|cause| invalid(cause.to_string()))?;
        secret_file::warn_if_loose("api.resume_key_file", path);
        let secret = bytes.trim_ascii_end();
        if secret.len() < MIN_BYTES {
            return Err(invalid(format!("has {} bytes; a key has at least {MIN_BYTES}", secret.len())));
        }
        Ok(Self(keyed(&Sha256::digest(secret).into())))
    }

    /// The key for one purpose, which tells nothing about those for others.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Hmac<Sha256> {
        let mut derived = self.0.clone();
        derived.update(purpose.as_bytes());
        keyed(&derived.finalize().into_bytes().into())
    }
}

/// The function under a key of this length.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC's own way with a short key: padded to a block.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    Hmac::new(&block.into())
}

/// A file that holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("api.resume_key_file: {} {problem}", path.display())]
pub struct InvalidSharedKey {
    path: PathBuf,
    problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(key: &SharedKey, purpose: &str) -> Vec<u8> {
        key.derive(purpose).finalize().into_bytes().to_vec()
    }

    #[test]
    fn a_file_must_hold_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(SharedKey::read(Path::new("no/such/file")).is_err());
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(SharedKey::read(file.path()).err().unwrap().to_string().contains("has 5 bytes"));
    }

    #[test]
    fn coordinators_with_one_file_derive_the_same_keys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "k".repeat(32) + "\n").unwrap();
        let one = SharedKey::read(file.path()).unwrap();
        std::fs::write(file.path(), "k".repeat(32)).unwrap();
        let other = SharedKey::read(file.path()).unwrap();
        assert_eq!(derived(&one, "a"), derived(&other, "a"));
        assert_ne!(derived(&one, "a"), derived(&one, "b"));
        assert_ne!(derived(&one, "a"), derived(&SharedKey::random(), "a"));
    }
}
