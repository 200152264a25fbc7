//! A model whose logits are a hash of the whole history.

use cosec_proto::{PROTOCOL_VERSION, WorkerLimits, WorkerRole};

/// The model of a mock worker.
#[derive(Clone, Debug)]
pub struct MockModel {
    /// Role in its description.
    pub role: WorkerRole,
    /// Number of logits.
    pub vocabulary: u32,
    /// Makes its logits differ from those of other models.
    pub salt: u64,
    /// Largest logit of the part that all models share; the part of its own goes to 1.
    pub agreement: f32,
    /// In tokens.
    pub context_tokens: u32,
    /// In tokens.
    pub max_operation_tokens: u32,
    /// Ids that end a generation.
    pub end_token_ids: Vec<u32>,
    /// As described.
    pub fingerprint: String,
    /// As described.
    pub tokenizer_fingerprint: String,
    /// As described.
    pub protocol_version: u32,
    /// Whether rows depend on what was generated; else every position has the same.
    pub remembers: bool,
}

impl MockModel {
    /// A base of 64 tokens.
    #[must_use]
    pub fn base() -> Self {
        Self {
            role: WorkerRole::Base,
            vocabulary: 64,
            salt: 1,
            agreement: 3.0,
            context_tokens: 2048,
            max_operation_tokens: 16,
            end_token_ids: vec![0],
            fingerprint: "base".to_owned(),
            tokenizer_fingerprint: "tokenizer".to_owned(),
            protocol_version: PROTOCOL_VERSION,
            remembers: true,
        }
    }

    /// An expert that agrees with [`Self::base`] now and then.
    #[must_use]
    pub fn expert() -> Self {
        let (role, fingerprint) = (WorkerRole::Expert, "expert".to_owned());
        Self { role, salt: 2, fingerprint, max_operation_tokens: 24, ..Self::base() }
    }

    pub(super) fn limits(&self) -> WorkerLimits {
        let Self { vocabulary, context_tokens, max_operation_tokens, .. } = *self;
        WorkerLimits { vocabulary, context_tokens, operation_tokens: max_operation_tokens }
    }

    /// The logits after `history`.
    #[must_use]
    pub fn row(&self, history: &[u32]) -> Vec<f32> {
        let history = if self.remembers { history } else { &[] };
        let state = history.iter().fold(0x9e37_79b9, |state, &token| mix(state ^ u64::from(token)));
        let noise =
            |salt: u64, id: u32| (mix(state ^ mix(salt ^ u64::from(id) << 32)) >> 40) as f32 / (1 << 24) as f32;
        (0..self.vocabulary).map(|id| self.agreement * noise(0, id) + noise(self.salt, id)).collect()
    }
}

/// The finaliser of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
