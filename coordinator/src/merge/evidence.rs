//! What is known of the models at one position, read through the request's sampling parameters.

use std::cell::OnceCell;

use cosec_proto::WorkerRole;
use cosec_proto::sampling::{Distribution, InvalidLogits, InvalidSupport, SamplingParams, TokenProbability};

/// How the logits of base and expert become distributions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RuleSampling {
    /// p in the acceptance test.
    pub acceptance: SamplingParams,
    /// p where the base's own token is drawn.
    pub fallback: SamplingParams,
    /// q.
    pub expert: SamplingParams,
}

impl RuleSampling {
    /// Derives them from the parameters of a request.
    ///
    /// The published code judges and falls back by the raw softmax. At base temperature 0 the arg max is the
    /// fallback, but an all-or-nothing p would judge nothing, so the test reads the raw softmax.
    #[must_use]
    pub fn new(base: SamplingParams, expert: SamplingParams, reference_code: bool) -> Self {
        let (acceptance, fallback) = if reference_code {
            (SamplingParams::RAW, SamplingParams::RAW)
        } else if base.temperature() == 0.0 {
            (SamplingParams::RAW, SamplingParams::GREEDY)
        } else {
            (base, base)
        };
        Self { acceptance, fallback, expert }
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
    fn whole<'a>(
        &'a self,
        warp: &SamplingParams,
        computed: &'a OnceCell<Distribution>,
        missing: MissingEvidence,
    ) -> Result<&'a Distribution, MergeError> {
        if let Some((_, nucleus)) = self.nuclei.iter().find(|(of, _)| of == warp) {
            return Ok(nucleus);
        }
        if let Some(distribution) = computed.get() {
            return Ok(distribution);
        }
        let logits = self.logits.as_deref().ok_or(missing)?;
        let distribution = Distribution::from_logits(logits, warp)?;
        Ok(computed.get_or_init(|| distribution))
    }
}

/// The distributions of base and expert at one position, computed from the evidence when a rule first reads them.
#[derive(Debug)]
pub struct PositionDistributions {
    evidence: Box<[ModelEvidence; 3]>,
    sampling: RuleSampling,
    acceptance: OnceCell<Distribution>,
    fallback: OnceCell<Distribution>,
    expert: OnceCell<Distribution>,
}

impl PositionDistributions {
    /// Reads `evidence`, in the order of [`WorkerRole::ALL`], through `sampling`.
    #[must_use]
    pub fn new(evidence: Box<[ModelEvidence; 3]>, sampling: RuleSampling) -> Self {
        Self { evidence, sampling, acceptance: OnceCell::new(), fallback: OnceCell::new(), expert: OnceCell::new() }
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

    /// Raw logits, where they are known.
    #[must_use]
    pub fn logits(&self, role: WorkerRole) -> Option<&[f32]> {
        self.of(role).logits.as_deref()
    }

    /// p as the acceptance test reads it.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn acceptance_distribution(&self) -> Result<&Distribution, MergeError> {
        if self.sampling.acceptance == self.sampling.fallback {
            return self.fallback_distribution();
        }
        self.of(WorkerRole::Base).whole(
            &self.sampling.acceptance,
            &self.acceptance,
            MissingEvidence::Logits(WorkerRole::Base),
        )
    }

    /// p as the base's own token is drawn from.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn fallback_distribution(&self) -> Result<&Distribution, MergeError> {
        self.of(WorkerRole::Base).whole(
            &self.sampling.fallback,
            &self.fallback,
            MissingEvidence::Logits(WorkerRole::Base),
        )
    }

    /// q.
    ///
    /// # Errors
    /// Unless the logits or the nucleus is known.
    pub fn expert_distribution(&self) -> Result<&Distribution, MergeError> {
        self.of(WorkerRole::Expert).whole(
            &self.sampling.expert,
            &self.expert,
            MissingEvidence::Logits(WorkerRole::Expert),
        )
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

    /// The base's probability of `id` in the acceptance test.
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
    /// A blend makes no distribution.
    #[error("the merged probabilities make no distribution: {0}")]
    Blend(#[from] InvalidSupport),
}
