//! The queue from outside: who gets in, who gets a turn, and who has to give it back.

use std::sync::Arc;

use cosec_proto::metrics::MetricRegistry;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::*;
use crate::tenant::ShareKey;

fn admission(max_sessions: usize, max_queued_sessions: usize, max_queued_tokens: u64) -> Admission {
    let metrics = AdmissionMetrics::register(&MetricRegistry::default()).unwrap();
    let capacity = |model: &str| if model == "small" { 100 } else { u64::MAX };
    let limits = AdmissionLimits { max_sessions, max_queued_sessions, max_queued_tokens };
    Admission::new(limits, Arc::new(capacity), metrics)
}

type Turn = BoxFuture<'static, ActivePermit>;

fn turn(admission: &Admission, tenant: &Arc<Tenant>, (model, prompt_tokens, new_tokens): (&str, u64, u64)) -> Turn {
    let size = SessionSize { prompt_tokens, new_tokens };
    Box::pin(admission.enter(tenant, model, size.tokens()).unwrap().activate(size))
}

/// Turns of `tenant`, of which so many are given at once.
fn turns(admission: &Admission, tenant: &Arc<Tenant>, sessions: usize) -> (Vec<ActivePermit>, Vec<Turn>) {
    let mut waiting: Vec<Turn> = (0..sessions).map(|_| turn(admission, tenant, ("large", 10, 10))).collect();
    (given(&mut waiting), waiting)
}

/// Takes out those that have their turn.
fn given(waiting: &mut Vec<Turn>) -> Vec<ActivePermit> {
    let (mut given, mut left) = (Vec::new(), Vec::new());
    for mut turn in waiting.drain(..) {
        match turn.as_mut().now_or_never() {
            Some(permit) => given.push(permit),
            None => left.push(turn),
        }
    }
    *waiting = left;
    given
}

fn tenant(name: &str, weight: f64) -> Arc<Tenant> {
    let share = ShareKey::Tenant(name.to_owned());
    Arc::new(Tenant { name: name.to_owned(), share, weight, ..Tenant::default() })
}

fn refusal(admission: &Admission, tenant: &Arc<Tenant>, tokens: u64) -> String {
    admission.enter(tenant, "large", tokens).err().unwrap().message
}

#[test]
fn what_is_full_is_named_and_given_back() {
    let admission = admission(1, 2, 100);
    let limited = Arc::new(Tenant { max_sessions: 1, ..(*tenant("b", 1.0)).clone() });
    let free = tenant("a", 1.0);
    let first = turn(&admission, &free, ("large", 500, 0));
    let second = turn(&admission, &limited, ("large", 60, 0));
    assert!(refusal(&admission, &free, 41).contains("60 tokens are waiting"));
    assert!(refusal(&admission, &limited, 1).contains("key b has 1"));
    let third = turn(&admission, &free, ("large", 40, 0));
    assert!(refusal(&admission, &free, 0).contains("too many requests"));
    assert_eq!(admission.metrics.queued_tokens.get(), 100);
    drop(second);
    assert_eq!(admission.metrics.queued_tokens.get(), 40);
    drop((first, third));
    let state = admission.state.lock();
    assert_eq!((state.sessions.len(), state.active, state.queued_tokens), (0, 0, 0));
    assert_eq!(state.client(&free.share), Default::default());
}

#[test]
fn a_place_is_taken_before_the_tokens_are_known() {
    let admission = admission(1, 2, 100);
    let tenant = tenant("a", 1.0);
    // A session that finds a free turn takes nothing of the queue; the next one takes its bound.
    let first = admission.enter(&tenant, "large", 500).unwrap();
    let second = admission.enter(&tenant, "large", 90).unwrap();
    assert_eq!(admission.metrics.queued_tokens.get(), 90);
    assert!(refusal(&admission, &tenant, 11).contains("90 tokens are waiting"));
    // The line is formed by those whose tokens are known.
    let mut second = Box::pin(second.activate(SessionSize { prompt_tokens: 20, new_tokens: 10 }));
    let active = second.as_mut().now_or_never().unwrap();
    let mut first = Box::pin(first.activate(SessionSize { prompt_tokens: 20, new_tokens: 20 }));
    assert!(first.as_mut().now_or_never().is_none());
    assert_eq!(admission.metrics.queued_tokens.get(), 40);
    let third = admission.enter(&tenant, "large", 60).unwrap();
    assert_eq!(admission.metrics.queued_tokens.get(), 100);
    drop(third);
    drop(active);
    assert!(first.now_or_never().is_some());
    assert_eq!(admission.metrics.queued_tokens.get(), 0);
}

#[test]
fn a_prompt_waits_until_the_caches_of_its_model_have_room() {
    let admission = admission(10, 10, u64::MAX);
    let tenant = tenant("a", 1.0);
    let enter = |model, prompt_tokens| turn(&admission, &tenant, (model, prompt_tokens, 1000));
    // More than there is, but it is alone.
    let mut first = enter("small", 150).now_or_never().unwrap();
    let mut second = enter("small", 60);
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    first = second.now_or_never().unwrap();
    (0..20).for_each(|_| first.grow());
    let mut third = enter("small", 30);
    let mut fourth = enter("small", 5);
    assert!((&mut third).now_or_never().is_none(), "60 of a prompt, 20 after it, and 30");
    assert!((&mut fourth).now_or_never().is_none(), "nobody overtakes");
    drop(first);
    let (third, fourth) = (third.now_or_never().unwrap(), fourth.now_or_never().unwrap());
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 35);
    drop((third, fourth));
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 0);
}

