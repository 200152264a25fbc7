//! From a row of logits to what is wanted of it: views, a draw, the row itself for later.
//!
//! What is wanted is data, so that whoever has the logits takes it where they lie.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use cosec_proto::sampling::{Distribution, InvalidLogits, LogitsProcessor, SamplingParams, probabilities_of};
use cudarc::driver::CudaSlice;
use half::f16;
use parking_lot::Mutex;

/// Which part of a distribution travels.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// Probabilities of given ids.
    Gather {
        /// Logits to distribution.
        warp: SamplingParams,
        /// Below the vocabulary.
        ids: Vec<u32>,
    },
    /// The survivors of the warp.
    Nucleus {
        /// Logits to distribution.
        warp: SamplingParams,
        /// Most survivors to return, at least 1.
        cap: usize,
    },
    /// One draw.
    Sample {
        /// Logits to distribution.
        warp: SamplingParams,
        /// In [0, 1).
        u: f64,
    },
    /// The raw logits.
    Full(Precision),
}

/// Number format of raw logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As the model computed them.
    F32,
    /// Rounded to half precision.
    F16,
}

impl Precision {
    /// Bytes of one logit.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// The answer to a [`View`].
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// In the order of the ids asked for.
    Gathered(Vec<f64>),
    /// See [`View::Nucleus`].
    Nucleus {
        /// Ascending.
        ids: Vec<u32>,
        /// In the order of the ids.
        probabilities: Vec<f64>,
        /// Whether every survivor is here.
        complete: bool,
        /// Log of the sum of `exp(logit / temperature)` over all survivors.
        log_normaliser: f64,
    },
    /// See [`View::Sample`].
    Sampled {
        /// The token drawn.
        id: u32,
        /// Its probability.
        probability: f64,
    },
    /// Little-endian, one number per token of the vocabulary.
    Full {
        /// Number format.
        precision: Precision,
        /// The numbers.
        logits: Vec<u8>,
    },
}

impl View {
    /// How logits become the distribution that it is a view of; `None` for raw logits.
    #[must_use]
    pub fn warp(&self) -> Option<&SamplingParams> {
        match self {
            Self::Gather { warp, .. } | Self::Nucleus { warp, .. } | Self::Sample { warp, .. } => Some(warp),
            Self::Full(_) => None,
        }
    }

    /// Takes this view of `row`.
    fn of(&self, row: &mut Row<'_>) -> Result<Content, InvalidLogits> {
        match self {
            Self::Gather { warp, ids } => Ok(Content::Gathered(row.gather(ids, warp)?)),
            Self::Nucleus { warp, cap } => Ok(nucleus(row.distribution(warp)?, *cap)),
            Self::Sample { warp, u } => {
                let (id, probability) = row.draw(warp, *u)?;
                Ok(Content::Sampled { id, probability })
            }
            Self::Full(precision) => full(row.logits, *precision),
        }
    }
}

/// What is wanted of one row of logits.
#[derive(Debug)]
pub struct RowTask<'a> {
    /// With the index under which each is answered.
    pub views: &'a [(usize, View)],
    /// A draw: from logits to a distribution, and the number in [0, 1) that it is drawn with.
    pub draw: Option<(SamplingParams, f64)>,
    /// Whether the row is to stay.
    pub keep: bool,
    /// Where the answer goes; holds the one before.
    pub found: &'a mut Found,
}

/// The answer to a [`RowTask`].
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of the views, with their indices.
    pub contents: Vec<(usize, Content)>,
    /// The token drawn and its probability.
    pub drawn: Option<(u32, f64)>,
    /// The row.
    pub kept: Option<KeptRow>,
    /// Why there is nothing else.
    pub invalid: Option<InvalidLogits>,
}

impl Found {
    /// Forgets everything but its memory.
    pub fn clear(&mut self) {
        self.contents.clear();
        (self.drawn, self.kept, self.invalid) = (None, None, None);
    }
}

impl RowTask<'_> {
    /// Takes what is wanted of `logits`, `[vocabulary]`; a row that is to stay takes its memory from `spare`.
    pub fn read(&mut self, logits: &[f32], spare: &Spare<Vec<f32>>) {
        self.found.clear();
        self.found.invalid = self.try_read(logits, spare).err();
    }

    fn try_read(&mut self, logits: &[f32], spare: &Spare<Vec<f32>>) -> Result<(), InvalidLogits> {
        let Self { views, draw, keep, found } = self;
        let same = |warp: &SamplingParams| {
            let drawn = draw.is_some_and(|(of_draw, _)| of_draw == *warp);
            views.iter().filter(|(_, view)| view.warp() == Some(warp)).count() + usize::from(drawn)
        };
        PROCESSOR.with_borrow_mut(|processor| {
            let row = &mut Row { logits, processor, warped: None, views: &same };
            for (index, view) in *views {
                found.contents.push((*index, view.of(row)?));
            }
            found.drawn = draw.map(|(warp, u)| row.draw(&warp, u)).transpose()?;
            Ok(())
        })?;
        found.kept = keep.then(|| KeptRow::of(logits, spare));
        Ok(())
    }
}

