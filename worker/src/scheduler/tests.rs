//! Which sessions the next pass waits for.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use cosec_proto::metrics::MetricRegistry;
use cosec_proto::{LogitsRequest, LogitsView, Operation, OperationKind, OperationOutcome, SessionId};

use super::*;
use crate::limits::EngineOptions;
use crate::metrics::WorkerMetrics;
use crate::operation::{OperationPermit, OperationRequest, OperationTicket, QueuedOperation};
use crate::status::EngineStatus;
use fake_model::{FakeModel, Gate};

#[expect(dead_code, reason = "the service's tests use the rest of it")]
#[path = "../../tests/service/fake_model.rs"]
mod fake_model;

fn request(session: SessionId, at: u32, tokens: &[u32]) -> OperationRequest {
    let now = Instant::now();
    let logits = vec![LogitsRequest { offset: tokens.len() as u32, view: LogitsView::Full }];
    let (adapter, kind) = (String::new(), OperationKind::Extend { logits });
    let operation = Operation { session, adapter, tenant: 1, at, tokens: tokens.to_vec(), kind };
    OperationRequest { operation, adapter: None, stream: 1, received: now, deadline: now + Duration::from_secs(60) }
}

fn submit(
    scheduler: &mut Scheduler,
    model: &mut FakeModel,
    session: SessionId,
    at: u32,
    tokens: &[u32],
) -> OperationTicket {
    let permit = OperationPermit::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
    let (operation, ticket) = QueuedOperation::new(request(session, at, tokens), permit);
    scheduler.submit(Box::new(ScheduledJob::new(operation)), Instant::now(), model);
    ticket
}

/// A scheduler, its model, the passes of the model, and sessions.
fn scheduler() -> (Scheduler, FakeModel, Arc<Gate>, [SessionId; 4]) {
    let options = EngineOptions {
        blocks: 64,
        block_tokens: 4,
        step_tokens: 64,
        max_sessions: 8,
        max_operations: 8,
        lease: Duration::from_secs(60),
    };
    let gate = Arc::new(Gate::default());
    let model = FakeModel::new(options.blocks, options.block_tokens, Arc::clone(&gate));
    let limits = options.limits(model.description());
    let status = Arc::new(EngineStatus::new(options.blocks));
    let metrics = Arc::new(WorkerMetrics::register(&MetricRegistry::default()).unwrap());
    let scheduler = Scheduler::new(options, &limits, status, metrics);
    (scheduler, model, gate, std::array::from_fn(|_| SessionId::random()))
}

/// How many sequences were in each pass.
fn batch_sizes(gate: &Gate) -> Vec<usize> {
    gate.passes().iter().map(Vec::len).collect()
}

#[test]
fn a_look_at_a_kept_row_waits_for_no_pass() {
    let (mut scheduler, mut model, gate, sessions) = scheduler();
    let _first = sessions.map(|session| submit(&mut scheduler, &mut model, session, 0, &[1, 2]));
    assert!(scheduler.step(&mut model, &Instant::now));
    for session in sessions {
        let mut looked_up = submit(&mut scheduler, &mut model, session, 2, &[]);
        assert!(matches!(looked_up.answer.try_recv().unwrap().result, Ok(OperationOutcome::Extended(_))));
    }
    let mut seconds = sessions.map(|session| submit(&mut scheduler, &mut model, session, 2, &[3]));
    assert!(scheduler.step(&mut model, &Instant::now));
    assert_eq!(batch_sizes(&gate), [4, 4]);
    let cost = seconds[0].answer.try_recv().unwrap().cost;
    assert_eq!((cost.passes, cost.rows), (1, 4));
}

#[test]
fn a_session_expected_soon_is_waited_for_until_it_comes_or_ends() {
    let (mut scheduler, mut model, _, [soon, ends, late, _]) = scheduler();
    let (millis, now) = (Duration::from_millis(1), Instant::now());
    (0..9).for_each(|_| scheduler.window.passed(4, 4, 100 * millis));
    for (session, away) in [(soon, 5), (ends, 9), (late, 80)] {
        scheduler.window.left(session, now);
        scheduler.window.came(session, now + away * millis);
        scheduler.window.left(session, now);
    }
    scheduler.open_batch_window(now);
    assert!(scheduler.batch_window_end().is_some_and(|until| until > now + 9 * millis && until < now + 50 * millis));
    scheduler.forget(ends);
    assert!(scheduler.batch_window_end().is_some_and(|until| until > now + 5 * millis));
    let _looks = submit(&mut scheduler, &mut model, soon, 0, &[]);
    assert!(scheduler.batch_window_end().is_some(), "a look does not ride");
    let _came = submit(&mut scheduler, &mut model, soon, 0, &[1]);
    assert_eq!(scheduler.batch_window_end(), None);
}

/// Two sessions begin while the pass of two others is under way. All stay away for a third of a pass, longer than it
/// takes to begin the next one.
#[test]
fn halves_that_took_turns_ride_together_again() {
    let (scheduler, mut model, gate, sessions) = scheduler();
    let options = scheduler.options.clone();
    let metrics = Arc::new(WorkerMetrics::register(&MetricRegistry::default()).unwrap());
    model.pass_time = Duration::from_millis(30);
    let engine = crate::engine::start(model, options, metrics).unwrap();
    std::thread::scope(|scope| {
        for (index, session) in sessions.into_iter().enumerate() {
            let (engine, gate) = (engine.clone(), Arc::clone(&gate));
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(40 * (index as u64 / 2)));
                for at in 0..40 {
                    let ticket = engine.submit(request(session, at, &[1])).unwrap();
                    ticket.answer.blocking_recv().unwrap();
                    if batch_sizes(&gate).ends_with(&[4, 4, 4]) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
    });
    let sizes = batch_sizes(&gate);
    assert!(sizes.windows(3).any(|three| three == [4, 4, 4]), "{sizes:?}");
}
