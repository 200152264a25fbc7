//! What sessions count.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::worker_pool::metrics::LATENCY_SECONDS;

cosec_proto::metrics! {
    /// Metrics of sessions.
    pub struct SessionMetrics {
        /// Choices by how their session ended: `stop` (an end token or a stop string), `length`, the name of an error
        /// code, or `closed` where the client left.
        pub choices: IntCounterVec = "cosec_choices_total" ["outcome"];
        /// Tokens by what hardening did to them: `agreed` (the base's own draw is the same), `expert` (another token,
        /// because of the expert), `base` (its proposal was rejected, or none was made), or `unknown`: `gather` and
        /// `full` hold one position of 16, drawn at random, against the base's own draw, and `expert_only` none.
        pub tokens: IntCounterVec = "cosec_tokens_total" ["model", "hardening"];
        /// Tokens that hardening changed, of those that are not `unknown`: a share of them that falls to zero says
        /// that the expert has no say any more.
        pub changed_tokens: IntCounterVec = "cosec_tokens_changed_total" ["model"];
        /// From admission to the turn, or to the end of a session that got none.
        pub queue_seconds: Histogram = "cosec_queue_seconds" in LATENCY_SECONDS;
        /// From admission to the first token.
        pub first_token_seconds: Histogram = "cosec_time_to_first_token_seconds" in LATENCY_SECONDS;
        /// Between two tokens of one choice.
        pub inter_token_seconds: Histogram = "cosec_inter_token_latency_seconds" in LATENCY_SECONDS;
        /// Sessions that decode.
        pub active_sessions: IntGauge = "cosec_active_sessions";
        /// Sessions that wait for their turn.
        pub queued_sessions: IntGauge = "cosec_queued_sessions";
        /// Choices of resumed streams: `taken_over` from the workers, or `decoded_anew` where none knew the tokens.
        pub resumed_choices: IntCounterVec = "cosec_resumed_choices_total" ["how"];
        /// Sessions that went on without their expert.
        pub degraded_sessions: IntCounter = "cosec_degraded_sessions_total";
        /// Moves to another worker in mid-decode.
        pub relocations: IntCounterVec = "cosec_relocations_total" ["role"];
        /// From a worker's failure to the next answer to its session.
        pub recovery_seconds: HistogramVec = "cosec_recovery_seconds" ["role"] in LATENCY_SECONDS;
    }
}
