//! Which workers a rule reads, and what their logits travel as.

use cosec_proto::sampling::{PositionRandom, SamplingParams};

use crate::merge::{
    BaseOnly, LogitAdjustments, LogitsTransport, MissingEvidence, RuleSampling, SelectedRule, TokenQuestions,
};
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
    /// Every token is held against the base's own draw.
    reports: bool,
    /// Most probable others to score under the base's raw distribution.
    alternatives: Option<u32>,
}

/// The share of tokens that are held against the base's own draw where that has a cost and nobody asked for it.
const COMPARED_SHARE: f64 = 1.0 / 16.0;

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
        let GenerationSettings { base, expert, judge, reference_code, .. } = *settings;
        let sampling = RuleSampling::new(base, expert, judge, reference_code);
        let is_adjusted = settings.min_tokens > 0 || settings.adjustments != LogitAdjustments::default();
        let transport = transport(settings, &sampling)?;
        let (rule, reports, alternatives) = (settings.rule, settings.report, settings.logprobs);
        Ok(Self { rule, sampling, transport, has_anti_expert, is_adjusted, reports, alternatives })
    }

    /// The same request without its expert.
    #[must_use]
    pub fn degraded(&self) -> Self {
        Self { rule: SelectedRule::BaseOnly(BaseOnly), ..self.clone() }
    }

    /// Whether the workers of this role are read.
    #[must_use]
    pub fn reads(&self, role: WorkerRole) -> bool {
        match role {
            // Reports and scores are about the base, whatever the rule reads.
            WorkerRole::Base => self.rule_reads(role) || self.reports || self.alternatives.is_some(),
            WorkerRole::Expert => self.rule_reads(role),
            WorkerRole::AntiExpert => self.rule_reads(role) && self.has_anti_expert,
        }
    }

    /// Whether a token depends on this role's model.
    #[must_use]
    pub fn rule_reads(&self, role: WorkerRole) -> bool {
        self.rule.description().roles.contains(&role)
    }

    /// What is asked about the token at the position of `random`.
    #[must_use]
    pub fn questions(&self, random: &PositionRandom) -> TokenQuestions {
        let Self { reports, alternatives, .. } = *self;
        TokenQuestions { hardening: self.compares(random), law: reports && alternatives.is_some(), alternatives }
    }

    /// Whether a token is held against the base's own draw: every one where it is asked for or costs nothing, else a
    /// sample of the positions that the base is read for.
    fn compares(&self, random: &PositionRandom) -> bool {
        let is_sampled = || self.reads(WorkerRole::Base) && random.comparison() < COMPARED_SHARE;
        self.reports || self.knows_own_draws() || is_sampled()
    }

    /// Whether the base's own draw is known at every position anyway.
    fn knows_own_draws(&self) -> bool {
        let judges = self.rule.description().judges;
        match self.transport {
            _ if !self.rule_reads(WorkerRole::Base) => false,
            // Its distribution is a part of the rule's.
            _ if !judges => true,
            LogitsTransport::Sample => true,
            LogitsTransport::Nucleus => is_bounded(&self.sampling.fallback),
            // For an accepted proposal a base need not draw, nor its logits be cut and sorted.
            LogitsTransport::Gather | LogitsTransport::Full | LogitsTransport::Auto => false,
        }
    }

    /// Whether the expert draws its proposals itself, any number at a time. Where it does not, its logits are read as
    /// the base's are, one position at a time.
    #[must_use]
    pub fn drafts(&self) -> bool {
        self.rule_reads(WorkerRole::Expert) && !self.is_adjusted
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
                let judged = proposal.filter(|_| self.judges_apart()).map(|id| self.judgement(id));
                judged.into_iter().chain([nucleus(self.sampling.fallback)]).collect()
            }
            (LogitsTransport::Gather | LogitsTransport::Sample, WorkerRole::Expert | WorkerRole::AntiExpert) => {
                Vec::new()
            }
            (LogitsTransport::Gather | LogitsTransport::Sample, WorkerRole::Base) => {
                let judged = proposal.filter(|_| self.rule.description().judges).map(|id| self.judgement(id));
                // Nothing can be rejected where nothing is proposed: the base's own token is the one that is needed.
                let draws = self.transport == LogitsTransport::Sample
                    || !self.reads(WorkerRole::Expert)
                    || self.compares(random);
                judged.into_iter().chain(draws.then(|| self.fallback(random))).collect()
            }
        }
    }

    /// What to ask of which model for what a rule still misses at the position of `random`.
    #[must_use]
    pub fn request_for(&self, missing: MissingEvidence, random: &PositionRandom) -> (WorkerRole, LogitsView) {
        let by_points = matches!(self.transport, LogitsTransport::Gather | LogitsTransport::Sample);
        match missing {
            MissingEvidence::Judgement(id) if by_points || self.judges_apart() => {
                (WorkerRole::Base, self.judgement(id))
            }
            MissingEvidence::Fallback if by_points => (WorkerRole::Base, self.fallback(random)),
            // A nucleus was cut short.
            MissingEvidence::Judgement(_) | MissingEvidence::Fallback => (WorkerRole::Base, LogitsView::Full),
            MissingEvidence::Proposal => (WorkerRole::Expert, LogitsView::Full),
            MissingEvidence::Logits(role) => (role, LogitsView::Full),
        }
    }

    /// Whether the base judges by another distribution than it draws from. No nucleus holds a whole softmax: the
    /// proposal is looked up in it.
    fn judges_apart(&self) -> bool {
        self.rule.description().judges && self.sampling.acceptance() != self.sampling.fallback
    }

    fn judgement(&self, id: u32) -> LogitsView {
        LogitsView::Gather { sampling: self.sampling.acceptance(), ids: vec![id] }
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
