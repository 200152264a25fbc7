//! How much of a stream was sent, in few bytes.

use prost::bytes::Buf;
use prost::encoding::{decode_varint, encode_varint};
use uuid::Uuid;

use crate::continuation::{ChoiceReceipt, ReceivedTokens};

/// Which response a stream is part of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::api::openai) struct StreamOrigin {
    /// Of the first request.
    pub(in crate::api::openai) id: Uuid,
    /// Seconds since 1970.
    pub(in crate::api::openai) created: u64,
    pub(in crate::api::openai) seed: u64,
    /// Digest of the request.
    pub(in crate::api::openai) request: [u8; 16],
}

/// How much of an answer was sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StreamPosition {
    pub(super) origin: StreamOrigin,
    /// Whether the base went on without an expert in what was sent.
    pub(super) degraded: bool,
    /// One for each choice, and one for the usage.
    pub(super) parts: Vec<PartPosition>,
}

/// How much of a part was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PartPosition {
    pub(super) events: u32,
    /// Of their content.
    pub(super) digest: [u8; 4],
    pub(super) tokens: Option<ReceivedTokens>,
    /// New tokens of a choice that was sent to its end.
    pub(super) whole: Option<u32>,
}

impl StreamPosition {
    /// What was sent of each choice.
    pub(super) fn receipts(&self) -> Vec<ChoiceReceipt> {
        let receipt = |part: &PartPosition| match part.whole {
            Some(tokens) => ChoiceReceipt::Whole { tokens },
            None => ChoiceReceipt::Part(part.tokens),
        };
        self.parts.iter().map(receipt).collect()
    }

    /// All but the response's id, which is not secret.
    pub(super) fn encode(&self) -> Vec<u8> {
        let StreamOrigin { id: _, created, seed, request } = self.origin;
        let mut bytes = Vec::with_capacity(64 + 16 * self.parts.len());
        encode_varint(created << 1 | u64::from(self.degraded), &mut bytes);
        bytes.extend(seed.to_le_bytes());
        bytes.extend(request);
        for part in &self.parts {
            part.encode(&mut bytes);
        }
        bytes
    }

    pub(super) fn decode(response: Uuid, mut bytes: &[u8]) -> Option<Self> {
        let first = decode_varint(&mut bytes).ok()?;
        let seed = u64::from_le_bytes(array(&mut bytes)?);
        let origin = StreamOrigin { id: response, created: first >> 1, seed, request: array(&mut bytes)? };
        let mut parts = Vec::new();
        while bytes.has_remaining() {
            parts.push(PartPosition::decode(&mut bytes)?);
        }
        Some(Self { origin, degraded: first & 1 == 1, parts })
    }
}

impl PartPosition {
    fn encode(&self, bytes: &mut Vec<u8>) {
        encode_varint(u64::from(self.events) << 1 | u64::from(self.whole.is_some()), bytes);
        if let Some(tokens) = self.whole {
            return encode_varint(tokens.into(), bytes);
        }
        if self.events == 0 {
            return;
        }
        bytes.extend(self.digest);
        encode_varint(self.tokens.map_or(0, |tokens| tokens.count.into()), bytes);
        if let Some(ReceivedTokens { count: _, last, digest }) = self.tokens {
            encode_varint(last.into(), bytes);
            bytes.extend(digest);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let first = decode_varint(bytes).ok()?;
        let mut part = Self { events: u32::try_from(first >> 1).ok()?, ..Self::default() };
        if first & 1 == 1 {
            part.whole = Some(number(bytes)?);
        } else if part.events > 0 {
            part.digest = array(bytes)?;
            let count = number(bytes)?;
            if count > 0 {
                part.tokens = Some(ReceivedTokens { count, last: number(bytes)?, digest: array(bytes)? });
            }
        }
        Some(part)
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    decode_varint(bytes).ok()?.try_into().ok()
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (&first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(first)
}