/// A row of logits that stays on a GPU.
pub(crate) type GpuRow = Option<CudaSlice<f32>>;

/// A row of logits that stays in the model's memory.
#[derive(Debug)]
pub struct KeptRow(Kept);

#[derive(Debug)]
enum Kept {
    Here(Lent<Vec<f32>>),
    OnGpu(Lent<GpuRow>),
}

impl KeptRow {
    fn of(logits: &[f32], spare: &Spare<Vec<f32>>) -> Self {
        let mut row = spare.lend();
        row.clear();
        row.extend_from_slice(logits);
        Self(Kept::Here(row))
    }

    pub(crate) fn on_gpu(row: Lent<GpuRow>) -> Self {
        Self(Kept::OnGpu(row))
    }

    /// The row; `None` when it does not lie in the host's memory.
    #[must_use]
    pub fn logits(&self) -> Option<&[f32]> {
        match &self.0 {
            Kept::Here(row) => Some(row),
            Kept::OnGpu(_) => None,
        }
    }

    /// The row; `None` when it does not lie on a GPU.
    pub(crate) fn row_on_gpu(&self) -> Option<&GpuRow> {
        match &self.0 {
            Kept::Here(_) => None,
            Kept::OnGpu(row) => Some(row),
        }
    }
}

/// Memory that is kept although nobody needs it.
const SPARE: usize = 64;

/// Lends memory of rows and takes it back.
#[derive(Clone, Debug, Default)]
pub struct Spare<T>(Arc<Mutex<Vec<T>>>);

impl<T: Default> Spare<T> {
    /// What came back from a loan before; else something new.
    pub(crate) fn lend(&self) -> Lent<T> {
        let item = self.0.lock().pop().unwrap_or_default();
        Lent { item, owner: Arc::clone(&self.0) }
    }
}

/// On loan; goes back by drop.
#[derive(Debug)]
pub(crate) struct Lent<T: Default> {
    item: T,
    owner: Arc<Mutex<Vec<T>>>,
}

impl<T: Default> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: Default> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.item
    }
}

impl<T: Default> Drop for Lent<T> {
    fn drop(&mut self) {
        let mut spare = self.owner.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.item));
        }
    }
}

/// A row of logits `[vocabulary]` and the distribution that was last made of it.
struct Row<'a> {
    logits: &'a [f32],
    processor: &'a mut LogitsProcessor,
    warped: Option<SamplingParams>,
    /// How many views each distribution serves: one that serves a single gather is not worth making.
    views: &'a dyn Fn(&SamplingParams) -> usize,
}

thread_local! {
    /// Memory of the rows that this thread reads.
    static PROCESSOR: RefCell<LogitsProcessor> = RefCell::default();
}

impl Row<'_> {
    /// The row under `warp`; made once for views of the same warp in a row.
    fn distribution(&mut self, warp: &SamplingParams) -> Result<&Distribution, InvalidLogits> {
        if self.warped != Some(*warp) {
            self.warped = None;
            self.processor.process(self.logits, warp)?;
            self.warped = Some(*warp);
        }
        Ok(self.processor.distribution())
    }

    fn gather(&mut self, ids: &[u32], warp: &SamplingParams) -> Result<Vec<f64>, InvalidLogits> {
        if !warp.cuts() && self.warped != Some(*warp) && (self.views)(warp) < 2 {
            return probabilities_of(ids, self.logits, warp);
        }
        let distribution = self.distribution(warp)?;
        Ok(ids.iter().map(|&id| distribution.probability(id)).collect())
    }

    /// The token that belongs to `u`, and its probability.
    fn draw(&mut self, warp: &SamplingParams, u: f64) -> Result<(u32, f64), InvalidLogits> {
        let distribution = self.distribution(warp)?;
        let id = distribution.sample(u);
        Ok((id, distribution.probability(id)))
    }
}

