//! From the logits of a position to what is wanted of them: views, a draw, the logits themselves for later.
//!
//! What is wanted is data, so that whoever has the logits reads them where they lie.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use cosec_proto::sampling::{
    Distribution, InvalidLogits, LogitsProcessor, SamplingParams, TokenProbability, token_probabilities,
};
use cosec_proto::{LogitsResult, LogitsView};
use cudarc::driver::CudaSlice;
use parking_lot::Mutex;

/// What is wanted of the logits of one position.
#[derive(Debug)]
pub struct LogitsTask<'a> {
    /// With the index under which each is answered.
    pub views: &'a [(usize, LogitsView)],
    /// A draw: from logits to a distribution, and the number in [0, 1) that it is drawn with.
    pub draw: Option<(SamplingParams, f64)>,
    /// Whether the logits are to stay.
    pub keep: bool,
    /// Where the answer goes; holds the one before.
    pub found: &'a mut TaskResult,
}

/// The answer to a [`LogitsTask`].
#[derive(Debug, Default)]
pub struct TaskResult {
    /// In the order of the views, with their indices.
    pub views: Vec<(usize, LogitsResult)>,
    /// The token drawn.
    pub drawn: Option<TokenProbability>,
    /// The logits, when they are to stay.
    pub kept: Option<KeptLogits>,
    /// Why there is nothing else.
    pub invalid: Option<InvalidLogits>,
}

impl TaskResult {
    /// Forgets everything but its memory.
    pub fn clear(&mut self) {
        self.views.clear();
        (self.drawn, self.kept, self.invalid) = (None, None, None);
    }
}

impl LogitsTask<'_> {
    /// Takes what is wanted of `logits`, `[vocabulary]`; logits that are to stay take their memory from `spare`.
    pub fn read(&mut self, logits: &[f32], spare: &BufferPool<Vec<f32>>) {
        self.found.clear();
        self.found.invalid = self.try_read(logits, spare).err();
    }

    fn try_read(&mut self, logits: &[f32], spare: &BufferPool<Vec<f32>>) -> Result<(), InvalidLogits> {
        let Self { views, draw, keep, found } = self;
        let same = |sampling: &SamplingParams| {
            let drawn = draw.is_some_and(|(of_draw, _)| of_draw == *sampling);
            views.iter().filter(|(_, view)| view.sampling() == Some(sampling)).count() + usize::from(drawn)
        };
        PROCESSOR.with_borrow_mut(|processor| {
            let mut reader = ViewReader { logits, processor, made_with: None, views: &same };
            for (index, view) in *views {
                found.views.push((*index, reader.view(view)?));
            }
            found.drawn = draw.map(|(sampling, u)| reader.draw(&sampling, u)).transpose()?;
            Ok(())
        })?;
        found.kept = keep.then(|| KeptLogits::of(logits, spare));
        Ok(())
    }
}

/// Logits of a position on a GPU.
pub(crate) type DeviceLogits = Option<CudaSlice<f32>>;

/// Logits of a position that stay in the model's memory.
#[derive(Debug)]
pub struct KeptLogits(KeptMemory);

#[derive(Debug)]
enum KeptMemory {
    Host(PooledBuffer<Vec<f32>>),
    Gpu(PooledBuffer<DeviceLogits>),
}

impl KeptLogits {
    fn of(logits: &[f32], spare: &BufferPool<Vec<f32>>) -> Self {
        let mut row = spare.lend();
        row.clear();
        row.extend_from_slice(logits);
        Self(KeptMemory::Host(row))
    }

    pub(crate) fn on_gpu(row: PooledBuffer<DeviceLogits>) -> Self {
        Self(KeptMemory::Gpu(row))
    }

    /// The logits; `None` when they do not lie in the host's memory.
    #[must_use]
    pub fn logits(&self) -> Option<&[f32]> {
        match &self.0 {
            KeptMemory::Host(row) => Some(row),
            KeptMemory::Gpu(_) => None,
        }
    }

    /// The logits; `None` when they do not lie on a GPU.
    pub(crate) fn logits_on_gpu(&self) -> Option<&DeviceLogits> {
        match &self.0 {
            KeptMemory::Host(_) => None,
            KeptMemory::Gpu(row) => Some(row),
        }
    }
}

