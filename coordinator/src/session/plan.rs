//! Which workers a rule reads, and as what their rows travel.

use cosec_proto::draw::{Purpose, Warp};

use crate::merge::{Lacking, Warps};
use crate::request::{Adjustments, RuleSettings, Settings, Transport};
use crate::role::Role;
use crate::worker_pool::operation::{NUCLEUS_CAP, View};

/// What a session wants of one worker for the token at one position.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// Tokens that the model draws itself.
    Draft {
        /// How many.
        k: u32,
        /// From what.
        warp: Warp,
    },
    /// Views of the row of the position; none only feeds the cache.
    Views(Vec<View>),
}

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
    /// Tokens that the expert drafts at a time.
    k: u32,
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
        Ok(Self { rule: settings.rule, warps: Warps::of(settings), travel, has_anti_expert, k: 1 })
    }

    /// The same request without its expert.
    #[must_use]
    pub fn degraded(&self) -> Self {
        Self { rule: RuleSettings::BaseOnly, has_anti_expert: false, ..self.clone() }
    }

    /// Whether the rule reads the workers of this role.
    #[must_use]
    pub fn reads(&self, role: Role) -> bool {
        match role {
            Role::Base => self.rule != RuleSettings::ExpertOnly,
            Role::Expert => self.rule != RuleSettings::BaseOnly,
            Role::AntiExpert => self.has_anti_expert,
        }
    }

    /// What to ask for at once, before anything is known of the position.
    #[must_use]
    pub fn upfront(&self, role: Role) -> Option<Want> {
        if !self.reads(role) {
            return None;
        }
        if let (Travel::Points { ahead }, Role::Base) = (self.travel, role) {
            let needed = self.rule == RuleSettings::BaseOnly;
            // Fed while the expert drafts, the base answers later questions from the row that it keeps.
            return Some(Want::Views(if ahead || needed { vec![self.fallback()] } else { Vec::new() }));
        }
        Some(match self.travel {
            Travel::Points { .. } => self.draft(),
            Travel::Full => Want::Views(vec![View::Full]),
            Travel::Nucleus => {
                let nucleus = |warp| View::Nucleus { warp, cap: NUCLEUS_CAP };
                Want::Views(self.nucleus_warps(role).into_iter().map(nucleus).collect())
            }
        })
    }

    /// The laws that nuclei of this role are asked for under, in the order of the views.
    #[must_use]
    pub fn nucleus_warps(&self, role: Role) -> Vec<Warp> {
        let judges_apart =
            matches!(self.rule, RuleSettings::Cosec { .. }) && self.warps.judged != self.warps.fallback;
        match role {
            Role::Expert => vec![self.warps.expert],
            Role::Base | Role::AntiExpert if judges_apart => vec![self.warps.judged, self.warps.fallback],
            Role::Base | Role::AntiExpert => vec![self.warps.fallback],
        }
    }

    /// What to ask of whom for what a rule still lacks.
    #[must_use]
    pub fn supply(&self, lacking: Lacking) -> (Role, Want) {
        match (lacking, self.travel) {
            (Lacking::Proposal, Travel::Points { .. }) => (Role::Expert, self.draft()),
            (Lacking::Judgement(id), Travel::Points { .. }) => {
                let gather = View::Gather { warp: self.warps.judged, ids: vec![id] };
                (Role::Base, Want::Views(vec![gather]))
            }
            (Lacking::Fallback, Travel::Points { .. }) => (Role::Base, Want::Views(vec![self.fallback()])),
            // A nucleus was cut short.
            (Lacking::Proposal, Travel::Nucleus | Travel::Full) => (Role::Expert, Want::Views(vec![View::Full])),
            (Lacking::Judgement(_) | Lacking::Fallback, Travel::Nucleus | Travel::Full) => {
                (Role::Base, Want::Views(vec![View::Full]))
            }
            (Lacking::Row(role), _) => (role, Want::Views(vec![View::Full])),
        }
    }

    fn draft(&self) -> Want {
        Want::Draft { k: self.k, warp: self.warps.expert }
    }

    fn fallback(&self) -> View {
        View::Sample { warp: self.warps.fallback, purpose: Purpose::Fallback }
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
fn is_bounded(warp: &Warp) -> bool {
    let few = 1..=NUCLEUS_CAP;
    warp.temperature() == 0.0 || warp.top_p() < 1.0 || few.contains(&warp.top_k())
}
