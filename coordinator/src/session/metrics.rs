//! What sessions count.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::speculation::tally::DraftTally;
use crate::worker_pool::metrics::LATENCY_SECONDS;

/// Tokens of a draft.
const DRAFT_TOKENS: [f64; 10] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0];

cosec_proto::metrics! {
    /// Metrics of sessions.
    pub struct SessionMetrics {
        /// Choices by how their session ended: `stop` (an end token or a stop string), `length`, the name of an error code,
        /// or `closed` where the client left.
        pub choices: IntCounterVec = "cosec_choices_total" ["outcome"];
        /// Tokens by who chose them: `expert`, `base` or `merged`.
        pub tokens: IntCounterVec = "cosec_tokens_total" ["chosen_by"];
        /// From admission to the turn, or to the end of a session that got none.
        pub queue_seconds: Histogram = "cosec_queue_seconds" in LATENCY_SECONDS;
        /// From admission to the first token.
        pub first_token_seconds: Histogram = "cosec_time_to_first_token_seconds" in LATENCY_SECONDS;
        /// Between two tokens of one choice.
        pub inter_token_seconds: Histogram = "cosec_inter_token_latency_seconds" in LATENCY_SECONDS;
        /// Tokens that the expert `drafted`, and those `accepted` and `rejected` among them; the rest was discarded unjudged.
        pub draft_tokens: IntCounterVec = "cosec_draft_tokens_total" ["model", "rule", "outcome"];
        /// Proposals accepted in a block of drafts before it ended.
        pub accepted_length: HistogramVec = "cosec_accepted_length" ["model", "rule"] in DRAFT_TOKENS;
        /// Times that drafts were discarded because the token before them was another.
        pub rollbacks: IntCounterVec = "cosec_rollbacks_total" ["model", "rule"];
        /// Operations withdrawn from a worker because of a rollback.
        pub withdrawn_operations: IntCounterVec = "cosec_withdrawn_operations_total" ["model", "rule"];
        /// Sessions that decode.
        pub active_sessions: IntGauge = "cosec_active_sessions";
        /// Sessions that wait for their turn.
        pub queued_sessions: IntGauge = "cosec_queued_sessions";
        /// Sessions that went on without their expert.
        pub degraded_sessions: IntCounter = "cosec_degraded_sessions_total";
        /// Moves to another worker in mid-decode.
        pub relocations: IntCounterVec = "cosec_relocations_total" ["role"];
        /// From a worker's failure to the next answer to its session.
        pub recovery_seconds: HistogramVec = "cosec_recovery_seconds" ["role"] in LATENCY_SECONDS;
    }
}

impl SessionMetrics {
    /// Adds what became of drafts; `labels` are model and rule.
    pub fn count_drafts(&self, labels: [&str; 2], tally: &DraftTally) {
        if *tally == DraftTally::default() {
            return;
        }
        let [model, rule] = labels;
        let outcomes = [("drafted", tally.drafted), ("accepted", tally.accepted), ("rejected", tally.rejected)];
        for (outcome, count) in outcomes {
            self.draft_tokens.with_label_values(&[model, rule, outcome]).inc_by(count);
        }
        for block in &tally.blocks {
            self.accepted_length.with_label_values(&labels).observe(f64::from(block.accepted));
        }
        self.rollbacks.with_label_values(&labels).inc_by(tally.rollbacks);
        self.withdrawn_operations.with_label_values(&labels).inc_by(tally.withdrawn);
    }
}
