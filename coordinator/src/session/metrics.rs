//! What sessions and their workers' connections count.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::admission::AdmissionMetrics;
use crate::discovery::DiscoveryMetrics;
use crate::speculation::tally::DraftTally;

/// Counters and histograms of sessions and workers.
#[derive(Debug)]
pub struct SessionMetrics {
    /// Choices by how their session ended: `stop` (an end token or a stop string), `length`, the name of an error code,
    /// or `closed` where the client left.
    pub choices: IntCounterVec,
    /// Tokens by who chose them.
    pub tokens: IntCounterVec,
    /// From admission to the turn, or to the end of a session that got none.
    pub queue_seconds: Histogram,
    /// From admission to the first token.
    pub first_token_seconds: Histogram,
    /// Between two tokens of one choice.
    pub inter_token_seconds: Histogram,
    /// Time of an operation by role and phase: queue and compute as the worker measured them, wire is the rest.
    pub step_seconds: HistogramVec,
    /// Payload by model, role, direction and what the operation asked for.
    pub wire_bytes: IntCounterVec,
    /// Tokens that the expert drafted, and those accepted and rejected among them; the rest was discarded unjudged.
    pub draft_tokens: IntCounterVec,
    /// Proposals accepted in a block before it ended.
    pub accepted_length: HistogramVec,
    /// Times that a token was not the one drafted and what built on it was discarded.
    pub rollbacks: IntCounterVec,
    /// Operations withdrawn from a worker because of it.
    pub withdrawn_operations: IntCounterVec,
    /// Sessions that decode.
    pub active_sessions: IntGauge,
    /// Sessions that wait for their turn.
    pub queued_sessions: IntGauge,
    /// Sessions that went on without their expert.
    pub degraded_sessions: IntCounter,
    /// 1 while a worker is connected and serves.
    pub worker_up: IntGaugeVec,
    /// 1 while a worker fails so often that it is avoided.
    pub circuit_open: IntGaugeVec,
    /// Times that a session looked for another worker in mid-decode.
    pub relocations: IntCounterVec,
    /// From a worker's failure to the next answer of a worker of that role, by role.
    pub recovery_seconds: HistogramVec,
    /// Who waits and who is refused.
    pub admission: AdmissionMetrics,
    /// Who should be connected.
    pub discovery: DiscoveryMetrics,
}

/// From half a millisecond to half a minute.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Tokens.
const LENGTHS: [f64; 10] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0];

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

    /// Creates and registers all of them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str| {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let step_options = HistogramOpts::new("cosec_step_seconds", "Time of a worker's operation by role and phase");
        let step_seconds = HistogramVec::new(step_options.buckets(SECONDS.to_vec()), &["role", "phase"])?;
        registry.register(Box::new(step_seconds.clone()))?;
        let recovery_options =
            HistogramOpts::new("cosec_recovery_seconds", "From a worker's failure to the next answer to its session");
        let recovery_seconds = HistogramVec::new(recovery_options.buckets(SECONDS.to_vec()), &["role"])?;
        registry.register(Box::new(recovery_seconds.clone()))?;
        let length_options =
            HistogramOpts::new("cosec_accepted_length", "Proposals accepted in a block of drafts before it ended");
        let accepted_length = HistogramVec::new(length_options.buckets(LENGTHS.to_vec()), &["model", "rule"])?;
        registry.register(Box::new(accepted_length.clone()))?;
        let up_options = Opts::new("cosec_worker_up", "Whether a worker is connected and serves");
        let worker_up = IntGaugeVec::new(up_options, &["model", "role", "address"])?;
        registry.register(Box::new(worker_up.clone()))?;
        let circuit_options =
            Opts::new("cosec_worker_circuit_open", "Whether a worker fails so often that it is avoided");
        let circuit_open = IntGaugeVec::new(circuit_options, &["model", "role", "address"])?;
        registry.register(Box::new(circuit_open.clone()))?;
        let degraded =
            IntCounter::new("cosec_degraded_sessions_total", "Sessions that went on without their expert")?;
        registry.register(Box::new(degraded.clone()))?;
        Ok(Self {
            choices: counters(
                "cosec_choices_total",
                "Choices by how their session ended; closed: the client left",
                &["outcome"],
            )?,
            tokens: counters("cosec_tokens_total", "Tokens by who chose them", &["chosen_by"])?,
            queue_seconds: histogram("cosec_queue_seconds", "From admission to the turn")?,
            first_token_seconds: histogram("cosec_first_token_seconds", "From admission to the first token")?,
            inter_token_seconds: histogram("cosec_inter_token_seconds", "Between two tokens of one choice")?,
            step_seconds,
            wire_bytes: counters(
                "cosec_wire_bytes_total",
                "Payload of operations",
                &["model", "role", "direction", "view"],
            )?,
            draft_tokens: counters(
                "cosec_draft_tokens_total",
                "Tokens that the expert drafted, and those accepted and rejected among them",
                &["model", "rule", "outcome"],
            )?,
            accepted_length,
            rollbacks: counters(
                "cosec_rollbacks_total",
                "Times that drafts were discarded because the token before them was another",
                &["model", "rule"],
            )?,
            withdrawn_operations: counters(
                "cosec_withdrawn_operations_total",
                "Operations withdrawn from a worker because of a rollback",
                &["model", "rule"],
            )?,
            active_sessions: gauge("cosec_active_sessions", "Sessions that decode")?,
            queued_sessions: gauge("cosec_queued_sessions", "Sessions that wait for their turn")?,
            degraded_sessions: degraded,
            worker_up,
            circuit_open,
            relocations: counters("cosec_relocations_total", "Moves to a worker in mid-decode", &["role"])?,
            recovery_seconds,
            admission: AdmissionMetrics::register(registry)?,
            discovery: DiscoveryMetrics::register(registry)?,
        })
    }
}
