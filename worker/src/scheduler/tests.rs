//! Whom the next pass waits for.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::engine::Model;
use crate::engine::operation::{Operation, Place, Request, RowRequest, Ticket, Work};
use crate::model_runner::{BatchItem, ForwardError, ModelDescription};
use crate::rows::{Precision, View};

/// Every row is the same; notes how many sequences rode in each pass.
struct Flat(ModelDescription, Vec<usize>);

impl Model for Flat {
    fn description(&self) -> &ModelDescription {
        &self.0
    }

    fn forward<R: Send>(
        &mut self,
        batch: &[BatchItem<'_>],
        readers: &mut [R],
        read: impl Fn(&mut R, &[f32]) + Sync,
    ) -> Result<(), ForwardError> {
        self.1.push(batch.len());
        readers.iter_mut().for_each(|reader| read(reader, &[0.0; 8]));
        Ok(())
    }
}

fn submit(scheduler: &mut Scheduler, session: SessionId, at: usize, tokens: &[u32]) -> Ticket {
    let now = Instant::now();
    let rows = vec![RowRequest { offset: tokens.len(), view: View::Full(Precision::F32) }];
    let work = Work::Extend { at, tokens: tokens.to_vec(), rows };
    let deadline = now + Duration::from_secs(60);
    let request = Request { session, work, stream: 1, tenant: 1, adapter: None, received: now, deadline };
    let place = Place::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
    let (operation, ticket) = Operation::new(request, place);
    scheduler.submit(Box::new(Job::new(operation)), now);
    ticket
}

/// A scheduler, its model and sessions.
fn stage() -> (Scheduler, Flat, [SessionId; 4]) {
    let options = EngineOptions {
        blocks: 64,
        block_tokens: 4,
        step_tokens: 64,
        max_sessions: 8,
        max_operations: 8,
        lease: Duration::from_secs(60),
    };
    let description = ModelDescription {
        family: "flat".to_owned(),
        parameters: 0,
        vocabulary: 8,
        context_tokens: 64,
        end_token_ids: Vec::new(),
        fingerprint: String::new(),
        tokenizer_fingerprint: String::new(),
        kv_bytes_per_token: 0,
        adapters: Vec::new(),
        adapter_fingerprints: Vec::new(),
        tokenizer: None,
    };
    let limits = Limits::new(&options, &description);
    let (status, metrics) = (Arc::new(Status::new(options.blocks)), Arc::new(Metrics::new("base").unwrap()));
    let scheduler = Scheduler::new(options, &limits, status, metrics);
    (scheduler, Flat(description, Vec::new()), std::array::from_fn(|_| SessionId::random()))
}

#[test]
fn who_rode_in_the_last_pass_is_awaited_until_it_has_more_to_compute() {
    let (mut scheduler, mut model, sessions) = stage();
    let _first = sessions.map(|session| submit(&mut scheduler, session, 0, &[1, 2]));
    assert!(!scheduler.awaits());
    assert!(scheduler.step(&mut model));
    for session in sessions {
        // A look at the row that is kept needs no pass, and does not wait for the next one.
        let mut looked_up = submit(&mut scheduler, session, 2, &[]);
        assert!(matches!(looked_up.answer.try_recv().unwrap().outcome, Outcome::Rows { length: 2, .. }));
    }
    let mut seconds = Vec::new();
    for session in sessions {
        assert!(scheduler.awaits());
        seconds.push(submit(&mut scheduler, session, 2, &[3]));
    }
    assert!(!scheduler.awaits());
    assert!(scheduler.step(&mut model));
    assert_eq!(model.1, [4, 4]);
    let effort = seconds[0].answer.try_recv().unwrap().effort;
    assert_eq!((effort.passes, effort.rows), (1, 4));
}

#[test]
fn halves_that_took_turns_ride_together_again() {
    let (mut scheduler, mut model, sessions) = stage();
    let (these, those) = sessions.split_at(2);
    let _first: Vec<_> = these.iter().map(|&session| submit(&mut scheduler, session, 0, &[1])).collect();
    assert!(scheduler.step(&mut model));
    // Came while the others computed.
    let _second: Vec<_> = those.iter().map(|&session| submit(&mut scheduler, session, 0, &[1])).collect();
    assert!(scheduler.awaits());
    let _third: Vec<_> = these.iter().map(|&session| submit(&mut scheduler, session, 1, &[2])).collect();
    assert!(!scheduler.awaits());
    assert!(scheduler.step(&mut model));
    assert_eq!(model.1, [2, 4]);
}

#[test]
fn who_stays_away_is_waited_for_once_and_who_ends_never() {
    let (mut scheduler, mut model, [stays, away, ends, _]) = stage();
    let _first = [stays, away, ends].map(|session| submit(&mut scheduler, session, 0, &[1]));
    assert!(scheduler.step(&mut model));
    let _second = submit(&mut scheduler, stays, 1, &[2]);
    assert!(scheduler.awaits());
    assert!(scheduler.step(&mut model));
    let _third = submit(&mut scheduler, stays, 2, &[3]);
    assert!(!scheduler.awaits());
    let _fourth = submit(&mut scheduler, ends, 1, &[2]);
    assert!(scheduler.step(&mut model));
    let _fifth = submit(&mut scheduler, stays, 3, &[4]);
    assert!(scheduler.awaits());
    scheduler.forget(ends);
    assert!(!scheduler.awaits());
}
