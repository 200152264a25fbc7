//! Runs one forward pass and hands its rows to the jobs.

use std::sync::OnceLock;
use std::time::Instant;

use cosec_proto::ErrorCode;

use super::Scheduler;
use super::batch::Slice;
use super::job::Reading;
use super::start::impossible_row;
use crate::engine::Model;
use crate::engine::operation::Failure;
use crate::model_runner::{BatchItem, ForwardError};

/// Memory of a forward pass, kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    batch: Vec<BatchItem<'static>>,
    /// In the order of the slices, then of their rows; may be longer than the pass has rows.
    readings: Vec<Reading>,
}

impl Scheduler {
    /// Serves whatever is ready with one forward pass; false when nothing was.
    pub(crate) fn step(&mut self, model: &mut impl Model) -> bool {
        self.sweep(Instant::now());
        let plan = self.plan(Instant::now());
        let is_ready = !plan.slices.is_empty();
        if is_ready {
            self.serve(&plan.slices, model);
        }
        self.plan = plan;
        is_ready
    }

    fn serve(&mut self, slices: &[Slice], model: &mut impl Model) {
        let phase = self.phase(slices);
        let mut pass = std::mem::take(&mut self.pass);
        let started = Instant::now();
        let result = self.forward(slices, &mut pass, model);
        let ended = Instant::now();
        let elapsed = ended - started;
        self.status.observe_step(elapsed);
        self.metrics.step_seconds.with_label_values(&[phase]).observe(elapsed.as_secs_f64());
        let tokens = slices.iter().map(|slice| slice.tokens).sum::<usize>();
        self.metrics.step_tokens.observe(tokens as f64);
        let rows = slices.iter().map(|slice| slice.rows.len()).sum::<usize>();
        self.metrics.step_rows.observe(rows as f64);
        self.gathering.passed(tokens, rows, elapsed);
        for slice in slices {
            if let Some(job) = self.queue.get_mut(slice.job) {
                job.first_pass.get_or_insert(started);
                job.effort.compute += elapsed;
                job.effort.passes += 1;
                job.effort.tokens = job.effort.tokens.saturating_add(tokens as u32);
                job.effort.rows = job.effort.rows.saturating_add(rows as u32);
            }
        }
        let mut readings = pass.readings.as_mut_slice();
        for slice in slices {
            let (own, others) = readings.split_at_mut(slice.rows.len());
            match &result {
                Ok(()) => self.take_up(slice, own, ended),
                Err(error) => {
                    let failure = Failure::new(ErrorCode::WorkerFault, format!("the forward pass failed: {error}"));
                    self.fail(slice.job, failure, ended);
                }
            }
            readings = others;
        }
        if let Err(error) = result {
            tracing::error!(%error, "a forward pass failed");
        }
        self.pass = pass;
    }

    /// Runs the model over `slices` and fills in what the jobs want of its rows.
    fn forward(&mut self, slices: &[Slice], pass: &mut Pass, model: &mut impl Model) -> Result<(), ForwardError> {
        let rows: usize = slices.iter().map(|slice| slice.rows.len()).sum();
        if pass.readings.len() < rows {
            pass.readings.resize_with(rows, Reading::default);
        }
        let mut readings = pass.readings.iter_mut();
        for slice in slices {
            let Some(job) = self.queue.get(slice.job) else { continue };
            for (row, reading) in slice.rows.clone().zip(&mut readings) {
                reading.begin(slice.job, job.next_offset() + row);
                reading.row = job.ends_at(reading.offset).then(|| self.spare_rows.take());
            }
        }
        let Self { queue, sessions, metrics, .. } = self;
        let mut batch = reused(std::mem::take(&mut pass.batch));
        batch.extend(slices.iter().filter_map(|slice| {
            let job = queue.get(slice.job)?;
            let blocks = sessions.get(&job.session())?.table.blocks();
            let (start, tokens) = (job.at() + job.next_offset() - 1, &job.rest()[..slice.tokens]);
            Some(BatchItem { tokens, start, blocks, rows: slice.rows.clone(), adapter: job.operation.adapter })
        }));
        let first_row = OnceLock::new();
        let result = model.forward(&batch, &mut pass.readings[..rows], |reading, logits| {
            first_row.get_or_init(Instant::now);
            if let Some(job) = queue.get(reading.job) {
                job.read(reading, logits);
            }
        });
        metrics.rows_seconds.observe(first_row.get().map_or(0.0, |begun: &Instant| begun.elapsed().as_secs_f64()));
        pass.batch = reused(batch);
        result
    }

    fn take_up(&mut self, slice: &Slice, readings: &mut [Reading], now: Instant) {
        let Self { queue, sessions, pool, spare_rows, .. } = self;
        let Some(job) = queue.get_mut(slice.job) else { return };
        if let Some(invalid) = readings.iter().find_map(|reading| reading.invalid) {
            tracing::error!(session = %job.session(), %invalid, "the model computed an impossible row");
            return self.fail(slice.job, impossible_row(invalid), now);
        }
        let waiting = job.waiting_tokens();
        if let Some(session) = sessions.get_mut(&job.session()) {
            session.table.append(job.feed(slice.tokens), pool);
            readings.iter_mut().for_each(|reading| spare_rows.give(job.take_up(reading)));
            job.fills = session.table.next_hash(job.rest(), pool);
        }
        self.queued_tokens -= waiting - job.waiting_tokens();
        if job.is_done() {
            self.complete(slice.job, now);
        }
    }
}

/// The memory of `items` for items of another lifetime.
fn reused<'a>(items: Vec<BatchItem<'_>>) -> Vec<BatchItem<'a>> {
    // Collects in place.
    items.into_iter().map_while(|_| None).collect()
}
