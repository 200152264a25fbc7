//! Streams that outlive their coordinator: every event has an id, and whoever sends the same request again with the
//! last id it saw, to any coordinator that shares the key, gets exactly the rest.
//!
//! An id says how much of every choice was sent, and names by itself the sequences of tokens that the workers decode.
//! They hold the tokens, so the next coordinator asks for them and goes on behind them. Where no worker knows them, it
//! decodes again: decoding is a function of the seed. Either way digests prove that the rest belongs to what was sent.
//! So an id stays small, and nothing is stored anywhere but in the workers' caches.

mod key;

mod position;

mod progress;

use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::key::ResumeKey;
use self::key::UnreadableId;
pub(super) use self::position::StreamOrigin;
use self::position::StreamPosition;
pub(super) use self::progress::{StreamEvent, StreamProgress};
use crate::api::error::ApiError;
use crate::continuation::Continuation;
use crate::policy::Policy;

/// The header that a client repeats the last id in, as the standard of server-sent events names it.
const HEADER: &str = "Last-Event-ID";

/// Digest of all that the answer depends on besides the seed.
pub(super) fn request_digest(route: &str, policy: Policy<'_>, body: &[u8]) -> [u8; 16] {
    let mut digest = Sha256::new();
    digest.update(format!("{route}\n{policy}\n"));
    digest.update(body);
    first(&digest.finalize())
}

fn first<const N: usize>(digest: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| digest.get(at).copied().unwrap_or(0))
}

/// What a client says it has of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReceivedEvents(StreamPosition);

impl ReceivedEvents {
    /// Reads the header, where the request has one.
    ///
    /// # Errors
    /// When its value is not an id that was made with `key` for a client of this name.
    pub(super) fn read(headers: &HeaderMap, key: &ResumeKey, tenant: &str) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let foreign = "Last-Event-ID is not the id of an event that these coordinators sent to this client; send it as \
            it was received";
        let (response, plain) = key.open(value.as_bytes(), tenant).map_err(|unreadable| match unreadable {
            UnreadableId::OtherVersion(version) => {
                let own = key::VERSION;
                let message = format!(
                    "Last-Event-ID has version {version}, these coordinators continue version {own}; send the request \
                     anew"
                );
                ApiError::field(HEADER, message)
            }
            UnreadableId::Foreign => ApiError::field(HEADER, foreign),
        })?;
        let position = StreamPosition::decode(response, &plain).map(Self);
        position.map(Some).ok_or_else(|| ApiError::field(HEADER, foreign))
    }

    /// The response that it is part of.
    pub(super) fn origin(&self) -> StreamOrigin {
        self.0.origin
    }

    /// Refuses an id of another request than that with `digest`.
    ///
    /// # Errors
    /// Status 409.
    pub(super) fn must_be_of(&self, digest: [u8; 16]) -> Result<(), ApiError> {
        if self.0.origin.request == digest {
            return Ok(());
        }
        let message =
            "Last-Event-ID belongs to another request; repeat the same body, to coordinators with the same defaults";
        Err(ApiError::http_only(StatusCode::CONFLICT, message).of(HEADER))
    }
}

/// How the answer with this id is found again at the workers, and what the client has of it.
pub(super) fn continuation(key: &ResumeKey, response: Uuid, received: Option<&ReceivedEvents>) -> Continuation {
    Continuation {
        names: key.sequence_names(response),
        choices: received.map(|received| received.0.receipts()).unwrap_or_default(),
        degraded: received.is_some_and(|received| received.0.degraded),
    }
}

#[cfg(test)]
mod tests;