#[test]
fn models_do_not_wait_for_each_others_caches() {
    let admission = admission(10, 10, u64::MAX);
    let enter = |name: &str, model| turn(&admission, &tenant(name, 1.0), (model, 80, 0));
    let first = enter("a", "small").now_or_never().unwrap();
    let mut second = enter("a", "small");
    assert!((&mut second).now_or_never().is_none());
    assert!(enter("b", "large").now_or_never().is_some());
    drop(first);
    assert!(second.now_or_never().is_some());
}

#[test]
fn whoever_has_more_turns_is_asked_for_its_youngest_and_gets_it_back() {
    let admission = admission(8, 100, u64::MAX);
    let (greedy, modest) = (tenant("greedy", 1.0), tenant("modest", 1.0));
    let (mut active, _line) = turns(&admission, &greedy, 20);
    assert_eq!(active.len(), 8);
    assert!(!active.iter().any(ActivePermit::is_recalled), "nobody else waits");
    let mut waiting = vec![turn(&admission, &modest, ("large", 10, 10))];
    let recalled: Vec<bool> = active.iter().map(ActivePermit::is_recalled).collect();
    assert_eq!(recalled, [false, false, false, false, false, false, false, true]);
    let mut back: Turn = Box::pin(active.pop().unwrap().give_way());
    let modest_turn = given(&mut waiting).pop().unwrap();
    assert!((&mut back).now_or_never().is_none());
    // Where both have as many, nobody is asked any more.
    waiting.extend((0..8).map(|_| turn(&admission, &modest, ("large", 10, 10))));
    let (recalled, kept): (Vec<_>, Vec<_>) = active.into_iter().partition(ActivePermit::is_recalled);
    assert_eq!((recalled.len(), kept.len()), (3, 4));
    let ways: Vec<Turn> = recalled.into_iter().map(|permit| -> Turn { Box::pin(permit.give_way()) }).collect();
    let modest_turns = given(&mut waiting);
    assert_eq!(modest_turns.len(), 3);
    assert!(!kept.iter().chain(&modest_turns).any(ActivePermit::is_recalled));
    // Those who gave way go on before the rest of their own client's line.
    drop(waiting);
    drop((modest_turn, modest_turns));
    assert!(ways.into_iter().all(|way| way.now_or_never().is_some()));
    assert!(back.now_or_never().is_some());
}

#[test]
fn a_single_turn_does_not_go_to_and_fro() {
    let admission = admission(1, 10, u64::MAX);
    let first = turn(&admission, &tenant("a", 1.0), ("large", 10, 10)).now_or_never().unwrap();
    let second = turn(&admission, &tenant("b", 5.0), ("large", 10, 10));
    assert!(!first.is_recalled());
    drop((second, first));
}

#[test]
fn a_client_that_does_not_read_gives_turn_caches_and_place_back() {
    let admission = admission(1, 1, u64::MAX);
    let (slow, other) = (tenant("slow", 1.0), tenant("other", 1.0));
    let mut permit = turn(&admission, &slow, ("small", 90, 10)).now_or_never().unwrap();
    permit.grow();
    let mut stalled = permit.stall();
    assert_eq!(admission.metrics.stalled_sessions.get(), 1);
    // Its turn is free, its caches are not.
    let large = turn(&admission, &other, ("large", 10, 0)).now_or_never().unwrap();
    drop(large);
    let mut second = turn(&admission, &other, ("small", 20, 0));
    assert!((&mut second).now_or_never().is_none());
    stalled.give_caches_back();
    let second = second.now_or_never().unwrap();
    // Both places are taken; a client that reads gets that of the one which does not.
    assert!(stalled.evicted().now_or_never().is_none());
    let third = admission.enter(&other, "small", 10).unwrap();
    assert!(stalled.evicted().now_or_never().is_some());
    assert!(admission.enter(&other, "small", 10).is_err());
    drop(second);
    assert!(stalled.activate().now_or_never().is_none(), "a place that is lost gets no turn");
    drop(third);
    let state = admission.state.lock();
    assert_eq!((state.sessions.len(), state.active, state.queued_tokens), (0, 0, 0));
}

#[test]
fn a_client_that_reads_again_goes_on_with_what_it_has_cached() {
    let admission = admission(1, 10, u64::MAX);
    let slow = tenant("slow", 1.0);
    let mut permit = turn(&admission, &slow, ("small", 90, 10)).now_or_never().unwrap();
    (0..15).for_each(|_| permit.grow());
    // 105 of 100 tokens: they are there already.
    let permit = permit.stall().activate().now_or_never().unwrap();
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 105);
    let mut stalled = permit.stall();
    stalled.give_caches_back();
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 0);
    let permit = stalled.activate().now_or_never().unwrap();
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 105);
    drop(permit);
    assert_eq!(admission.state.lock().cache_of("small").of_all(), 0);
}

#[test]
fn one_client_does_not_fill_the_queue() {
    let admission = admission(2, 10, 1000);
    let (greedy, modest) = (tenant("greedy", 1.0), tenant("modest", 1.0));
    assert_eq!(admission.most_sessions(&greedy), 10);
    let (active, waiting) = turns(&admission, &greedy, 10);
    assert_eq!((active.len(), waiting.len()), (2, 8));
    assert!(refusal(&admission, &greedy, 1).contains("8 choices of this client wait"));
    let second = admission.enter(&modest, "large", 20).unwrap();
    drop((second, waiting));
    let large = admission.enter(&greedy, "large", 780).unwrap();
    let _line = turn(&admission, &greedy, ("large", 10, 10));
    assert!(refusal(&admission, &greedy, 20).contains("800 tokens of this client wait"));
    assert!(admission.enter(&modest, "large", 20).is_ok());
    drop((large, active));
}