/// Memory that is kept although nobody needs it.
const SPARE: usize = 64;

/// Lends memory for logits and takes it back.
#[derive(Clone, Debug, Default)]
pub struct BufferPool<T>(Arc<Mutex<Vec<T>>>);

impl<T: Default> BufferPool<T> {
    /// What came back from a loan before; else something new.
    pub(crate) fn lend(&self) -> PooledBuffer<T> {
        let item = self.0.lock().pop().unwrap_or_default();
        PooledBuffer { item, owner: Arc::clone(&self.0) }
    }
}

/// On loan; goes back by drop.
#[derive(Debug)]
pub(crate) struct PooledBuffer<T: Default> {
    item: T,
    owner: Arc<Mutex<Vec<T>>>,
}

impl<T: Default> Deref for PooledBuffer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: Default> DerefMut for PooledBuffer<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.item
    }
}

impl<T: Default> Drop for PooledBuffer<T> {
    fn drop(&mut self) {
        let mut spare = self.owner.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.item));
        }
    }
}

/// The logits of a position, `[vocabulary]`, and the distribution that was last made of them.
struct ViewReader<'a> {
    logits: &'a [f32],
    processor: &'a mut LogitsProcessor,
    /// What the distribution was made with.
    made_with: Option<SamplingParams>,
    /// How many views each distribution serves: one that serves a single gather is not worth making.
    views: &'a dyn Fn(&SamplingParams) -> usize,
}

thread_local! {
    /// Memory of the distributions that this thread makes.
    static PROCESSOR: RefCell<LogitsProcessor> = RefCell::default();
}

impl ViewReader<'_> {
    fn view(&mut self, view: &LogitsView) -> Result<LogitsResult, InvalidLogits> {
        match view {
            LogitsView::Gather { sampling, ids } => Ok(LogitsResult::Gathered(self.gather(ids, sampling)?)),
            LogitsView::Nucleus { sampling, cap } => {
                let (survivors, complete) = self.distribution(sampling)?.most_probable(*cap as usize);
                Ok(LogitsResult::Nucleus { survivors, complete })
            }
            LogitsView::Sample { sampling, u } => Ok(LogitsResult::Sampled(self.draw(sampling, *u)?)),
            LogitsView::Full => {
                check_logits(self.logits)?;
                Ok(LogitsResult::Full(self.logits.to_vec()))
            }
        }
    }

    /// Made once for consecutive views with the same parameters.
    fn distribution(&mut self, sampling: &SamplingParams) -> Result<&Distribution, InvalidLogits> {
        if self.made_with != Some(*sampling) {
            self.made_with = None;
            self.processor.process(self.logits, sampling)?;
            self.made_with = Some(*sampling);
        }
        Ok(self.processor.distribution())
    }

    fn gather(&mut self, ids: &[u32], sampling: &SamplingParams) -> Result<Vec<TokenProbability>, InvalidLogits> {
        if !sampling.cuts() && self.made_with != Some(*sampling) && (self.views)(sampling) < 2 {
            return token_probabilities(ids, self.logits, sampling);
        }
        let distribution = self.distribution(sampling)?;
        Ok(ids.iter().map(|&id| TokenProbability { id, probability: distribution.probability(id) }).collect())
    }

    /// The token that belongs to `u`.
    fn draw(&mut self, sampling: &SamplingParams, u: f64) -> Result<TokenProbability, InvalidLogits> {
        Ok(self.distribution(sampling)?.sample_token(u))
    }
}

