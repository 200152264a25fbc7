//! The key that seals ids and names the choices of an answer.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;
use uuid::Uuid;

use crate::continuation::SequenceNames;
use crate::shared_key::{SharedKey, keyed};

/// First byte of an id. It grows when the parts of an id, or what its digests cover, change.
pub(super) const VERSION: u8 = 3;

/// Bytes of an id before what is sealed: version, the answer's id, nonce.
const HEAD: usize = 1 + 16 + NONCE_LEN;

/// What coordinators that continue each other's streams share.
#[derive(Clone)]
pub struct ResumeKey(Hmac<Sha256>);

impl ResumeKey {
    /// The key that coordinators with this secret have.
    #[must_use]
    pub fn new(secret: &SharedKey) -> Self {
        Self(secret.derive("streams"))
    }

    /// Names of the choices of an answer.
    pub(super) fn sequence_names(&self, response: Uuid) -> SequenceNames {
        SequenceNames::new(keyed(&self.derived("sequence names", response)))
    }

    /// Seals the ids of the events of an answer to this client.
    pub(super) fn seal(&self, response: Uuid, tenant: &str) -> IdSeal {
        let key = UnboundKey::new(&AES_256_GCM, &self.derived("event ids", response)).map(LessSafeKey::new).ok();
        IdSeal { key, response, tenant: tenant.to_owned() }
    }

    /// Opens an id that a client with this name has received: the answer's id and what was sealed.
    ///
    /// # Errors
    /// [`UnreadableId`].
    pub(super) fn open(&self, text: &[u8], tenant: &str) -> Result<(Uuid, Vec<u8>), UnreadableId> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| UnreadableId::Foreign)?;
        let (head, sealed) = bytes.split_at_checked(HEAD).ok_or(UnreadableId::Foreign)?;
        if head[0] != VERSION {
            return Err(UnreadableId::OtherVersion(head[0]));
        }
        let response = Uuid::from_slice(&head[1..17]).map_err(|_| UnreadableId::Foreign)?;
        let opened = self.seal(response, tenant).open(&head[17..], sealed);
        opened.map(|plain| (response, plain)).ok_or(UnreadableId::Foreign)
    }

    /// A secret for one purpose and one answer. So nonces drawn at random do not meet, however many events there are.
    fn derived(&self, purpose: &str, response: Uuid) -> [u8; 32] {
        let mut secret = self.0.clone();
        secret.update(purpose.as_bytes());
        secret.update(response.as_bytes());
        secret.finalize().into_bytes().into()
    }
}

/// An id that cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnreadableId {
    /// It says that it was made by another version of this program.
    OtherVersion(u8),
    /// It was made with another key, for another client, or made up.
    Foreign,
}

/// Seals the ids of one answer: its client cannot read them, and nobody can change or make one.
pub(super) struct IdSeal {
    /// Never absent: keys of this length are taken.
    key: Option<LessSafeKey>,
    response: Uuid,
    tenant: String,
}

impl IdSeal {
    /// The text of an id.
    pub(super) fn seal(&self, mut plain: Vec<u8>) -> String {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let aad = Aad::from(self.bound_to());
        let sealed = self
            .key
            .as_ref()
            .map(|key| key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut plain));
        // It fails for gigabytes only; a client that sends back an id of nothing is refused.
        if !matches!(sealed, Some(Ok(()))) {
            plain.clear();
        }
        let head = [VERSION].into_iter().chain(*self.response.as_bytes()).chain(nonce);
        URL_SAFE_NO_PAD.encode(head.chain(plain).collect::<Vec<u8>>())
    }

    fn open(&self, nonce: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = sealed.to_vec();
        let opened = self.key.as_ref()?.open_in_place(nonce, Aad::from(self.bound_to()), &mut bytes);
        let length = opened.ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }

    /// What an id is valid with only.
    fn bound_to(&self) -> Vec<u8> {
        [&[VERSION], self.tenant.as_bytes()].concat()
    }
}
