//! Runs one forward pass and hands its rows to the jobs.

use std::time::{Duration, Instant};

use super::Scheduler;
use super::batch::Slice;
use super::start::{failed_pass, impossible_row};
use crate::engine::Model;
use crate::model::{BatchItem, ForwardError};
use crate::rows::{Found, RowTask};

/// Memory of a forward pass, kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    batch: Vec<BatchItem<'static>>,
    /// In the order of the slices, then of their rows.
    tasks: Vec<RowTask<'static>>,
    /// In the same order; may be longer than the pass has rows.
    found: Vec<Found>,
}

impl Scheduler {
    /// Serves whatever is ready with one forward pass; false when nothing was.
    pub(crate) fn step(&mut self, model: &mut impl Model) -> bool {
        self.sweep(Instant::now());
        let plan = self.plan(Instant::now(), model);
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
        self.metrics.step_logits.observe(rows as f64);
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
        let mut found = pass.found.as_mut_slice();
        for slice in slices {
            let (own, others) = found.split_at_mut(slice.rows.len());
            match &result {
                Ok(_) => self.take_up(slice, own, ended),
                Err(error) => self.fail(slice.job, failed_pass(error), ended),
            }
            found = others;
        }
        match result {
            Ok(rows_time) => self.metrics.logits_seconds.observe(rows_time.as_secs_f64()),
            Err(error) => tracing::error!(%error, "a forward pass failed"),
        }
        self.pass = pass;
    }

    /// Runs the model over `slices` and finds what the jobs want of its rows. Returns how much of the time that took.
    fn forward(
        &mut self,
        slices: &[Slice],
        pass: &mut Pass,
        model: &mut impl Model,
    ) -> Result<Duration, ForwardError> {
        let rows: usize = slices.iter().map(|slice| slice.rows.len()).sum();
        if pass.found.len() < rows {
            pass.found.resize_with(rows, Found::default);
        }
        let Self { queue, sessions, .. } = self;
        let mut batch = reused(std::mem::take(&mut pass.batch));
        let mut tasks = reused(std::mem::take(&mut pass.tasks));
        let mut found = pass.found.iter_mut();
        for slice in slices {
            let Some(job) = queue.get(slice.job) else { continue };
            let Some(session) = sessions.get(&job.session()) else { continue };
            let (start, tokens) = (job.at() + job.next_offset() - 1, &job.rest()[..slice.tokens]);
            let (blocks, rows, adapter) = (session.table.blocks(), slice.rows.clone(), job.operation.adapter);
            batch.push(BatchItem { tokens, start, blocks, rows, adapter });
            let offsets = slice.rows.clone().map(|row| job.next_offset() + row);
            tasks.extend(offsets.zip(&mut found).map(|(offset, found)| job.task(offset, found)));
        }
        let result = model.forward(&batch, &mut tasks);
        (pass.batch, pass.tasks) = (reused(batch), reused(tasks));
        result
    }

    fn take_up(&mut self, slice: &Slice, found: &mut [Found], now: Instant) {
        let Self { queue, sessions, pool, .. } = self;
        let Some(job) = queue.get_mut(slice.job) else { return };
        if let Some(invalid) = found.iter().find_map(|found| found.invalid) {
            tracing::error!(session = %job.session(), %invalid, "the model computed an impossible row");
            return self.fail(slice.job, impossible_row(invalid), now);
        }
        let waiting = job.waiting_tokens();
        if let Some(session) = sessions.get_mut(&job.session()) {
            session.table.append(job.feed(slice.tokens), pool);
            found.iter_mut().for_each(|found| job.take_up(found));
            job.fills = session.table.next_hash(job.rest(), pool);
        }
        self.queued_tokens -= waiting - job.waiting_tokens();
        if job.is_done() {
            self.complete(slice.job, now);
        }
    }
}

/// The memory of `items` for items of another lifetime.
fn reused<A, B>(items: Vec<A>) -> Vec<B> {
    // Collects in place.
    items.into_iter().map_while(|_| None).collect()
}
