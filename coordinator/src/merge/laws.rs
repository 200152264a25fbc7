//! What is known of the models at one position, read through the request's warps.

use std::cell::OnceCell;

use cosec_proto::sampling::{Distribution, SamplingParams, TokenProbability};

use super::{Lacking, MergeError};
use crate::request::Settings;
use cosec_proto::WorkerRole;

/// How the logits of base and expert become the laws of a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warps {
    /// p in the acceptance test.
    pub judged: SamplingParams,
    /// p where the base's own token is drawn.
    pub fallback: SamplingParams,
    /// q.
    pub expert: SamplingParams,
}

impl Warps {
    /// Derives them from the settings.
    ///
    /// The published code judges and falls back by the raw softmax. At base temperature 0 the arg max is the
    /// fallback, but an all-or-nothing p would judge nothing, so the test reads the raw softmax.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let (judged, fallback) = if settings.reference_code {
            (SamplingParams::RAW, SamplingParams::RAW)
        } else if settings.base.temperature() == 0.0 {
            (SamplingParams::RAW, SamplingParams::GREEDY)
        } else {
            (settings.base, settings.base)
        };
        Self { judged, fallback, expert: settings.expert }
    }
}

/// What is known of one model at one position.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Raw logits.
    pub row: Option<Vec<f32>>,
    /// Complete distributions by their warp.
    pub nuclei: Vec<(SamplingParams, Distribution)>,
    /// The worker's draw: the expert's proposal, the base's fallback.
    pub drawn: Option<TokenProbability>,
    /// A probability that the worker looked up (under [`Warps::judged`] for the base).
    pub looked_up: Option<TokenProbability>,
}

impl Evidence {
    fn whole<'a>(
        &'a self,
        warp: &SamplingParams,
        computed: &'a OnceCell<Distribution>,
        lacking: Lacking,
    ) -> Result<&'a Distribution, MergeError> {
        if let Some((_, nucleus)) = self.nuclei.iter().find(|(of, _)| of == warp) {
            return Ok(nucleus);
        }
        if let Some(distribution) = computed.get() {
            return Ok(distribution);
        }
        let row = self.row.as_deref().ok_or(lacking)?;
        let distribution = Distribution::from_logits(row, warp)?;
        Ok(computed.get_or_init(|| distribution))
    }
}

/// The laws of base and expert at one position, computed from the evidence when a rule first reads them.
#[derive(Debug)]
pub struct Laws {
    evidence: Box<[Evidence; 3]>,
    warps: Warps,
    judged: OnceCell<Distribution>,
    fallback: OnceCell<Distribution>,
    expert: OnceCell<Distribution>,
}

impl Laws {
    /// Reads `evidence`, in the order of [`WorkerRole::ALL`], through `warps`.
    #[must_use]
    pub fn new(evidence: Box<[Evidence; 3]>, warps: Warps) -> Self {
        Self { evidence, warps, judged: OnceCell::new(), fallback: OnceCell::new(), expert: OnceCell::new() }
    }

    /// Gives the evidence back.
    #[must_use]
    pub fn into_evidence(self) -> Box<[Evidence; 3]> {
        self.evidence
    }

    fn of(&self, role: WorkerRole) -> &Evidence {
        &self.evidence[role.index()]
    }

    /// How the logits are read.
    #[must_use]
    pub fn warps(&self) -> &Warps {
        &self.warps
    }

    /// Raw logits, where they are known.
    #[must_use]
    pub fn row(&self, role: WorkerRole) -> Option<&[f32]> {
        self.of(role).row.as_deref()
    }

    /// p as the acceptance test reads it.
    ///
    /// # Errors
    /// Unless the row or nucleus is known.
    pub fn judged_law(&self) -> Result<&Distribution, MergeError> {
        if self.warps.judged == self.warps.fallback {
            return self.fallback_law();
        }
        self.of(WorkerRole::Base).whole(&self.warps.judged, &self.judged, Lacking::Row(WorkerRole::Base))
    }

    /// p as the base's own token is drawn from.
    ///
    /// # Errors
    /// Unless the row or nucleus is known.
    pub fn fallback_law(&self) -> Result<&Distribution, MergeError> {
        self.of(WorkerRole::Base).whole(&self.warps.fallback, &self.fallback, Lacking::Row(WorkerRole::Base))
    }

    /// q.
    ///
    /// # Errors
    /// Unless the row or nucleus is known.
    pub fn expert_law(&self) -> Result<&Distribution, MergeError> {
        self.of(WorkerRole::Expert).whole(&self.warps.expert, &self.expert, Lacking::Row(WorkerRole::Expert))
    }

    /// The expert's token for `u`.
    ///
    /// # Errors
    /// Unless it was drawn or the expert's law is known.
    pub fn proposal(&self, u: f64) -> Result<TokenProbability, MergeError> {
        match self.of(WorkerRole::Expert).drawn {
            Some(drawn) => Ok(drawn),
            None => Ok(draw(or(self.expert_law(), Lacking::Proposal)?, u)),
        }
    }

    /// The base's token for `u`.
    ///
    /// # Errors
    /// Unless it was drawn or the base's law is known.
    pub fn fallback(&self, u: f64) -> Result<TokenProbability, MergeError> {
        match self.of(WorkerRole::Base).drawn {
            Some(drawn) => Ok(drawn),
            None => Ok(draw(or(self.fallback_law(), Lacking::Fallback)?, u)),
        }
    }

    /// The base's probability of `id` in the acceptance test.
    ///
    /// # Errors
    /// Unless it was looked up or the base's law is known.
    pub fn judged(&self, id: u32) -> Result<f64, MergeError> {
        match self.of(WorkerRole::Base).looked_up {
            Some(looked_up) if looked_up.id == id => Ok(looked_up.probability),
            _ => Ok(or(self.judged_law(), Lacking::Judgement(id))?.probability(id)),
        }
    }
}

fn draw(law: &Distribution, u: f64) -> TokenProbability {
    let id = law.sample(u);
    TokenProbability { id, probability: law.probability(id) }
}

/// Where a whole row is lacking, a point of it would do.
fn or<T>(law: Result<T, MergeError>, point: Lacking) -> Result<T, MergeError> {
    law.map_err(|error| match error {
        MergeError::Lacking(_) => point.into(),
        other => other,
    })
}
