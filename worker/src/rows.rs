//! From a row of logits to the view of it that was asked for.

use std::cell::RefCell;

use cosec_proto::draw::{Distribution, InvalidLogits, Warp, Warper, probabilities_of};
use half::f16;

/// Which part of a distribution travels.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// Probabilities of given ids.
    Gather {
        /// Logits to distribution.
        warp: Warp,
        /// Below the vocabulary.
        ids: Vec<u32>,
    },
    /// The survivors of the warp.
    Nucleus {
        /// Logits to distribution.
        warp: Warp,
        /// Most survivors to return, at least 1.
        cap: usize,
    },
    /// One draw.
    Sample {
        /// Logits to distribution.
        warp: Warp,
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
    pub fn warp(&self) -> Option<&Warp> {
        match self {
            Self::Gather { warp, .. } | Self::Nucleus { warp, .. } | Self::Sample { warp, .. } => Some(warp),
            Self::Full(_) => None,
        }
    }

    /// Takes this view of `row`.
    ///
    /// # Errors
    /// [`InvalidLogits`] when the row makes no distribution, whatever the view.
    pub fn of(&self, row: &mut Row<'_>) -> Result<Content, InvalidLogits> {
        match self {
            Self::Gather { warp, ids } => Ok(Content::Gathered(row.gather(ids, warp)?)),
            Self::Nucleus { warp, cap } => Ok(nucleus(row.distribution(warp)?, *cap)),
            Self::Sample { warp, u } => {
                let distribution = row.distribution(warp)?;
                let id = distribution.sample(*u);
                Ok(Content::Sampled { id, probability: distribution.probability(id) })
            }
            Self::Full(precision) => full(row.logits, *precision),
        }
    }
}

/// A row of logits `[vocabulary]` and the distribution that was last made of it.
pub struct Row<'a> {
    logits: &'a [f32],
    warper: &'a mut Warper,
    warped: Option<Warp>,
    /// How many views each distribution serves: one that serves a single gather is not worth making.
    views: &'a dyn Fn(&Warp) -> usize,
}

thread_local! {
    /// Memory of the rows that this thread reads.
    static WARPER: RefCell<Warper> = RefCell::default();
}

impl Row<'_> {
    /// Lets `read` take views of `logits`; `views` says how many distributions under a warp it will ask for.
    pub fn with<T>(logits: &[f32], views: impl Fn(&Warp) -> usize, read: impl FnOnce(&mut Row<'_>) -> T) -> T {
        WARPER.with_borrow_mut(|warper| read(&mut Row { logits, warper, warped: None, views: &views }))
    }

    /// The row under `warp`; made once for views of the same warp in a row.
    ///
    /// # Errors
    /// [`InvalidLogits`].
    pub fn distribution(&mut self, warp: &Warp) -> Result<&Distribution, InvalidLogits> {
        if self.warped != Some(*warp) {
            self.warped = None;
            self.warper.warp(self.logits, warp)?;
            self.warped = Some(*warp);
        }
        Ok(self.warper.distribution())
    }

    fn gather(&mut self, ids: &[u32], warp: &Warp) -> Result<Vec<f64>, InvalidLogits> {
        if !warp.cuts() && self.warped != Some(*warp) && (self.views)(warp) < 2 {
            return probabilities_of(ids, self.logits, warp);
        }
        let distribution = self.distribution(warp)?;
        Ok(ids.iter().map(|&id| distribution.probability(id)).collect())
    }
}

fn nucleus(distribution: &Distribution, cap: usize) -> Content {
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
        Row::with(logits, |_| 1, |row| view.of(row))
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 3.0, f32::NEG_INFINITY, 0.5];

    #[test]
    fn nucleus_is_complete_under_its_cap_and_says_when_it_is_not() {
        let distribution = Distribution::warped(&LOGITS, &Warp::RAW).unwrap();
        let view = |cap| of(&View::Nucleus { warp: Warp::RAW, cap }, &LOGITS).unwrap();
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
        let warp = Warp::new(0.7, 0.9, 0).unwrap();
        let distribution = Distribution::warped(&LOGITS, &warp).unwrap();
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
            View::Gather { warp: Warp::RAW, ids: vec![0] },
            View::Nucleus { warp: Warp::GREEDY, cap: 1 },
            View::Sample { warp: Warp::RAW, u: 0.0 },
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
