//! What speculative decoding counts.

use prometheus::{HistogramVec, IntCounterVec};

use super::tally::DraftTally;

/// Tokens of a draft.
const DRAFT_LENGTHS: [f64; 10] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0];

cosec_proto::metrics! {
    /// Metrics of speculative decoding. The acceptance rate is accepted / (accepted + rejected).
    pub struct SpeculationMetrics {
        /// Tokens that the expert drafted.
        pub draft_tokens: IntCounterVec = "cosec_spec_decode_draft_tokens_total" ["model", "rule"];
        /// Draft tokens that the rule accepted.
        pub accepted_tokens: IntCounterVec = "cosec_spec_decode_accepted_tokens_total" ["model", "rule"];
        /// Draft tokens that the rule rejected. Those after a rejected one are discarded and count neither way.
        pub rejected_tokens: IntCounterVec = "cosec_spec_decode_rejected_tokens_total" ["model", "rule"];
        /// Draft tokens accepted in a round.
        pub accepted_length: HistogramVec = "cosec_spec_decode_accepted_length" ["model", "rule"] in DRAFT_LENGTHS;
        /// Times that drafts were discarded because the token before them was another.
        pub rollbacks: IntCounterVec = "cosec_spec_decode_rollbacks_total" ["model", "rule"];
        /// Operations withdrawn from a worker because of a rollback.
        pub withdrawn_operations: IntCounterVec = "cosec_spec_decode_withdrawn_operations_total" ["model", "rule"];
    }
}

impl SpeculationMetrics {
    /// Adds what became of drafts; `labels` are model and rule.
    pub fn count(&self, labels: [&str; 2], tally: &DraftTally) {
        if *tally == DraftTally::default() {
            return;
        }
        for (counter, count) in [
            (&self.draft_tokens, tally.drafted),
            (&self.accepted_tokens, tally.accepted),
            (&self.rejected_tokens, tally.rejected),
            (&self.rollbacks, tally.rollbacks),
            (&self.withdrawn_operations, tally.withdrawn),
        ] {
            counter.with_label_values(&labels).inc_by(count);
        }
        for block in &tally.blocks {
            self.accepted_length.with_label_values(&labels).observe(f64::from(block.accepted));
        }
    }
}
