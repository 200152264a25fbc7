//! Which workers a rule reads, and what their logits travel as.

use cosec_proto::sampling::{PositionRandom, SamplingParams};

use crate::merge::{BaseOnly, LogitAdjustments, LogitsTransport, MissingEvidence, RuleSampling, SelectedRule};
use crate::request::GenerationSettings;
use cosec_proto::limits::NUCLEUS_CAP;
use cosec_proto::{LogitsView, WorkerRole};

/// How a session decodes. Pure: made once from the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodePlan {
    /// The rule.
    pub rule: SelectedRule,
    /// How logits become distributions.
    pub sampling: RuleSampling,
    /// Never `Auto`.
    transport: LogitsTransport,
    has_anti_expert: bool,
    /// Logits are changed here, by what was generated before: no worker can draw from the result.
    is_adjusted: bool,
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cosec.transport is {transport}; {needs} allows {allowed}")]
pub struct TransportNotAllowed {
    transport: &'static str,
    needs: String,
    allowed: String,
}

impl DecodePlan {
    /// Chooses the least transport that works, or holds the client's choice against the rule.
    ///
    /// # Errors
    /// [`TransportNotAllowed`].
    pub fn new(settings: &GenerationSettings, has_anti_expert: bool) -> Result<Self, TransportNotAllowed> {
        let sampling = RuleSampling::new(settings.base, settings.expert, settings.reference_code);
        let is_adjusted = settings.min_tokens > 0 || settings.adjustments != LogitAdjustments::default();
        let transport = transport(settings, &sampling)?;
        Ok(Self { rule: settings.rule, sampling, transport, has_anti_expert, is_adjusted })
    }

    /// The same request without its expert.
    #[must_use]
    pub fn degraded(&self) -> Self {
        Self { rule: SelectedRule::BaseOnly(BaseOnly), ..self.clone() }
    }

    /// Whether the rule reads the workers of this role.
    #[must_use]
    pub fn reads(&self, role: WorkerRole) -> bool {
        self.rule.description().roles.contains(&role) && (role != WorkerRole::AntiExpert || self.has_anti_expert)
    }

    /// Whether the expert draws its proposals itself, any number at a time. Where it does not, its logits are read as
    /// the base's are, one position at a time.
    #[must_use]
    pub fn drafts(&self) -> bool {
        self.reads(WorkerRole::Expert) && !self.is_adjusted
    }

    /// Whether logits are changed before they make distributions.
    #[must_use]
    pub fn is_adjusted(&self) -> bool {
        self.is_adjusted
    }

    /// What logits travel as; never [`LogitsTransport::Auto`].
    #[must_use]
    pub fn transport(&self) -> LogitsTransport {
        self.transport
    }

    /// What to ask a worker at the position of `random`, with the proposal for it where that is known.
    #[must_use]
    pub fn views(&self, role: WorkerRole, proposal: Option<u32>, random: &PositionRandom) -> Vec<LogitsView> {
        let nucleus = |sampling| LogitsView::Nucleus { sampling, cap: NUCLEUS_CAP };
        match (self.transport, role) {
            (LogitsTransport::Full | LogitsTransport::Auto, _) => vec![LogitsView::Full],
            (LogitsTransport::Nucleus, WorkerRole::Expert) => vec![nucleus(self.sampling.expert)],
            (LogitsTransport::Nucleus, WorkerRole::Base | WorkerRole::AntiExpert) => {
                let RuleSampling { acceptance, fallback, .. } = self.sampling;
                let judges_apart = self.rule.description().judges && acceptance != fallback;
                judges_apart.then_some(acceptance).into_iter().chain([fallback]).map(nucleus).collect()
            }
            (LogitsTransport::Gather | LogitsTransport::Sample, WorkerRole::Expert | WorkerRole::AntiExpert) => {
                Vec::new()
            }
            (LogitsTransport::Gather | LogitsTransport::Sample, WorkerRole::Base) => {
                let judged = proposal.map(|id| self.judgement(id));
                // Nothing can be rejected where nothing is proposed: the base's own token is the one that is needed.
                let draws = self.transport == LogitsTransport::Sample || !self.reads(WorkerRole::Expert);
                judged.into_iter().chain(draws.then(|| self.fallback(random))).collect()
            }
        }
    }

    /// What to ask of which model for what a rule still misses at the position of `random`.
    #[must_use]
    pub fn request_for(&self, missing: MissingEvidence, random: &PositionRandom) -> (WorkerRole, LogitsView) {
        let by_points = matches!(self.transport, LogitsTransport::Gather | LogitsTransport::Sample);
        match missing {
            MissingEvidence::Judgement(id) if by_points => (WorkerRole::Base, self.judgement(id)),
            MissingEvidence::Fallback if by_points => (WorkerRole::Base, self.fallback(random)),
            // A nucleus was cut short.
            MissingEvidence::Judgement(_) | MissingEvidence::Fallback => (WorkerRole::Base, LogitsView::Full),
            MissingEvidence::Proposal => (WorkerRole::Expert, LogitsView::Full),
            MissingEvidence::Logits(role) => (role, LogitsView::Full),
        }
    }

    fn judgement(&self, id: u32) -> LogitsView {
        LogitsView::Gather { sampling: self.sampling.acceptance, ids: vec![id] }
    }

    fn fallback(&self, random: &PositionRandom) -> LogitsView {
        LogitsView::Sample { sampling: self.sampling.fallback, u: random.fallback() }
    }
}

/// The client's transport, or for `auto` the first of the rule's that suits the request.
fn transport(settings: &GenerationSettings, sampling: &RuleSampling) -> Result<LogitsTransport, TransportNotAllowed> {
    let (needs, allowed) = match needs_logits(settings) {
        Some(needs) => (needs.to_owned(), &[LogitsTransport::Full][..]),
        None => (format!("the rule {}", settings.rule.name()), settings.rule.description().transports),
    };
    if settings.transport == LogitsTransport::Auto {
        let suits = |transport: &LogitsTransport| match transport {
            LogitsTransport::Nucleus => is_bounded(&sampling.fallback) && is_bounded(&sampling.expert),
            _ => true,
        };
        return Ok(allowed.iter().copied().find(suits).unwrap_or(LogitsTransport::Full));
    }
    if allowed.contains(&settings.transport) {
        return Ok(settings.transport);
    }
    let (last, others) = allowed.split_last().unwrap_or((&LogitsTransport::Full, &[]));
    let others: String = others.iter().map(|transport| format!(", {}", transport.name())).collect();
    let allowed = format!("auto{others} and {}", last.name());
    Err(TransportNotAllowed { transport: settings.transport.name(), needs, allowed })
}

/// Why the coordinator must see the logits themselves, if it must.
fn needs_logits(settings: &GenerationSettings) -> Option<&'static str> {
    if settings.logprobs.is_some() {
        Some("a request with logprobs")
    } else if settings.min_tokens > 0 {
        Some("a request with min_tokens")
    } else if settings.adjustments != LogitAdjustments::default() {
        Some("a request with logit_bias or penalties")
    } else {
        None
    }
}

/// Whether a nucleus is likely to hold all survivors.
fn is_bounded(warp: &SamplingParams) -> bool {
    let few = 1..=NUCLEUS_CAP;
    warp.temperature() == 0.0 || warp.top_p() < 1.0 || few.contains(&warp.top_k())
}
