//! Operations that have no answer yet: in order of arrival, one at a time per session.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};

use cosec_proto::SessionId;

use super::job::Job;

/// Place in the order of arrival.
pub(crate) type Arrival = u64;

/// All unanswered operations. The first of each session is its head; only heads run.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    jobs: BTreeMap<Arrival, Job>,
    sessions: HashMap<SessionId, VecDeque<Arrival>>,
    next: Arrival,
}

impl RequestQueue {
    pub(crate) fn push(&mut self, job: Job) {
        let arrival = self.next;
        self.next += 1;
        self.sessions.entry(job.session()).or_default().push_back(arrival);
        self.jobs.insert(arrival, job);
    }

    /// The first head that arrived at `from` or later.
    pub(crate) fn head_from(&self, from: Arrival) -> Option<Arrival> {
        self.jobs
            .range(from..)
            .find(|(arrival, job)| self.is_head(**arrival, job.session()))
            .map(|(&arrival, _)| arrival)
    }

    fn is_head(&self, arrival: Arrival, session: SessionId) -> bool {
        self.sessions.get(&session).and_then(VecDeque::front) == Some(&arrival)
    }

    /// Whether an operation of `session` is unanswered.
    pub(crate) fn concerns(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Arrival, &Job)> {
        self.jobs.iter().map(|(&arrival, job)| (arrival, job))
    }

    pub(crate) fn get(&self, arrival: Arrival) -> Option<&Job> {
        self.jobs.get(&arrival)
    }

    pub(crate) fn get_mut(&mut self, arrival: Arrival) -> Option<&mut Job> {
        self.jobs.get_mut(&arrival)
    }

    pub(crate) fn remove(&mut self, arrival: Arrival) -> Option<Job> {
        let job = self.jobs.remove(&arrival)?;
        if let Entry::Occupied(mut order) = self.sessions.entry(job.session()) {
            order.get_mut().retain(|&other| other != arrival);
            if order.get().is_empty() {
                order.remove();
            }
        }
        Some(job)
    }
}
