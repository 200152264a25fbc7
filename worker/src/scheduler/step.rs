//! Runs one forward pass and hands its rows to the jobs.

use std::time::Instant;

use cosec_proto::ErrorCode;
use cosec_proto::draw::InvalidLogits;

use super::Scheduler;
use super::batch::Slice;
use super::job::Reading;
use crate::engine::Model;
use crate::engine::operation::Failure;
use crate::model_runner::{BatchItem, ForwardError};

/// What a slice got from a forward pass.
type Readings = Result<Vec<Reading>, InvalidLogits>;

impl Scheduler {
    /// Serves whatever is ready with one forward pass. Says whether there was anything.
    pub(crate) fn step(&mut self, model: &mut impl Model) -> bool {
        self.sweep(Instant::now());
        let slices = self.plan(Instant::now());
        if slices.is_empty() {
            return false;
        }
        let phase = self.phase(&slices);
        let started = Instant::now();
        let results = self.forward(model, &slices);
        let ended = Instant::now();
        let elapsed = ended - started;
        self.status.observe_step(elapsed);
        self.metrics.step_seconds.with_label_values(&[phase]).observe(elapsed.as_secs_f64());
        self.metrics.step_tokens.observe(slices.iter().map(|slice| slice.tokens).sum::<usize>() as f64);
        self.metrics.step_rows.observe(slices.iter().map(|slice| slice.rows.len()).sum::<usize>() as f64);
        for slice in &slices {
            if let Some(progress) = self.queue.get_mut(slice.arrival).and_then(|job| job.progress.as_mut()) {
                progress.first_pass.get_or_insert(started);
                progress.compute += elapsed;
            }
        }
        match results {
            Ok(results) => slices.iter().zip(results).for_each(|(slice, result)| self.take_up(slice, result, ended)),
            Err(error) => {
                tracing::error!(%error, "a forward pass failed");
                let failure = Failure::new(ErrorCode::WorkerFault, format!("the forward pass failed: {error}"));
                slices.iter().for_each(|slice| self.fail(slice.arrival, failure.clone(), ended));
            }
        }
        true
    }

    /// Runs the model over `slices`; one result per slice.
    fn forward(&self, model: &mut impl Model, slices: &[Slice]) -> Result<Vec<Readings>, ForwardError> {
        let jobs: Vec<_> = slices.iter().filter_map(|slice| self.queue.get(slice.arrival)).collect();
        let batch: Vec<BatchItem<'_>> = slices
            .iter()
            .zip(&jobs)
            .filter_map(|(slice, job)| {
                let (fed, tokens) = job.slice(slice.tokens);
                let blocks = self.sessions.get(&job.session())?.table.blocks();
                Some(BatchItem {
                    tokens,
                    start: job.at() + fed,
                    blocks,
                    rows: slice.rows.clone(),
                    adapter: job.operation.adapter,
                })
            })
            .collect();
        let mut results: Vec<Readings> = slices.iter().map(|_| Ok(Vec::new())).collect();
        let mut wanted =
            slices.iter().enumerate().flat_map(|(index, slice)| slice.rows.clone().map(move |row| (index, row)));
        model.forward(&batch, &mut |logits| {
            let Some((index, row)) = wanted.next() else { return };
            if let Ok(readings) = &mut results[index] {
                let job = jobs[index];
                match job.read(job.slice(0).0 + row + 1, logits) {
                    Ok(reading) => readings.push(reading),
                    Err(invalid) => results[index] = Err(invalid),
                }
            }
        })?;
        Ok(results)
    }

    fn take_up(&mut self, slice: &Slice, result: Readings, now: Instant) {
        let Some(job) = self.queue.get_mut(slice.arrival) else { return };
        match result {
            Ok(readings) => {
                let waiting = job.waiting_tokens();
                job.apply(slice.tokens, readings);
                self.queued_tokens -= waiting - job.waiting_tokens();
                if job.is_done() {
                    self.complete(slice.arrival, now);
                }
            }
            Err(invalid) => {
                tracing::error!(session = %job.session(), %invalid, "the model computed an impossible row");
                let message = format!("the model computed an impossible row: {invalid}");
                self.fail(slice.arrival, Failure::new(ErrorCode::WorkerFault, message), now);
            }
        }
    }
}
