//! Which workers a rule reads, and as what their rows travel.

use cosec_proto::sampling::{DrawPurpose, SamplingParams};

use crate::merge::{Lacking, Warps};
use crate::request::{Adjustments, RuleSettings, Settings, Transport};
use crate::worker_pool::operation::{NUCLEUS_CAP, View};
use cosec_proto::WorkerRole;

/// How a session decodes. Pure: made once from the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The rule.
    pub rule: RuleSettings,
    /// How logits become laws.
    pub warps: Warps,
    travel: Travel,
    /// The rule `product` compares the expert with an anti-expert.
    has_anti_expert: bool,
    /// Logits are changed here, by what was generated before: no worker can draw from the result.
    is_adjusted: bool,
}

/// What rows travel as, with `auto` resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Travel {
    /// Workers draw and look up.
    Points {
        /// Whether the base draws its fallback before it is known to be needed.
        ahead: bool,
    },
    Nucleus,
    Full,
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cosec.transport is {transport}; {needs} allows {allowed}")]
pub struct TransportNotAllowed {
    transport: &'static str,
    needs: String,
    allowed: &'static str,
}

impl Plan {
    /// Chooses the least transport that works, or holds the client's choice against the rule.
    ///
    /// # Errors
    /// [`TransportNotAllowed`].
    pub fn new(settings: &Settings, has_anti_expert: bool) -> Result<Self, TransportNotAllowed> {
        let travel = travel(settings)?;
        let has_anti_expert = has_anti_expert && matches!(settings.rule, RuleSettings::Product { .. });
        let is_adjusted = settings.min_tokens > 0 || settings.adjustments != Adjustments::default();
        Ok(Self { rule: settings.rule, warps: Warps::of(settings), travel, has_anti_expert, is_adjusted })
    }

    /// The same request without its expert.
    #[must_use]
    pub fn degraded(&self) -> Self {
        Self { rule: RuleSettings::BaseOnly, has_anti_expert: false, ..self.clone() }
    }

    /// Whether the rule reads the workers of this role.
    #[must_use]
    pub fn reads(&self, role: WorkerRole) -> bool {
        match role {
            WorkerRole::Base => self.rule != RuleSettings::ExpertOnly,
            WorkerRole::Expert => self.rule != RuleSettings::BaseOnly,
            WorkerRole::AntiExpert => self.has_anti_expert,
        }
    }

    /// Whether the expert draws its proposals itself, any number at a time. Where it does not, its row is read as the
    /// base's is, one position at a time.
    #[must_use]
    pub fn drafts(&self) -> bool {
        self.reads(WorkerRole::Expert) && !self.is_adjusted
    }

    /// Whether logits are changed before they make laws.
    #[must_use]
    pub fn is_adjusted(&self) -> bool {
        self.is_adjusted
    }

