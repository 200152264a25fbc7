//! What a worker says of itself.

use crate::wire::worker as wire;
use crate::{PROTOCOL_VERSION, WorkerLimits, WorkerRole};

/// What a worker hosts and how much room it has, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDescription {
    /// What its model is for.
    pub role: WorkerRole,
    /// Name that operators gave the model; not unique.
    pub model: String,
    /// Drawn by the process when it starts, not 0: tells two processes from two addresses of one.
    pub instance: u64,
    /// Of what a session without an adapter computes with.
    pub fingerprint: String,
    /// Of the vocabulary; equal for models that may co-decode.
    pub tokenizer_fingerprint: String,
    /// What operations must keep to; none is 0.
    pub limits: WorkerLimits,
    /// Tokens of a cache block; 0 when it does not say.
    pub block_tokens: u32,
    /// Blocks of its cache; 0 when it does not say.
    pub total_blocks: u32,
    /// Blocks that no session holds.
    pub free_blocks: u32,
    /// Open sessions.
    pub sessions: u32,
    /// Ids that end a generation.
    pub end_token_ids: Vec<u32>,
    /// LoRA adapters that sessions may choose.
    pub adapters: Vec<AdapterDescription>,
    /// Tokens of the operations that wait.
    pub queued_tokens: u32,
    /// It shuts down and opens no session any more.
    pub draining: bool,
    /// Where it stands; empty when that was not said.
    pub zone: String,
}

/// A LoRA adapter that sessions may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDescription {
    /// As sessions choose it.
    pub name: String,
    /// Of what a session with it computes with.
    pub fingerprint: String,
}

impl From<WorkerDescription> for wire::DescribeResponse {
    fn from(description: WorkerDescription) -> Self {
        let (adapters, adapter_fingerprints) =
            description.adapters.into_iter().map(|adapter| (adapter.name, adapter.fingerprint)).unzip();
        Self {
            role: wire::Role::from(description.role).into(),
            model: description.model,
            fingerprint: description.fingerprint,
            tokenizer_fingerprint: description.tokenizer_fingerprint,
            vocabulary: description.limits.vocabulary,
            context_tokens: description.limits.context_tokens,
            block_tokens: description.block_tokens,
            total_blocks: description.total_blocks,
            free_blocks: description.free_blocks,
            sessions: description.sessions,
            end_token_ids: description.end_token_ids,
            max_operation_tokens: description.limits.operation_tokens,
            adapters,
            queued_tokens: description.queued_tokens,
            draining: description.draining,
            zone: description.zone,
            adapter_fingerprints,
            protocol_version: PROTOCOL_VERSION,
            instance: description.instance,
        }
    }
}

impl TryFrom<wire::DescribeResponse> for WorkerDescription {
    type Error = InvalidDescription;

    fn try_from(message: wire::DescribeResponse) -> Result<Self, InvalidDescription> {
        if message.protocol_version != PROTOCOL_VERSION {
            return Err(InvalidDescription::OtherVersion { version: message.protocol_version });
        }
        let limits = WorkerLimits {
            vocabulary: message.vocabulary,
            context_tokens: message.context_tokens,
            operation_tokens: message.max_operation_tokens,
        };
        if limits.vocabulary == 0 || limits.context_tokens == 0 || limits.operation_tokens == 0 {
            return Err(InvalidDescription::NoSize);
        }
        if message.instance == 0 {
            return Err(InvalidDescription::NoInstance);
        }
        if message.adapters.len() != message.adapter_fingerprints.len() {
            return Err(InvalidDescription::Adapters);
        }
        let role = WorkerRole::try_from(message.role()).map_err(|_| InvalidDescription::NoRole)?;
        let adapters = message.adapters.into_iter().zip(message.adapter_fingerprints);
        Ok(Self {
            role,
            model: message.model,
            instance: message.instance,
            fingerprint: message.fingerprint,
            tokenizer_fingerprint: message.tokenizer_fingerprint,
            limits,
            block_tokens: message.block_tokens,
            total_blocks: message.total_blocks,
            free_blocks: message.free_blocks,
            sessions: message.sessions,
            end_token_ids: message.end_token_ids,
            adapters: adapters.map(|(name, fingerprint)| AdapterDescription { name, fingerprint }).collect(),
            queued_tokens: message.queued_tokens,
            draining: message.draining,
            zone: message.zone,
        })
    }
}

/// A worker that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDescription {
    /// It might mean something else by the same message.
    #[error("it speaks protocol version {version} and this coordinator version {PROTOCOL_VERSION}")]
    OtherVersion {
        /// The worker's; 0 of one that does not say.
        version: u32,
    },
    /// Nothing could be asked of it.
    #[error("it describes itself with a vocabulary, context or operation size of 0")]
    NoSize,
    /// Nobody knows what it is for.
    #[error("it does not say its role")]
    NoRole,
    /// It could vote as often as it has addresses.
    #[error("it does not say which process it is")]
    NoInstance,
    /// A name without its fingerprint, or the reverse.
    #[error("it describes its adapters by fewer or more fingerprints than names")]
    Adapters,
}
