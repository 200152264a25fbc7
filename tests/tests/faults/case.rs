//! What is done to which worker, and when.

use std::fmt;

use cosec_proto::WorkerRole;
use cosec_tests::proxy::Kind;

/// Operations of the phase that pass before one is held: the fault is injected in mid-decode.
pub(crate) const SKIPPED: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9.
    Killed,
    /// SIGSTOP.
    Hangs,
    /// Packets are dropped, and for good.
    CutOff,
    /// Packets are dropped for a while.
    CutOffForAWhile,
    /// Every answer comes after its deadline.
    Slow,
    /// Answers that cannot be true.
    Garbage,
    /// kill -9; then another model serves at the address.
    OtherModel,
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::Killed,
    Fault::Hangs,
    Fault::CutOff,
    Fault::CutOffForAWhile,
    Fault::Slow,
    Fault::Garbage,
    Fault::OtherModel,
];

/// When it is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// While a worker of the role is fed a prompt.
    Prefill,
    /// While an expert drafts.
    Draft,
    /// While a base verifies.
    Verify,
    /// Before a session comes.
    Idle,
}

pub(crate) const PHASES: [Phase; 4] = [Phase::Prefill, Phase::Draft, Phase::Verify, Phase::Idle];

#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) fault: Fault,
    pub(crate) role: WorkerRole,
    pub(crate) phase: Phase,
    /// As the coordinator's flag has it.
    pub(crate) speculation: &'static str,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, role, phase, speculation } = self;
        let [fault, phase] = [format!("{fault:?}"), format!("{phase:?}")];
        write!(f, "{fault:16} {:7} {phase:8} {speculation:9}", name(*role))
    }
}

impl Case {
    /// Whether the fault must drive sessions elsewhere.
    pub(crate) fn must_move(&self) -> bool {
        match self.fault {
            // It was missed before anybody came.
            Fault::Killed | Fault::OtherModel => self.phase != Phase::Idle,
            // It may be over before anybody gives up.
            Fault::CutOffForAWhile => false,
            Fault::Hangs | Fault::CutOff | Fault::Slow | Fault::Garbage => true,
        }
    }

    /// The operation that is held.
    pub(crate) fn held(&self) -> (WorkerRole, Kind, u32) {
        match self.phase {
            Phase::Prefill | Phase::Idle => (self.role, Kind::Prefill, 0),
            Phase::Draft => (WorkerRole::Expert, Kind::Draft, SKIPPED),
            Phase::Verify => (WorkerRole::Base, Kind::Verify, SKIPPED),
        }
    }
}

pub(crate) fn name(role: WorkerRole) -> &'static str {
    if role == WorkerRole::Base { "base" } else { "expert" }
}
