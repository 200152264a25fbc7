//! What is known of the models at one position, read through the request's sampling parameters.

use std::cell::OnceCell;

use cosec_proto::WorkerRole;
use cosec_proto::sampling::{Distribution, InvalidLogits, InvalidSupport, SamplingParams, TokenProbability};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adjustments::{LogitChanges, OverAdjusted};

/// The distribution of the base that judges the expert's proposals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// r: the softmax of the base's own logits, as CoSec's published code has it. Nothing that a client asks for
    /// changes it.
    #[default]
    Raw,
    /// p: what the base's own token is drawn from, as the paper's text has it. What a client asks for its sampling
    /// can reject the expert's proposals.
    Warped,
}

impl Judge {
    /// Name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Warped => "warped",
        }
    }
}

/// How the logits of base and expert become distributions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RuleSampling {
    /// What the acceptance test reads.
    pub judge: Judge,
    /// p, which the base's own token is drawn from.
    pub fallback: SamplingParams,
    /// q.
    pub expert: SamplingParams,
}

impl RuleSampling {
    /// Derives them from the parameters of a request and the operator's settings.
    ///
    /// With `reference_code` the base judges and falls back by its softmax at temperature 1, whatever `base` says. An
    /// all-or-nothing p would judge nothing: at base temperature 0 every judge reads r.
    #[must_use]
    pub fn new(base: SamplingParams, expert: SamplingParams, judge: Judge, reference_code: bool) -> Self {
        if reference_code {
            Self { judge: Judge::Raw, fallback: SamplingParams::RAW, expert }
        } else if base.temperature() == 0.0 {
            Self { judge: Judge::Raw, fallback: SamplingParams::GREEDY, expert }
        } else {
            Self { judge, fallback: base, expert }
        }
    }

    /// How the base's logits are read in the acceptance test.
    #[must_use]
    pub fn acceptance(&self) -> SamplingParams {
        match self.judge {
            Judge::Raw => SamplingParams::RAW,
            Judge::Warped => self.fallback,
        }
    }
}

/// What is known of one model at one position.
#[derive(Clone, Debug, Default)]
pub struct ModelEvidence {
    /// Raw logits.
    pub logits: Option<Vec<f32>>,
    /// Complete distributions by their sampling parameters.
    pub nuclei: Vec<(SamplingParams, Distribution)>,
    /// The worker's draw: the expert's proposal, the base's fallback.
    pub drawn: Option<TokenProbability>,
    /// A probability that the worker looked up (under [`RuleSampling::acceptance`] for the base).
    pub looked_up: Option<TokenProbability>,
}

impl ModelEvidence {
    /// What a worker or an earlier question computed.
    fn known<'a>(&'a self, warp: &SamplingParams, computed: &'a OnceCell<Distribution>) -> Option<&'a Distribution> {
        let nucleus = self.nuclei.iter().find(|(of, _)| of == warp).map(|(_, nucleus)| nucleus);
        nucleus.or_else(|| computed.get())
    }
}

/// The distributions of base and expert at one position, computed from the evidence when a rule first reads them.
#[derive(Debug)]
pub struct PositionDistributions {
    evidence: Box<[ModelEvidence; 3]>,
    sampling: RuleSampling,
    /// To all logits but those that judge. Where there are any, evidence is logits.
    changes: LogitChanges,
    changed: [OnceCell<Vec<f32>>; 3],
    raw: OnceCell<Distribution>,
    fallback: OnceCell<Distribution>,
    expert: OnceCell<Distribution>,
}

impl PositionDistributions {
    /// Reads `evidence`, in the order of [`WorkerRole::ALL`], through what a client asked to change in the logits and
    /// through `sampling`.
    #[must_use]
    pub fn new(evidence: Box<[ModelEvidence; 3]>, changes: LogitChanges, sampling: RuleSampling) -> Self {
        Self {
            evidence,
            sampling,
            changes,
            changed: Default::default(),
            raw: OnceCell::new(),
            fallback: OnceCell::new(),
            expert: OnceCell::new(),
        }
    }

    /// Gives the evidence back.
    #[must_use]
    pub fn into_evidence(self) -> Box<[ModelEvidence; 3]> {
        self.evidence
    }

    fn of(&self, role: WorkerRole) -> &ModelEvidence {
        &self.evidence[role.index()]
    }

    /// How the logits are read.
    #[must_use]
    pub fn sampling(&self) -> &RuleSampling {
        &self.sampling
    }

    /// The logits that tokens are drawn from, where they are known.
    ///
    /// # Errors
    /// [`MergeError::OverAdjusted`].
    pub fn logits(&self, role: WorkerRole) -> Result<Option<&[f32]>, MergeError> {
        let Some(raw) = self.of(role).logits.as_deref() else { return Ok(None) };
        if self.changes.is_empty() {
            return Ok(Some(raw));
        }
        let changed = &self.changed[role.index()];
        if let Some(changed) = changed.get() {
            return Ok(Some(changed));
        }
        let logits = self.changes.apply(raw)?;
        Ok(Some(changed.get_or_init(|| logits)))
    }

