//! The operations in flight and the caches held at the workers, as they report them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use cosec_proto::SessionId;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::{StepRequest, StepResponse};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::faults::Phase;
use super::{Host, Sim};

/// A session is idle when no worker has received or sent anything for it for longer than any network delay.
const REST: Duration = Duration::from_millis(8);

/// Operations in flight, and caches held.
#[derive(Default)]
pub(super) struct Activity {
    pub(super) next: u64,
    pub(super) under_way: BTreeMap<u64, UnderWay>,
    /// Caches by host and session, and whether the whole prompt is in them.
    pub(super) held: BTreeMap<(usize, Vec<u8>), bool>,
    /// By session, in order of first appearance: their ids are random.
    pub(super) ordinals: HashMap<Vec<u8>, Ordinal>,
    pub(super) awaited: Vec<Awaited>,
}

pub(super) struct Ordinal {
    number: usize,
    /// When an operation began or ended.
    active: Instant,
}

pub(super) struct UnderWay {
    host: usize,
    session: Vec<u8>,
    phase: Phase,
}

pub(super) struct Awaited {
    pub(super) host: usize,
    pub(super) phase: Phase,
    pub(super) came: oneshot::Sender<()>,
}

impl Sim {
    pub(super) fn begin(&self, host: &Host, request: &StepRequest) -> u64 {
        let mut activity = self.shared.activity.lock();
        let activity = &mut *activity;
        let (session, at, fed, drafts) = match &request.operation {
            Some(Operation::Extend(extend)) => (&extend.session, extend.at, extend.tokens.len(), None),
            Some(Operation::Draft(draft)) => (&draft.session, draft.at, draft.tokens.len(), Some(draft.k)),
            Some(Operation::Release(release)) => (&release.session, 0, 0, None),
            Some(Operation::Cancel(_) | Operation::Recall(_)) | None => return 0,
        };
        let ordinal = activity.ordinal(session);
        let key = (host.index, session.clone());
        if let Some(Operation::Release(_)) = request.operation {
            self.note(format_args!("{} releases session {ordinal}", host.name));
            activity.held.remove(&key);
            return 0;
        }
        self.note(format_args!("{} session {ordinal} at {at} feeds {fed} drafts {drafts:?}", host.name));
        let is_fed = activity.held.entry(key).or_insert(false);
        *is_fed &= at > 0;
        let phase = match *is_fed {
            false => Phase::Prefill,
            true if host.place == "expert" => Phase::Draft,
            true => Phase::Verify,
        };
        activity.next += 1;
        activity.under_way.insert(activity.next, UnderWay { host: host.index, session: session.clone(), phase });
        activity.arrive(session);
        activity.next
    }

    /// Returns the phases of the session; none for a release.
    pub(super) fn end(&self, host: &Host, begun: u64, answer: &StepResponse) -> BTreeSet<Phase> {
        let mut activity = self.shared.activity.lock();
        let Some(session) = activity.under_way.get(&begun).map(|under_way| under_way.session.clone()) else {
            return BTreeSet::new();
        };
        let phases = activity.phases_of(&session);
        activity.under_way.remove(&begun);
        let ordinal = activity.ordinal(&session);
        let (feeds, what) = match &answer.outcome {
            Some(Outcome::Rows(rows)) => (!rows.rows.is_empty(), "rows"),
            Some(Outcome::Drafted(_)) => (true, "drafts"),
            Some(Outcome::NeedPrefix(_)) => (false, "needs a prefix"),
            Some(Outcome::Released(_) | Outcome::Recalled(_) | Outcome::Failure(_)) | None => (false, "fails"),
        };
        if let Some(is_fed) = activity.held.get_mut(&(host.index, session)) {
            *is_fed |= feeds;
            *is_fed &= !matches!(answer.outcome, Some(Outcome::NeedPrefix(_)));
        }
        self.note(format_args!("{} session {ordinal}: {what}", host.name));
        phases
    }

    /// Forgets a host's caches.
    pub(super) fn forget(&self, host: usize) {
        let mut activity = self.shared.activity.lock();
        activity.held.retain(|(of, _), _| *of != host);
        activity.under_way.retain(|_, under_way| under_way.host != host);
    }
}

/// The part of a session's id that all its worker slots share.
fn shared(session: &[u8]) -> &[u8] {
    &session[..SessionId::SHARED_BYTES]
}

impl Activity {
    /// Number of a session in which something begins or ends.
    pub(super) fn ordinal(&mut self, session: &[u8]) -> usize {
        let next = self.ordinals.len();
        let ordinal =
            self.ordinals.entry(shared(session).to_vec()).or_insert(Ordinal { number: next, active: Instant::now() });
        ordinal.active = Instant::now();
        ordinal.number
    }

    /// Empty while everything is in transit.
    pub(super) fn phases_of(&self, session: &[u8]) -> BTreeSet<Phase> {
        let of_session = |under_way: &&UnderWay| shared(&under_way.session) == shared(session);
        let phases: BTreeSet<Phase> =
            self.under_way.values().filter(of_session).map(|under_way| under_way.phase).collect();
        let rests = self.ordinals.get(shared(session)).is_some_and(|of| of.active.elapsed() >= REST);
        if phases.is_empty() && rests { [Phase::Idle].into() } else { phases }
    }

    /// Phases of all sessions with a cache on a host.
    pub(super) fn phases_at(&self, host: usize) -> BTreeSet<Phase> {
        self.held.keys().filter(|(of, _)| *of == host).flat_map(|(_, session)| self.phases_of(session)).collect()
    }

    /// Whether a session has a cache there and nothing in flight.
    pub(super) fn is_idle(&self, host: usize) -> bool {
        self.phases_at(host).contains(&Phase::Idle)
    }

    /// An operation of a session begins.
    pub(super) fn arrive(&mut self, session: &[u8]) {
        let phases = self.phases_of(session);
        let held = &self.held;
        for awaited in self.awaited.extract_if(.., |awaited| {
            let sits_there =
                |(host, other): &(usize, Vec<u8>)| *host == awaited.host && shared(other) == shared(session);
            phases.contains(&awaited.phase) && held.keys().any(sits_there)
        }) {
            let _ = awaited.came.send(());
        }
    }
}
