//! One operation from its start to its outcome.

use std::ops::Range;
use std::time::{Duration, Instant};

use cosec_proto::SessionId;
use cosec_proto::draw::{Distribution, InvalidLogits, Purpose};

use crate::engine::operation::{Operation, Outcome, RowRequest, Work};
use crate::rows::Content;

/// Most tokens of an operation that is served ahead of longer ones: a decode step or a block of drafts, not a prompt.
pub(crate) const SHORT_TOKENS: usize = 64;

/// An operation and how far it is.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) progress: Option<Progress>,
    /// Blocks that it lacked when it was last looked at; 0 when it does not wait for blocks.
    pub(crate) missing_blocks: usize,
}

/// What an operation has done since it began.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Whether the operation opened its session.
    pub(crate) opened: bool,
    /// To feed; drafted tokens are appended.
    tokens: Vec<u32>,
    fed: usize,
    /// Indices of the row requests, ascending by offset.
    by_offset: Vec<usize>,
    contents: Vec<Option<Content>>,
    drawn: Vec<(u32, f64)>,
    /// The row behind the last token.
    last_row: Option<Vec<f32>>,
    pub(crate) first_pass: Option<Instant>,
    pub(crate) compute: Duration,
}

/// What one row of logits meant to a job.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    contents: Vec<(usize, Content)>,
    drawn: Option<(u32, f64)>,
    last_row: Option<Vec<f32>>,
}

/// What an operation leaves behind.
#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) outcome: Outcome,
    /// The row behind the last token fed; `None` when none was.
    pub(crate) last_row: Option<Vec<f32>>,
}

impl Job {
    pub(crate) fn new(operation: Operation) -> Self {
        Self { operation, progress: None, missing_blocks: 0 }
    }

    pub(crate) fn session(&self) -> SessionId {
        self.operation.session
    }

    /// Cached tokens that the operation assumes.
    pub(crate) fn at(&self) -> usize {
        match self.operation.work {
            Work::Extend { at, .. } | Work::Draft { at, .. } => at,
            Work::Release => 0,
        }
    }

    fn given(&self) -> &[u32] {
        match &self.operation.work {
            Work::Extend { tokens, .. } | Work::Draft { tokens, .. } => tokens,
            Work::Release => &[],
        }
    }

    fn requests(&self) -> &[RowRequest] {
        match &self.operation.work {
            Work::Extend { rows, .. } | Work::Draft { rows, .. } => rows,
            Work::Release => &[],
        }
    }

    /// Offset of request `index` behind `at`.
    fn offset(&self, index: usize) -> usize {
        let drawn_behind = match &self.operation.work {
            Work::Draft { tokens, .. } => tokens.len(),
            Work::Extend { .. } | Work::Release => 0,
        };
        drawn_behind + self.requests()[index].offset
    }

    /// Tokens given by the caller that are still to be fed.
    pub(crate) fn waiting_tokens(&self) -> usize {
        let fed = self.progress.as_ref().map_or(0, |progress| progress.fed);
        self.given().len().saturating_sub(fed)
    }

    /// Cached tokens as far as it is.
    pub(crate) fn length_so_far(&self) -> usize {
        self.at() + self.progress.as_ref().map_or(0, |progress| progress.fed)
    }

    /// Cached tokens when it is done.
    pub(crate) fn length_afterwards(&self) -> usize {
        let drafts = match self.operation.work {
            Work::Draft { k, .. } => k.saturating_sub(1),
            Work::Extend { .. } | Work::Release => 0,
        };
        self.at() + self.given().len() + drafts
    }

    /// Whether it reads the row behind the token before `at`.
    pub(crate) fn needs_kept_row(&self) -> bool {
        match &self.operation.work {
            Work::Extend { rows, .. } => rows.iter().any(|request| request.offset == 0),
            Work::Draft { tokens, .. } => tokens.is_empty(),
            Work::Release => false,
        }
    }

    /// Whether it feeds a prompt.
    pub(crate) fn is_long(&self) -> bool {
        self.given().len() > SHORT_TOKENS
    }

    /// Begins; `kept` is the row behind the token before `at`, where [`Self::needs_kept_row`].
    pub(crate) fn begin(&mut self, opened: bool, kept: Option<&[f32]>) -> Result<(), InvalidLogits> {
        let mut by_offset: Vec<usize> = (0..self.requests().len()).collect();
        by_offset.sort_by_key(|&index| self.offset(index));
        self.progress = Some(Progress {
            opened,
            tokens: self.given().to_vec(),
            fed: 0,
            contents: by_offset.iter().map(|_| None).collect(),
            by_offset,
            drawn: Vec::new(),
            last_row: None,
            first_pass: None,
            compute: Duration::ZERO,
        });
        if let (true, Some(row)) = (self.needs_kept_row(), kept) {
            let reading = self.read(0, row)?;
            self.apply(0, [reading]);
        }
        Ok(())
    }

