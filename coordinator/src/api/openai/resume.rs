//! Streams that outlive their coordinator: every event has an id, and whoever sends the same request again with the
//! last id it saw, to any coordinator that shares the key, gets exactly the rest.
//!
//! An id names the request's random numbers and how much of every choice was sent. Decoding is a function of the
//! seed, so the rest is found by decoding again and keeping back what was sent; a digest of it proves that it is the
//! same. So an id stays small and nothing is stored anywhere, at the price of the time to decode up to it.

use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::api::policy::DefaultSettings;
use crate::shared_key::SharedKey;

/// The header that a client repeats the last id in, as the standard of server-sent events names it.
const HEADER: &str = "Last-Event-ID";

/// First byte of an id. It grows when the parts of an id, or what its digests cover, change.
const VERSION: u8 = 2;

/// Bytes of an id's parts.
const HEAD: usize = 1 + 16 + 8 + 8 + 16;
const SLOT: usize = 4 + 8;
const TAG: usize = 16;

/// What coordinators that continue each other's streams share.
#[derive(Clone)]
pub struct ResumeKey(Hmac<Sha256>);

impl ResumeKey {
    /// The key that coordinators with this secret have.
    #[must_use]
    pub fn new(secret: &SharedKey) -> Self {
        Self(secret.derive("event ids"))
    }

    fn tag(&self, message: &[u8]) -> Hmac<Sha256> {
        let mut tag = self.0.clone();
        tag.update(message);
        tag
    }
}

/// Which response a stream is part of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StreamOrigin {
    /// Of the first request.
    pub(super) id: Uuid,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) seed: u64,
    /// Digest of the request.
    pub(super) request: [u8; 16],
}

/// Digest of all that the answer depends on besides the seed.
pub(super) fn request_digest(route: &str, defaults: &DefaultSettings, body: &[u8]) -> [u8; 16] {
    // Named one by one, so that a new field does not break the streams of an earlier version.
    let DefaultSettings { rule, expert_temperature, expert_top_p, rule_parameters } = defaults;
    let mut digest = Sha256::new();
    digest.update(format!("{route}\nrule={rule} temperature={expert_temperature} top_p={expert_top_p}"));
    for (name, value) in &rule_parameters.0 {
        digest.update(format!(" {name}={value}"));
    }
    digest.update("\n");
    digest.update(body);
    first(&digest.finalize())
}

fn first<const N: usize>(digest: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| digest.get(at).copied().unwrap_or(0))
}

/// Events of one choice: how many, and a digest of their content.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct ChoiceProgress {
    events: u32,
    digest: [u8; 8],
}

impl ChoiceProgress {
    fn advance(&mut self, content: &Value) {
        let mut digest = Sha256::new();
        digest.update(self.digest);
        digest.update(content.to_string());
        *self = Self { events: self.events + 1, digest: first(&digest.finalize()) };
    }
}

/// What a client says it has of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReceivedEvents {
    pub(super) origin: StreamOrigin,
    slots: Vec<ChoiceProgress>,
}

impl ReceivedEvents {
    /// Reads the header, where the request has one.
    ///
    /// # Errors
    /// When its value is not an id that `key` was used for.
    pub(super) fn read(headers: &HeaderMap, key: &ResumeKey) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let message = Self::authentic(value.as_bytes(), key);
        if let Some(&version) = message.as_ref().and_then(|message| message.first())
            && version != VERSION
        {
            let message = format!(
                "Last-Event-ID has version {version}, these coordinators continue version {VERSION}; send the request anew"
            );
            return Err(ApiError::field(HEADER, message));
        }
        let foreign = "Last-Event-ID is not the id of an event of these coordinators; send it as it was received";
        let received = message.and_then(|message| Self::parse(&message));
        received.map(Some).ok_or_else(|| ApiError::field(HEADER, foreign))
    }

    /// The parts of an id that `key` was used for.
    fn authentic(text: &[u8], key: &ResumeKey) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let tag = bytes.split_off(bytes.len().checked_sub(TAG)?);
        key.tag(&bytes).verify_truncated_left(&tag).ok()?;
        Some(bytes)
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let (head, slots) = message.split_at_checked(HEAD)?;
        if slots.len() % SLOT != 0 {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let origin = StreamOrigin {
            id: Uuid::from_slice(head.get(1..17)?).ok()?,
            created: number(17)?,
            seed: number(25)?,
            request: head.get(33..49)?.try_into().ok()?,
        };
        let slot = |bytes: &[u8]| {
            let (events, digest) = bytes.split_at_checked(4)?;
            Some(ChoiceProgress {
                events: u32::from_le_bytes(events.try_into().ok()?),
                digest: digest.try_into().ok()?,
            })
        };
        Some(Self { origin, slots: slots.chunks(SLOT).map(slot).collect::<Option<_>>()? })
    }

    /// Refuses an id of another request than that with `digest`.
    ///
    /// # Errors
    /// Status 409.
    pub(super) fn must_be_of(&self, digest: [u8; 16]) -> Result<(), ApiError> {
        if self.origin.request == digest {
            return Ok(());
        }
        let message =
            "Last-Event-ID belongs to another request; repeat the same body, to coordinators with the same defaults";
        Err(ApiError::http_only(StatusCode::CONFLICT, message).of(HEADER))
    }
}

/// How much of an answer was sent.
pub(super) struct StreamProgress {
    key: ResumeKey,
    origin: StreamOrigin,
    slots: Vec<ChoiceProgress>,
    /// What the client has already; empty for a stream from its beginning.
    received: Vec<ChoiceProgress>,
}