    fn warped<'a>(
        &'a self,
        role: WorkerRole,
        warp: &SamplingParams,
        computed: &'a OnceCell<Distribution>,
    ) -> Result<&'a Distribution, MergeError> {
        if let Some(known) = self.of(role).known(warp, computed) {
            return Ok(known);
        }
        let logits = self.logits(role)?.ok_or(MissingEvidence::Logits(role))?;
        let distribution = Distribution::from_logits(logits, warp)?;
        Ok(computed.get_or_init(|| distribution))
    }

    /// r: the base's own distribution, of which nothing is cut and to which no client has a say.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn raw_distribution(&self) -> Result<&Distribution, MergeError> {
        let warp = SamplingParams::RAW;
        if self.sampling.fallback == warp && self.changes.is_empty() {
            return self.fallback_distribution();
        }
        let base = self.of(WorkerRole::Base);
        if let Some(known) = base.known(&warp, &self.raw) {
            return Ok(known);
        }
        let logits = base.logits.as_deref().ok_or(MissingEvidence::Logits(WorkerRole::Base))?;
        let distribution = Distribution::from_logits(logits, &warp)?;
        Ok(self.raw.get_or_init(|| distribution))
    }

    /// What judges the expert's proposals.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn acceptance_distribution(&self) -> Result<&Distribution, MergeError> {
        match self.sampling.judge {
            Judge::Raw => self.raw_distribution(),
            Judge::Warped => self.fallback_distribution(),
        }
    }

    /// p, which the base's own token is drawn from.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn fallback_distribution(&self) -> Result<&Distribution, MergeError> {
        self.warped(WorkerRole::Base, &self.sampling.fallback, &self.fallback)
    }

    /// q.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn expert_distribution(&self) -> Result<&Distribution, MergeError> {
        self.warped(WorkerRole::Expert, &self.sampling.expert, &self.expert)
    }

    /// The expert's token for `u`.
    ///
    /// # Errors
    /// Unless it was drawn or the expert's distribution is known.
    pub fn proposal(&self, u: f64) -> Result<TokenProbability, MergeError> {
        match self.of(WorkerRole::Expert).drawn {
            Some(drawn) => Ok(drawn),
            None => Ok(draw(or(self.expert_distribution(), MissingEvidence::Proposal)?, u)),
        }
    }

    /// The base's token for `u`.
    ///
    /// # Errors
    /// Unless it was drawn or the base's distribution is known.
    pub fn fallback(&self, u: f64) -> Result<TokenProbability, MergeError> {
        match self.of(WorkerRole::Base).drawn {
            Some(drawn) => Ok(drawn),
            None => Ok(draw(or(self.fallback_distribution(), MissingEvidence::Fallback)?, u)),
        }
    }

    /// The base's probability of `id`, as the acceptance test reads it.
    ///
    /// # Errors
    /// Unless it was looked up or the base's distribution is known.
    pub fn judgement(&self, id: u32) -> Result<f64, MergeError> {
        match self.of(WorkerRole::Base).looked_up {
            Some(looked_up) if looked_up.id == id => Ok(looked_up.probability),
            _ => Ok(or(self.acceptance_distribution(), MissingEvidence::Judgement(id))?.probability(id)),
        }
    }
}

fn draw(distribution: &Distribution, u: f64) -> TokenProbability {
    let id = distribution.sample(u);
    TokenProbability { id, probability: distribution.probability(id) }
}

/// Where the logits are missing, a point of the distribution would do.
fn or<T>(known: Result<T, MergeError>, point: MissingEvidence) -> Result<T, MergeError> {
    known.map_err(|error| match error {
        MergeError::Missing(_) => point.into(),
        other => other,
    })
}

/// What a rule must know before it can decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingEvidence {
    /// A draw from the expert.
    #[error("the expert's proposal is not known")]
    Proposal,
    /// The base's probability of this id.
    #[error("the base's probability of token {0} is not known")]
    Judgement(u32),
    /// A draw from the base.
    #[error("the base's own token is not known")]
    Fallback,
    /// All logits of a model.
    #[error("the logits of the {} are not known", .0.name())]
    Logits(WorkerRole),
}

/// Why there is no token yet.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// Find it out and ask again.
    #[error(transparent)]
    Missing(#[from] MissingEvidence),
    /// Logits make no distribution.
    #[error("logits make no distribution: {0}")]
    Logits(#[from] InvalidLogits),
    /// The client's changes leave nothing to draw.
    #[error(transparent)]
    OverAdjusted(#[from] OverAdjusted),
    /// A blend makes no distribution.
    #[error("the merged probabilities make no distribution: {0}")]
    Blend(#[from] InvalidSupport),
}