    /// The tokens that ride next, at most `tokens` of them with at most `rows` rows: how many, and which of their rows.
    pub(crate) fn next(&self, tokens: usize, rows: usize) -> Option<(usize, Range<usize>)> {
        let progress = self.progress.as_ref()?;
        let count = tokens.min(progress.tokens.len() - progress.fed);
        let wanted = self.wanted(count);
        let (count, wanted) = if wanted.len() > rows {
            let count = wanted.start + rows;
            (count, self.wanted(count))
        } else {
            (count, wanted)
        };
        (count > 0).then_some((count, wanted))
    }

    /// Which rows behind the next `count` tokens are wanted, as one range of indices into them.
    fn wanted(&self, count: usize) -> Range<usize> {
        let Some(progress) = &self.progress else { return 0..0 };
        let fed = progress.fed;
        let offset = |&index: &usize| self.offset(index);
        let from = progress.by_offset.partition_point(|index| offset(index) <= fed);
        let to = progress.by_offset.partition_point(|index| offset(index) <= fed + count);
        let asked = &progress.by_offset[from..to];
        let reaches_end = count > 0 && fed + count == progress.tokens.len();
        let last = if reaches_end { Some(fed + count) } else { asked.last().map(offset) };
        match last {
            Some(last) => asked.first().map_or(last, offset) - fed - 1..last - fed,
            None => 0..0,
        }
    }

    /// The next `count` tokens and how many were fed before.
    pub(crate) fn slice(&self, count: usize) -> (usize, &[u32]) {
        match &self.progress {
            Some(progress) => (progress.fed, &progress.tokens[progress.fed..][..count]),
            None => (0, &[]),
        }
    }

    /// Takes from the row of `offset` what the operation wants of it.
    pub(crate) fn read(&self, offset: usize, logits: &[f32]) -> Result<Reading, InvalidLogits> {
        let Some(progress) = &self.progress else { return Ok(Reading::default()) };
        let reaches_end = offset == progress.tokens.len();
        let mut reading = Reading::default();
        let from = progress.by_offset.partition_point(|&index| self.offset(index) < offset);
        for &index in &progress.by_offset[from..] {
            if self.offset(index) > offset {
                break;
            }
            reading.contents.push((index, self.requests()[index].view.of(logits)?));
        }
        if let (true, Work::Draft { at, warp, randomness, .. }) = (reaches_end, &self.operation.work) {
            let distribution = Distribution::warped(logits, warp)?;
            // Positions fit: the context is a u32 on the wire.
            let position = u32::try_from(at + offset).unwrap_or(u32::MAX);
            let id = distribution.sample(randomness.uniform(Purpose::Draft, position));
            reading.drawn = Some((id, distribution.probability(id)));
        }
        reading.last_row = (reaches_end && offset > 0).then(|| logits.to_vec());
        Ok(reading)
    }

    /// Counts `fed` more tokens as cached and takes over what their rows gave.
    pub(crate) fn apply(&mut self, fed: usize, readings: impl IntoIterator<Item = Reading>) {
        let k = match self.operation.work {
            Work::Draft { k, .. } => k,
            Work::Extend { .. } | Work::Release => 0,
        };
        let Some(progress) = &mut self.progress else { return };
        progress.fed += fed;
        for reading in readings {
            for (index, content) in reading.contents {
                progress.contents[index] = Some(content);
            }
            if let Some((id, probability)) = reading.drawn {
                progress.drawn.push((id, probability));
                if progress.drawn.len() < k {
                    progress.tokens.push(id);
                }
            }
            progress.last_row = reading.last_row.or(progress.last_row.take());
        }
    }

    /// Whether everything has been fed.
    pub(crate) fn is_done(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.fed == progress.tokens.len())
    }

    /// What came of it; to be called once, when it is done.
    pub(crate) fn finish(&mut self) -> Finish {
        let length = self.length_afterwards();
        let offsets: Vec<usize> = self.requests().iter().map(|request| request.offset).collect();
        let Some(progress) = &mut self.progress else { return Finish { outcome: Outcome::Released, last_row: None } };
        let rows = offsets.into_iter().zip(progress.contents.drain(..).flatten()).collect();
        let outcome = match self.operation.work {
            Work::Extend { .. } => Outcome::Rows { length, rows },
            Work::Draft { .. } => {
                let (ids, probabilities) = progress.drawn.drain(..).unzip();
                Outcome::Drafted { length, ids, probabilities, rows }
            }
            Work::Release => Outcome::Released,
        };
        Finish { outcome, last_row: progress.last_row.take() }
    }

    /// The row behind the last token fed, if it is known.
    pub(crate) fn take_last_row(&mut self) -> Option<Vec<f32>> {
        self.progress.as_mut()?.last_row.take()
    }
}
