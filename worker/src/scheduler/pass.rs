//! Runs one forward pass and hands its logits to the jobs.

use std::time::{Duration, Instant};

use super::admit::{failed_pass, impossible_logits};
use super::batch_plan::BatchSlice;
use super::language_model::LanguageModel;
use super::pass_memory::PassMemory;
use super::state::Scheduler;
use crate::logits_view::TaskResult;
use crate::model::{BatchItem, ForwardError};

impl Scheduler {
    /// Serves whatever is ready with one forward pass; false when nothing was.
    pub(crate) fn step(&mut self, model: &mut impl LanguageModel, clock: &impl Fn() -> Instant) -> bool {
        self.sweep(clock());
        let plan = self.plan(clock(), model);
        let is_ready = !plan.slices.is_empty();
        if is_ready {
            self.serve(&plan.slices, model, clock);
        }
        self.plan = plan;
        is_ready
    }

    fn serve(&mut self, slices: &[BatchSlice], model: &mut impl LanguageModel, clock: &impl Fn() -> Instant) {
        let phase = self.phase(slices);
        let mut pass = std::mem::take(&mut self.pass);
        let started = clock();
        let result = self.forward(slices, &mut pass, model);
        let ended = clock();
        let elapsed = ended - started;
        self.metrics.step_seconds.with_label_values(&[phase]).observe(elapsed.as_secs_f64());
        let tokens = slices.iter().map(|slice| slice.tokens).sum::<usize>();
        self.metrics.step_tokens.observe(tokens as f64);
        let rows = slices.iter().map(|slice| slice.wanted.len()).sum::<usize>();
        self.metrics.step_logits.observe(rows as f64);
        self.window.passed(tokens, rows, elapsed);
        for slice in slices {
            if let Some(job) = self.queue.get_mut(slice.job) {
                job.first_pass.get_or_insert(started);
                job.cost.compute += elapsed;
                job.cost.passes += 1;
                job.cost.tokens = job.cost.tokens.saturating_add(tokens as u32);
                job.cost.rows = job.cost.rows.saturating_add(rows as u32);
            }
        }
        let mut found = pass.found.as_mut_slice();
        for slice in slices {
            let (own, others) = found.split_at_mut(slice.wanted.len());
            match &result {
                Ok(_) => self.take_found(slice, own, ended),
                Err(error) => self.fail(slice.job, failed_pass(error), ended),
            }
            found = others;
        }
        match result {
            Ok(reading) => self.metrics.logits_seconds.observe(reading.as_secs_f64()),
            Err(error) => tracing::error!(%error, "a forward pass failed"),
        }
        self.pass = pass;
    }

    /// Runs the model over `slices` and finds what the jobs want of its logits. Returns how much of the time that took.
    fn forward(
        &mut self,
        slices: &[BatchSlice],
        pass: &mut PassMemory,
        model: &mut impl LanguageModel,
    ) -> Result<Duration, ForwardError> {
        let rows: usize = slices.iter().map(|slice| slice.wanted.len()).sum();
        if pass.found.len() < rows {
            pass.found.resize_with(rows, TaskResult::default);
        }
        let Self { queue, sessions, .. } = self;
        let mut batch = reused(std::mem::take(&mut pass.batch));
        let mut tasks = reused(std::mem::take(&mut pass.tasks));
        let mut found = pass.found.iter_mut();
        for slice in slices {
            let Some(job) = queue.get(slice.job) else { continue };
            let Some(session) = sessions.get(&job.session) else { continue };
            let (start, tokens) = (job.at + job.next_offset() - 1, &job.rest()[..slice.tokens]);
            let (blocks, rows, adapter) = (session.table.blocks(), slice.wanted.clone(), job.adapter);
            batch.push(BatchItem { tokens, start, blocks, rows, adapter });
            let offsets = slice.wanted.clone().map(|index| job.next_offset() + index);
            tasks.extend(offsets.zip(&mut found).map(|(offset, found)| job.task(offset, found)));
        }
        let result = model.forward(&batch, &mut tasks);
        (pass.batch, pass.tasks) = (reused(batch), reused(tasks));
        result
    }

    fn take_found(&mut self, slice: &BatchSlice, found: &mut [TaskResult], now: Instant) {
        let Self { queue, sessions, pool, .. } = self;
        let Some(job) = queue.get_mut(slice.job) else { return };
        if let Some(invalid) = found.iter().find_map(|found| found.invalid) {
            tracing::error!(session = %job.session, %invalid, "the model computed an impossible row");
            return self.fail(slice.job, impossible_logits(invalid), now);
        }
        let waiting = job.waiting_tokens();
        if let Some(session) = sessions.get_mut(&job.session) {
            session.table.append(job.feed(slice.tokens), pool);
            found.iter_mut().for_each(|found| job.take_found(found));
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