impl StreamProgress {
    /// The beginning of an answer of `parts` parts that are in order each, of which the client has what `received`
    /// says.
    pub(super) fn new(key: ResumeKey, origin: StreamOrigin, parts: usize, received: Option<ReceivedEvents>) -> Self {
        let received = received.map(|received| received.slots).unwrap_or_default();
        Self { key, origin, slots: vec![ChoiceProgress::default(); parts], received }
    }

    /// Counts the next event of a part; says whether the client has yet to get it.
    ///
    /// # Errors
    /// When what was decoded is not what the client has: then nothing may follow it.
    pub(super) fn advance(&mut self, part: usize, content: &Value) -> Result<bool, ApiError> {
        let Some(slot) = self.slots.get_mut(part) else { return Ok(true) };
        slot.advance(content);
        match self.received.get(part) {
            Some(received) if slot.events == received.events && slot.digest != received.digest => {
                let message =
                    "the answer cannot be continued: it comes out different now, by another model or setting";
                Err(ApiError::http_only(StatusCode::CONFLICT, message).of(HEADER))
            }
            received => Ok(received.is_none_or(|received| slot.events > received.events)),
        }
    }

    /// The id of the event that was counted last.
    pub(super) fn id(&self) -> String {
        let StreamOrigin { id, created, seed, request } = self.origin;
        let mut bytes = vec![VERSION];
        bytes.extend(id.as_bytes());
        bytes.extend(created.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        bytes.extend(request);
        for (at, slot) in self.slots.iter().enumerate() {
            // While an answer is decoded again, a part may not have reached what the client has of it.
            let furthest = self.received.get(at).filter(|received| received.events > slot.events).unwrap_or(slot);
            bytes.extend(furthest.events.to_le_bytes());
            bytes.extend(furthest.digest);
        }
        let tag = self.key.tag(&bytes).finalize().into_bytes();
        bytes.extend(&tag[..TAG]);
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn random_key() -> ResumeKey {
        ResumeKey::new(&SharedKey::random())
    }

    fn origin() -> StreamOrigin {
        StreamOrigin {
            id: Uuid::from_u128(7),
            created: 8,
            seed: u64::MAX,
            request: request_digest("/", &DefaultSettings::default(), b"{}"),
        }
    }

    fn received(id: &str, key: &ResumeKey) -> Option<ReceivedEvents> {
        let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), id.parse().unwrap())]);
        ReceivedEvents::read(&headers, key).ok().flatten()
    }

    #[test]
    fn an_id_of_another_version_is_refused_by_its_version() {
        let key = random_key();
        let mut bytes = URL_SAFE_NO_PAD.decode(StreamProgress::new(key.clone(), origin(), 1, None).id()).unwrap();
        bytes.truncate(bytes.len() - TAG);
        bytes[0] = VERSION - 1;
        let tag = key.tag(&bytes).finalize().into_bytes();
        bytes.extend(&tag[..TAG]);
        let id = URL_SAFE_NO_PAD.encode(&bytes);
        let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), id.parse().unwrap())]);
        let refusal = format!("{:?}", ReceivedEvents::read(&headers, &key).unwrap_err());
        assert!(refusal.contains("has version 1, these coordinators continue version 2"), "{refusal}");
    }

    #[test]
    fn what_was_sent_is_kept_back_and_the_rest_goes_out() {
        let key = random_key();
        let mut first = StreamProgress::new(key.clone(), origin(), 2, None);
        for (part, content) in [(0, "a"), (1, "x"), (0, "b")] {
            assert!(first.advance(part, &json!(content)).unwrap());
        }
        let seen = received(&first.id(), &key).unwrap();
        assert_eq!(seen.origin, origin());
        let mut second = StreamProgress::new(key.clone(), seen.origin, 2, Some(seen));
        let sent = |progress: &mut StreamProgress, part, content| progress.advance(part, &json!(content)).unwrap();
        assert!(!sent(&mut second, 0, "a"));
        assert!(!sent(&mut second, 0, "b"));
        assert!(sent(&mut second, 0, "c"));
        // A client lost again before the other part caught up has not lost that part.
        let again = received(&second.id(), &key).unwrap();
        let mut third = StreamProgress::new(key, again.origin, 2, Some(again));
        assert!(!sent(&mut third, 1, "x"));
        assert!(sent(&mut third, 1, "y"));
        for content in ["a", "b", "c"] {
            assert!(!sent(&mut third, 0, content));
        }
    }

    #[test]
    fn another_answer_is_not_put_behind_what_was_sent() {
        let key = random_key();
        let mut first = StreamProgress::new(key.clone(), origin(), 1, None);
        first.advance(0, &json!("a")).unwrap();
        first.advance(0, &json!("b")).unwrap();
        let seen = received(&first.id(), &key).unwrap();
        let mut second = StreamProgress::new(key, origin(), 1, Some(seen));
        assert!(!second.advance(0, &json!("z")).unwrap());
        assert!(second.advance(0, &json!("b")).is_err());
    }

    proptest! {
        #[test]
        fn no_forged_id_is_taken(at in 0usize..200, change in 1u8..=255, cut in 0usize..100) {
            let key = random_key();
            let id = StreamProgress::new(key.clone(), origin(), 3, None).id();
            prop_assert!(received(&id, &key).is_some());
            prop_assert!(received(&id, &random_key()).is_none());
            let mut bytes = URL_SAFE_NO_PAD.decode(&id).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= change;
            prop_assert!(received(&URL_SAFE_NO_PAD.encode(&bytes), &key).is_none());
            prop_assert!(received(&id[..cut.min(id.len() - 1)], &key).is_none());
        }
    }
}
