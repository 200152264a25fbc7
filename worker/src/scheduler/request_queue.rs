//! Operations that wait or run, in the order of arrival within each session.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use cosec_proto::SessionId;

use super::job::{JobId, ScheduledJob};

/// All unanswered operations. The first of each session is its head; only heads run.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    jobs: Vec<Option<Box<ScheduledJob>>>,
    vacant: Vec<JobId>,
    lines: HashMap<SessionId, SessionLine>,
    arrivals: u64,
}

/// First and last job of a session.
#[derive(Debug)]
struct SessionLine {
    first: JobId,
    last: JobId,
}

impl RequestQueue {
    pub(crate) fn push(&mut self, mut job: Box<ScheduledJob>) -> JobId {
        job.arrival = self.arrivals;
        self.arrivals += 1;
        let session = job.session;
        let id = match self.vacant.pop() {
            Some(id) => id,
            None => {
                self.jobs.push(None);
                self.jobs.len() - 1
            }
        };
        self.jobs[id] = Some(job);
        match self.lines.entry(session) {
            Entry::Vacant(line) => {
                line.insert(SessionLine { first: id, last: id });
            }
            Entry::Occupied(mut line) => {
                let before = std::mem::replace(&mut line.get_mut().last, id);
                if let Some(before) = self.jobs[before].as_mut() {
                    before.next = Some(id);
                }
            }
        }
        id
    }

    /// The first job of `session`.
    pub(crate) fn head(&self, session: SessionId) -> Option<JobId> {
        self.lines.get(&session).map(|line| line.first)
    }

    /// The first job of every session, in no order.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (JobId, &ScheduledJob)> {
        self.lines.values().filter_map(|line| Some((line.first, self.get(line.first)?)))
    }

    /// Whether an operation of `session` is unanswered.
    pub(crate) fn concerns(&self, session: SessionId) -> bool {
        self.lines.contains_key(&session)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (JobId, &ScheduledJob)> {
        self.jobs.iter().enumerate().filter_map(|(id, job)| Some((id, job.as_deref()?)))
    }

    pub(crate) fn get(&self, id: JobId) -> Option<&ScheduledJob> {
        self.jobs.get(id)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: JobId) -> Option<&mut ScheduledJob> {
        self.jobs.get_mut(id)?.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, id: JobId) -> Option<Box<ScheduledJob>> {
        let job = self.jobs.get_mut(id)?.take()?;
        self.vacant.push(id);
        let session = job.session;
        let Some(line) = self.lines.get_mut(&session) else { return Some(job) };
        if line.first == id {
            match job.next {
                Some(next) => line.first = next,
                None => drop(self.lines.remove(&session)),
            }
            return Some(job);
        }
        let mut before = line.first;
        while let Some(other) = self.jobs[before].as_mut() {
            match other.next {
                Some(next) if next == id => {
                    other.next = job.next;
                    if line.last == id {
                        line.last = before;
                    }
                    break;
                }
                Some(next) => before = next,
                None => break,
            }
        }
        Some(job)
    }
}