fn check_logits(logits: &[f32]) -> Result<(), InvalidLogits> {
    let improper = |&(_, value): &(usize, &f32)| value.is_nan() || *value == f32::INFINITY;
    if let Some((index, &value)) = logits.iter().enumerate().find(improper) {
        return Err(InvalidLogits::Value { index, value });
    }
    if logits.iter().all(|&value| value == f32::NEG_INFINITY) {
        return Err(InvalidLogits::NoSupport);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(view: &LogitsView, logits: &[f32]) -> Result<LogitsResult, InvalidLogits> {
        let mut found = TaskResult::default();
        let views = &[(7, view.clone())];
        LogitsTask { views, draw: None, keep: false, found: &mut found }.read(logits, &BufferPool::default());
        found.invalid.map_or_else(|| Ok(found.views.remove(0).1), Err)
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 3.0, f32::NEG_INFINITY, 0.5];

    #[test]
    fn nucleus_is_complete_under_its_cap_and_says_when_it_is_not() {
        let distribution = Distribution::from_logits(&LOGITS, &SamplingParams::RAW).unwrap();
        let view = |cap| of(&LogitsView::Nucleus { sampling: SamplingParams::RAW, cap }, &LOGITS).unwrap();
        let nucleus = |cap| match view(cap) {
            LogitsResult::Nucleus { survivors, complete } => (survivors, complete),
            other => panic!("{other:?}"),
        };
        assert_eq!(nucleus(5), (distribution.clone(), true));

        let (survivors, complete) = nucleus(3);
        assert!(!complete);
        assert_eq!(survivors.ids(), [0, 1, 3]);
        assert_eq!(survivors.probabilities(), [0, 1, 3].map(|id| distribution.probability(id)));
        assert_eq!(survivors.log_normaliser(), distribution.log_normaliser());
        // Equal probabilities: the lower id stays.
        assert_eq!(nucleus(1).0.ids(), [1]);
    }

    #[test]
    fn gather_and_sample_read_the_same_distribution() {
        let sampling = SamplingParams::new(0.7, 0.9, 0).unwrap();
        let distribution = Distribution::from_logits(&LOGITS, &sampling).unwrap();
        let ids = [3, 4, 1, 3];
        let tokens = ids.map(|id| TokenProbability { id, probability: distribution.probability(id) });
        let view = LogitsView::Gather { sampling, ids: ids.to_vec() };
        assert_eq!(of(&view, &LOGITS).unwrap(), LogitsResult::Gathered(tokens.to_vec()));
        for u in [0.0, 0.3, 0.5, 0.999_999] {
            let expected = LogitsResult::Sampled(distribution.sample_token(u));
            assert_eq!(of(&LogitsView::Sample { sampling, u }, &LOGITS).unwrap(), expected);
        }
    }

    #[test]
    fn a_row_is_drawn_from_and_kept_and_its_memory_comes_back() {
        let (spare, sampling) = (BufferPool::default(), SamplingParams::new(0.7, 0.9, 0).unwrap());
        let distribution = Distribution::from_logits(&LOGITS, &sampling).unwrap();
        let (mut first, mut again) = (TaskResult::default(), TaskResult::default());
        LogitsTask { views: &[], draw: Some((sampling, 0.4)), keep: true, found: &mut first }.read(&LOGITS, &spare);
        assert_eq!(first.drawn, Some(distribution.sample_token(0.4)));
        let kept = first.kept.take().unwrap();
        let mut task = LogitsTask { views: &[], draw: Some((sampling, 0.4)), keep: false, found: &mut again };
        task.read(kept.logits().unwrap(), &spare);
        assert_eq!((again.drawn, again.kept.is_some()), (first.drawn, false));
        drop(kept);
        assert!(spare.lend().capacity() >= LOGITS.len());
        LogitsTask { views: &[], draw: Some((sampling, 0.4)), keep: true, found: &mut first }
            .read(&[f32::NAN], &spare);
        assert!(first.invalid.is_some() && first.drawn.is_none() && first.kept.is_none());
    }

    #[test]
    fn every_view_refuses_a_row_that_makes_no_distribution() {
        let views = [
            LogitsView::Gather { sampling: SamplingParams::RAW, ids: vec![0] },
            LogitsView::Nucleus { sampling: SamplingParams::GREEDY, cap: 1 },
            LogitsView::Sample { sampling: SamplingParams::RAW, u: 0.0 },
            LogitsView::Full,
        ];
        for view in views {
            for row in [[0.0, f32::NAN], [f32::INFINITY, 0.0]] {
                assert!(matches!(of(&view, &row), Err(InvalidLogits::Value { .. })), "{view:?}");
            }
            assert_eq!(of(&view, &[f32::NEG_INFINITY; 2]), Err(InvalidLogits::NoSupport), "{view:?}");
        }
    }
}