    /// What rows travel as, by name.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        match self.travel {
            Travel::Points { ahead: true } => "sample",
            Travel::Points { ahead: false } => "gather",
            Travel::Nucleus => "nucleus",
            Travel::Full => "full",
        }
    }

    /// What to ask a worker of the row at a position, with the proposal for it where that is known.
    #[must_use]
    pub fn views(&self, role: WorkerRole, proposal: Option<u32>) -> Vec<View> {
        let nucleus = |warp| View::Nucleus { warp, cap: NUCLEUS_CAP };
        match (self.travel, role) {
            (Travel::Full, _) => vec![View::Full],
            (Travel::Nucleus, WorkerRole::Expert) => vec![nucleus(self.warps.expert)],
            (Travel::Nucleus, WorkerRole::Base | WorkerRole::AntiExpert) => {
                self.base_warps().into_iter().map(nucleus).collect()
            }
            (Travel::Points { .. }, WorkerRole::Expert | WorkerRole::AntiExpert) => Vec::new(),
            (Travel::Points { ahead }, WorkerRole::Base) => {
                let judged = proposal.map(|id| self.judgement(id));
                let needed = ahead || self.rule == RuleSettings::BaseOnly;
                judged.into_iter().chain(needed.then(|| self.fallback())).collect()
            }
        }
    }

    /// The laws that the base is read under.
    fn base_warps(&self) -> Vec<SamplingParams> {
        let judges_apart =
            matches!(self.rule, RuleSettings::Cosec { .. }) && self.warps.judged != self.warps.fallback;
        if judges_apart { vec![self.warps.judged, self.warps.fallback] } else { vec![self.warps.fallback] }
    }

    /// What to ask of whom for what a rule still lacks.
    #[must_use]
    pub fn supply(&self, lacking: Lacking) -> (WorkerRole, View) {
        match (lacking, self.travel) {
            (Lacking::Judgement(id), Travel::Points { .. }) => (WorkerRole::Base, self.judgement(id)),
            (Lacking::Fallback, Travel::Points { .. }) => (WorkerRole::Base, self.fallback()),
            // A nucleus was cut short.
            (Lacking::Judgement(_) | Lacking::Fallback, Travel::Nucleus | Travel::Full) => {
                (WorkerRole::Base, View::Full)
            }
            (Lacking::Proposal, _) => (WorkerRole::Expert, View::Full),
            (Lacking::Row(role), _) => (role, View::Full),
        }
    }

    fn judgement(&self, id: u32) -> View {
        View::Gather { warp: self.warps.judged, ids: vec![id] }
    }

    fn fallback(&self) -> View {
        View::Sample { warp: self.warps.fallback, purpose: DrawPurpose::Fallback }
    }
}

fn travel(settings: &Settings) -> Result<Travel, TransportNotAllowed> {
    let refuse = |needs: &str, allowed| {
        let transport = match settings.transport {
            Transport::Auto => "auto",
            Transport::Gather => "gather",
            Transport::Nucleus => "nucleus",
            Transport::Sample => "sample",
            Transport::Full => "full",
        };
        Err(TransportNotAllowed { transport, needs: needs.to_owned(), allowed })
    };
    if let Some(needs) = needs_rows(settings) {
        return match settings.transport {
            Transport::Auto | Transport::Full => Ok(Travel::Full),
            Transport::Gather | Transport::Nucleus | Transport::Sample => refuse(needs, "auto and full"),
        };
    }
    match (settings.rule, settings.transport) {
        (_, Transport::Full) | (RuleSettings::Product { .. }, Transport::Auto) => Ok(Travel::Full),
        (RuleSettings::Product { .. }, _) => refuse("the rule product", "auto and full"),
        (_, Transport::Nucleus) => Ok(Travel::Nucleus),
        (RuleSettings::Linear { .. }, Transport::Auto) => {
            let warps = Warps::of(settings);
            let both_bounded = is_bounded(&warps.fallback) && is_bounded(&warps.expert);
            Ok(if both_bounded { Travel::Nucleus } else { Travel::Full })
        }
        (RuleSettings::Linear { .. }, _) => refuse("the rule linear", "auto, nucleus and full"),
        (_, Transport::Auto | Transport::Sample) => Ok(Travel::Points { ahead: true }),
        (RuleSettings::Cosec { .. }, Transport::Gather) => Ok(Travel::Points { ahead: false }),
        (RuleSettings::BaseOnly, Transport::Gather) => refuse("the rule base_only", "auto, sample, nucleus and full"),
        (RuleSettings::ExpertOnly, Transport::Gather) => {
            refuse("the rule expert_only", "auto, sample, nucleus and full")
        }
    }
}

/// Why the coordinator must see the logits themselves, if it must.
fn needs_rows(settings: &Settings) -> Option<&'static str> {
    if settings.logprobs.is_some() {
        Some("a request with logprobs")
    } else if settings.min_tokens > 0 {
        Some("a request with min_tokens")
    } else if settings.adjustments != Adjustments::default() {
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
