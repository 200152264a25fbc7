use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use super::position::PartPosition;
use super::*;
use crate::continuation::{ChoiceReceipt, ReceivedTokens};
use crate::policy::{OperatorPolicy, TenantPolicy};
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::FinishReason;
use crate::shared_key::SharedKey;

fn random_key() -> ResumeKey {
    ResumeKey::new(&SharedKey::random())
}

fn origin() -> StreamOrigin {
    StreamOrigin {
        id: Uuid::from_u128(7),
        created: 1_800_000_000,
        seed: u64::MAX,
        request: request_digest("/", OperatorPolicy::default().of("demo", &TenantPolicy::default()), b"{}"),
    }
}

fn progress(key: &ResumeKey, parts: usize, received: Option<ReceivedEvents>) -> StreamProgress {
    StreamProgress::new(key, "alpha", origin(), parts, received)
}

fn read(id: &str, key: &ResumeKey, tenant: &str) -> Result<Option<ReceivedEvents>, ApiError> {
    let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), id.parse().unwrap())]);
    ReceivedEvents::read(&headers, key, tenant)
}

fn received(id: &str, key: &ResumeKey) -> Option<ReceivedEvents> {
    read(id, key, "alpha").ok().flatten()
}

fn says(text: &str, ids: &[u32]) -> StreamEvent {
    let token = |&id: &u32| PlacedToken { id, offset: 0, score: None, decision: None };
    StreamEvent::Delta(TextDelta { text: text.to_owned(), tokens: ids.iter().map(token).collect() })
}

fn ends(tokens: u32) -> StreamEvent {
    StreamEvent::Finished { reason: FinishReason::Stop, tokens }
}

#[test]
fn what_was_sent_is_kept_back_and_the_rest_goes_out() {
    let key = random_key();
    let mut first = progress(&key, 2, None);
    for (part, text) in [(0, "a"), (1, "x"), (0, "b")] {
        assert!(first.advance(part, &says(text, &[1])).unwrap());
    }
    let seen = received(&first.id(true), &key).unwrap();
    assert_eq!(seen.origin(), origin());
    let again = continuation(&key, origin().id, Some(&seen));
    assert!(again.degraded);
    assert_eq!(again.receipt(0), ChoiceReceipt::Part(ReceivedTokens::of(&[1, 1])));
    assert_eq!(again.receipt(9), ChoiceReceipt::Part(None));
    let mut second = progress(&key, 2, Some(seen));
    let sent = |progress: &mut StreamProgress, part, text| progress.advance(part, &says(text, &[1])).unwrap();
    assert!(!sent(&mut second, 0, "a"));
    assert!(!sent(&mut second, 0, "b"));
    assert!(sent(&mut second, 0, "c"));
    // A client lost again before the other part caught up has not lost that part.
    let again = received(&second.id(false), &key).unwrap();
    let mut third = progress(&key, 2, Some(again));
    assert!(!sent(&mut third, 1, "x"));
    assert!(sent(&mut third, 1, "y"));
    for text in ["a", "b", "c"] {
        assert!(!sent(&mut third, 0, text));
    }
}

#[test]
fn another_answer_is_not_put_behind_what_was_sent() {
    let key = random_key();
    let mut first = progress(&key, 1, None);
    first.advance(0, &says("a", &[1])).unwrap();
    first.advance(0, &says("b", &[2])).unwrap();
    let seen = received(&first.id(false), &key).unwrap();
    for other in [says("z", &[1]), says("a", &[3])] {
        let mut second = progress(&key, 1, Some(seen.clone()));
        assert!(!second.advance(0, &other).unwrap());
        assert!(second.advance(0, &says("b", &[2])).is_err());
    }
}

#[test]
fn a_choice_that_was_sent_to_its_end_is_not_begun_again() {
    let key = random_key();
    let mut first = progress(&key, 2, None);
    first.advance(0, &StreamEvent::Opening(Value::Null)).unwrap();
    first.advance(0, &says("a", &[4])).unwrap();
    first.advance(0, &ends(3)).unwrap();
    let seen = received(&first.id(false), &key).unwrap();
    assert_eq!(continuation(&key, origin().id, Some(&seen)).receipt(0), ChoiceReceipt::Whole { tokens: 3 });
    let mut second = progress(&key, 2, Some(seen));
    assert!(!second.advance(0, &StreamEvent::Opening(Value::Null)).unwrap());
    assert!(second.advance(1, &StreamEvent::Opening(Value::Null)).unwrap());
    let again = received(&second.id(false), &key).unwrap();
    assert_eq!(continuation(&key, origin().id, Some(&again)).receipt(0), ChoiceReceipt::Whole { tokens: 3 });
}