/// The likeliest `cap` tokens.
pub(crate) fn nucleus(distribution: &Distribution, cap: usize) -> Content {
    let mut survivors: Vec<(u32, f64)> = distribution.iter().collect();
    let complete = survivors.len() <= cap;
    if !complete {
        // Lower ids first among equals.
        survivors.select_nth_unstable_by(cap, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        survivors.truncate(cap);
        survivors.sort_unstable_by_key(|&(id, _)| id);
    }
    let (ids, probabilities) = survivors.into_iter().unzip();
    Content::Nucleus { ids, probabilities, complete, log_normaliser: distribution.log_normaliser() }
}

fn full(logits: &[f32], precision: Precision) -> Result<Content, InvalidLogits> {
    let improper = |&(_, value): &(usize, &f32)| value.is_nan() || *value == f32::INFINITY;
    if let Some((index, &value)) = logits.iter().enumerate().find(improper) {
        return Err(InvalidLogits::Value { index, value });
    }
    if logits.iter().all(|&value| value == f32::NEG_INFINITY) {
        return Err(InvalidLogits::NoSupport);
    }
    let logits = match precision {
        Precision::F32 => logits.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Precision::F16 => logits.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    };
    Ok(Content::Full { precision, logits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(view: &View, logits: &[f32]) -> Result<Content, InvalidLogits> {
        let mut found = Found::default();
        let views = &[(7, view.clone())];
        RowTask { views, draw: None, keep: false, found: &mut found }.read(logits, &Spare::default());
        found.invalid.map_or_else(|| Ok(found.contents.remove(0).1), Err)
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 3.0, f32::NEG_INFINITY, 0.5];

    #[test]
    fn nucleus_is_complete_under_its_cap_and_says_when_it_is_not() {
        let distribution = Distribution::from_logits(&LOGITS, &SamplingParams::RAW).unwrap();
        let view = |cap| of(&View::Nucleus { warp: SamplingParams::RAW, cap }, &LOGITS).unwrap();
        let Content::Nucleus { ids, probabilities, complete, log_normaliser } = view(5) else { panic!("view") };
        assert!(complete);
        assert_eq!((ids.as_slice(), probabilities.as_slice()), (distribution.ids(), distribution.probabilities()));
        assert_eq!(log_normaliser, distribution.log_normaliser());

        let Content::Nucleus { ids, probabilities, complete, log_normaliser } = view(3) else { panic!("view") };
        assert!(!complete);
        assert_eq!(ids, [0, 1, 3]);
        assert_eq!(probabilities, [0, 1, 3].map(|id| distribution.probability(id)));
        assert_eq!(log_normaliser, distribution.log_normaliser());
        // Equal probabilities: the lower id stays.
        assert!(matches!(view(1), Content::Nucleus { ids, .. } if ids == [1]));
    }

    #[test]
    fn gather_and_sample_read_the_same_distribution() {
        let warp = SamplingParams::new(0.7, 0.9, 0).unwrap();
        let distribution = Distribution::from_logits(&LOGITS, &warp).unwrap();
        let Content::Gathered(probabilities) = of(&View::Gather { warp, ids: vec![3, 4, 1, 3] }, &LOGITS).unwrap()
        else {
            panic!("view")
        };
        assert_eq!(probabilities, [3, 4, 1, 3].map(|id| distribution.probability(id)));
        for u in [0.0, 0.3, 0.5, 0.999_999] {
            let id = distribution.sample(u);
            let expected = Content::Sampled { id, probability: distribution.probability(id) };
            assert_eq!(of(&View::Sample { warp, u }, &LOGITS).unwrap(), expected);
        }
    }

    #[test]
    fn a_row_is_drawn_from_and_kept_and_its_memory_comes_back() {
        let (spare, warp) = (Spare::default(), SamplingParams::new(0.7, 0.9, 0).unwrap());
        let distribution = Distribution::from_logits(&LOGITS, &warp).unwrap();
        let (mut first, mut again) = (Found::default(), Found::default());
        RowTask { views: &[], draw: Some((warp, 0.4)), keep: true, found: &mut first }.read(&LOGITS, &spare);
        let id = distribution.sample(0.4);
        assert_eq!(first.drawn, Some((id, distribution.probability(id))));
        let kept = first.kept.take().unwrap();
        let mut task = RowTask { views: &[], draw: Some((warp, 0.4)), keep: false, found: &mut again };
        task.read(kept.logits().unwrap(), &spare);
        assert_eq!((again.drawn, again.kept.is_some()), (first.drawn, false));
        drop(kept);
        assert!(spare.lend().capacity() >= LOGITS.len());
        RowTask { views: &[], draw: Some((warp, 0.4)), keep: true, found: &mut first }.read(&[f32::NAN], &spare);
        assert!(first.invalid.is_some() && first.drawn.is_none() && first.kept.is_none());
    }

    #[test]
    fn full_rows_are_little_endian_bits() {
        let Content::Full { logits, .. } = of(&View::Full(Precision::F32), &LOGITS).unwrap() else { panic!("view") };
        let values: Vec<f32> = logits.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(values, LOGITS);
        let Content::Full { logits, .. } = of(&View::Full(Precision::F16), &LOGITS).unwrap() else { panic!("view") };
        let values: Vec<f32> =
            logits.chunks(2).map(|bytes| f16::from_le_bytes(bytes.try_into().unwrap()).to_f32()).collect();
        assert_eq!(values, LOGITS);
    }

    #[test]
    fn every_view_refuses_a_row_that_makes_no_distribution() {
        let views = [
            View::Gather { warp: SamplingParams::RAW, ids: vec![0] },
            View::Nucleus { warp: SamplingParams::GREEDY, cap: 1 },
            View::Sample { warp: SamplingParams::RAW, u: 0.0 },
            View::Full(Precision::F32),
            View::Full(Precision::F16),
        ];
        for view in views {
            for row in [[0.0, f32::NAN], [f32::INFINITY, 0.0]] {
                assert!(matches!(of(&view, &row), Err(InvalidLogits::Value { .. })), "{view:?}");
            }
            assert_eq!(of(&view, &[f32::NEG_INFINITY; 2]), Err(InvalidLogits::NoSupport), "{view:?}");
        }
    }
}