#[test]
fn an_echoed_prompt_is_no_new_token() {
    let key = random_key();
    let mut stream = progress(&key, 1, None).echoing(true);
    stream.advance(0, &says("prompt", &[7, 8])).unwrap();
    stream.advance(0, &says("new", &[9])).unwrap();
    let seen = received(&stream.id(false), &key).unwrap();
    let again = continuation(&key, origin().id, Some(&seen));
    assert_eq!(again.receipt(0), ChoiceReceipt::Part(ReceivedTokens::of(&[9])));
}

/// Ids after 2,000 tokens of a vocabulary of 150,000, with usage.
#[test]
fn ids_are_short() {
    let key = random_key();
    let length = |choices: usize| {
        let mut stream = progress(&key, choices + 1, None);
        for choice in 0..choices {
            (0..2_000).for_each(|id| assert!(stream.advance(choice, &says("text", &[140_000 + id])).unwrap()));
        }
        stream.id(false).len()
    };
    let lengths = [1, 16, 128].map(length);
    assert!(lengths[0] < 200 && lengths[1] < 1000 && lengths[2] < 3000, "{lengths:?}");
}

#[test]
fn an_id_is_bound_to_its_tenant_and_tells_nothing() {
    let key = random_key();
    let mut stream = progress(&key, 1, None);
    stream.advance(0, &says("a", &[1])).unwrap();
    let (id, same) = (stream.id(false), stream.id(false));
    assert!(read(&id, &key, "alpha").unwrap().is_some());
    for other in ["beta", "", "alph", "alpha2"] {
        assert!(format!("{:?}", read(&id, &key, other).unwrap_err()).contains("sent to this client"));
    }
    assert_ne!(id, same, "no two ids have a nonce in common");
    let bytes = URL_SAFE_NO_PAD.decode(&id).unwrap();
    for secret in [&origin().seed.to_le_bytes()[..], &origin().request] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn an_id_of_another_version_is_refused_by_its_version() {
    let key = random_key();
    let mut bytes = URL_SAFE_NO_PAD.decode(progress(&key, 1, None).id(false)).unwrap();
    bytes[0] = key::VERSION - 1;
    let refusal = format!("{:?}", read(&URL_SAFE_NO_PAD.encode(&bytes), &key, "alpha").unwrap_err());
    assert!(refusal.contains("has version 2, these coordinators continue version 3"), "{refusal}");
}

#[test]
fn names_of_sequences_differ_by_key_answer_and_choice() {
    let (key, other) = (random_key(), random_key());
    let name = |key: &ResumeKey, response: u128, choice| key.sequence_names(Uuid::from_u128(response)).of(choice);
    assert_eq!(name(&key, 7, 0), name(&key, 7, 0));
    let names = [name(&key, 7, 0), name(&key, 7, 1), name(&key, 8, 0), name(&other, 7, 0)];
    assert!((0..4).all(|at| !names[..at].contains(&names[at])), "{names:?}");
}

fn part() -> impl Strategy<Value = PartPosition> {
    let tokens = prop::option::of((1..u32::MAX, any::<u32>(), any::<[u8; 4]>()));
    let tokens = tokens.prop_map(|of| of.map(|(count, last, digest)| ReceivedTokens { count, last, digest }));
    prop_oneof![
        Just(PartPosition::default()),
        (1..u32::MAX, any::<[u8; 4]>(), tokens).prop_map(|(events, digest, tokens)| PartPosition {
            events,
            digest,
            tokens,
            whole: None
        }),
        (1..u32::MAX, any::<u32>()).prop_map(|(events, whole)| PartPosition {
            events,
            whole: Some(whole),
            ..PartPosition::default()
        }),
    ]
}

proptest! {
    #[test]
    fn a_position_comes_back(parts in prop::collection::vec(part(), 0..5), degraded: bool) {
        let position = StreamPosition { origin: origin(), degraded, parts };
        prop_assert_eq!(StreamPosition::decode(origin().id, &position.encode()), Some(position));
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = StreamPosition::decode(origin().id, &bytes);
    }

    #[test]
    fn no_forged_id_is_taken(at in 0usize..200, change in 1u8..=255, cut in 0usize..100) {
        let key = random_key();
        let id = progress(&key, 3, None).id(false);
        prop_assert!(received(&id, &key).is_some());
        prop_assert!(received(&id, &random_key()).is_none());
        let mut bytes = URL_SAFE_NO_PAD.decode(&id).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= change;
        prop_assert!(received(&URL_SAFE_NO_PAD.encode(&bytes), &key).is_none());
        prop_assert!(received(&id[..cut.min(id.len() - 1)], &key).is_none());
    }
}
