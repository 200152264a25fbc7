//! Operations that are refused by name while the stream goes on.

use cosec_proto::SessionId;
use cosec_proto::wire::worker::row_request::View;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::{Draft, Extend, Full, Gather, Nucleus, Release, RowRequest, Sample, SamplingParams};

use crate::fake_model::{CONTEXT_TOKENS, VOCABULARY, logits};
use crate::harness::{Harness, draft, extend, failure, options, warp};

fn extend_with(change: impl FnOnce(&mut Extend)) -> Option<Operation> {
    let session = SessionId::random().to_wire();
    let mut extend = Extend { session, at: 0, tokens: vec![1, 2], rows: Vec::new(), ..Extend::default() };
    change(&mut extend);
    Some(Operation::Extend(extend))
}

fn view(view: View) -> Option<Operation> {
    extend_with(|extend| extend.rows = vec![RowRequest { offset: 1, view: Some(view) }])
}

fn draft_with(change: impl FnOnce(&mut Draft)) -> Option<Operation> {
    let Operation::Draft(mut draft) = draft(SessionId::random(), 0, &[1], 2) else { unreachable!() };
    change(&mut draft);
    Some(Operation::Draft(draft))
}

fn wire_warp(temperature: f64, top_p: f64) -> Option<SamplingParams> {
    Some(SamplingParams { temperature, top_p, top_k: 0 })
}

/// Operation, and the words that the refusal must hold.
fn cases() -> Vec<(Option<Operation>, [&'static str; 2])> {
    let good = Some(warp().into());
    let row = |offset| RowRequest { offset, view: Some(View::Full(Full { precision: 1 })) };
    vec![
        (None, ["operation is missing", "extend"]),
        (extend_with(|e| e.session = vec![1; 15]), ["extend.session", "15 bytes"]),
        (draft_with(|d| d.session = vec![1; 17]), ["draft.session", "17 bytes"]),
        (Some(Operation::Release(Release { session: Vec::new() })), ["release.session", "0 bytes"]),
        (extend_with(|e| e.tokens = vec![1, VOCABULARY as u32]), ["extend.tokens[1] is 300", "below"]),
        (draft_with(|d| d.tokens = vec![u32::MAX]), ["draft.tokens[0] is 4294967295", "below"]),
        (extend_with(|e| e.at = u32::MAX), ["extend.at is 4294967295", "1000"]),
        (extend_with(|e| e.at = CONTEXT_TOKENS as u32 - 1), ["extend.at is 999", "1000"]),
        (draft_with(|d| (d.at, d.k) = (CONTEXT_TOKENS as u32 - 1, 2)), ["draft.at is 999", "1000"]),
        (extend_with(|e| e.tokens = vec![1; CONTEXT_TOKENS + 1]), ["extend.tokens has 1001", "1000"]),
        (extend_with(|e| e.rows = vec![row(3)]), ["extend.rows[0].offset is 3", "at most 2"]),
        (draft_with(|d| d.rows = vec![row(2)]), ["draft.rows[0].offset is 2", "at most 1"]),
        (draft_with(|d| d.rows = vec![row(1); 9]), ["draft.rows has 9", "8"]),
        (draft_with(|d| d.rows = vec![RowRequest { offset: 0, view: None }]), ["draft.rows[0].view", "gather"]),
        (draft_with(|d| d.adapter = "rude".to_owned()), ["draft.adapter is \"rude\"", "polite, terse"]),
        (extend_with(|e| e.adapter = "Terse".to_owned()), ["extend.adapter is \"Terse\"", "polite, terse"]),
        (extend_with(|e| e.rows = vec![row(1), row(0)]), ["extend.rows[1].offset is 0", "before the first"]),
        (extend_with(|e| e.rows = vec![row(1); 13]), ["extend.rows has 13", "12"]),
        (extend_with(|e| e.rows = vec![RowRequest { offset: 1, view: None }]), ["extend.rows[0].view", "gather"]),
        (view(View::Gather(Gather { warp: good, ids: vec![300], each: false })), ["gather.ids[0] is 300", "below"]),
        (view(View::Gather(Gather { warp: good, ids: vec![3; 301], each: false })), ["gather.ids has 301", "300"]),
        (
            view(View::Gather(Gather { warp: None, ids: vec![3], each: false })),
            ["gather.warp is missing", "required"],
        ),
        (
            view(View::Nucleus(Nucleus { warp: wire_warp(-1.0, 1.0), cap: 0 })),
            ["nucleus.warp.temperature is -1", "0"],
        ),
        (view(View::Nucleus(Nucleus { warp: wire_warp(f64::NAN, 1.0), cap: 0 })), ["temperature is NaN", "finite"]),
        (view(View::Nucleus(Nucleus { warp: wire_warp(1.0, 1.5), cap: 0 })), ["top_p is 1.5", "at most 1"]),
        (view(View::Sample(Sample { warp: good, u: 1.0 })), ["sample.u is 1", "below 1"]),
        (view(View::Sample(Sample { warp: good, u: f64::NAN })), ["sample.u is NaN", "below 1"]),
        (view(View::Sample(Sample { warp: good, u: -0.1 })), ["sample.u is -0.1", "at least 0"]),
        (view(View::Full(Full { precision: 0 })), ["full.precision is 0", "PRECISION_F32"]),
        (view(View::Full(Full { precision: 9 })), ["full.precision is 9", "PRECISION_F32"]),
        (draft_with(|d| d.k = 0), ["draft.k is 0", "1 to 64"]),
        (draft_with(|d| d.k = 65), ["draft.k is 65", "1 to 64"]),
        (draft_with(|d| d.tokens = Vec::new()), ["draft.tokens is empty", "position 0"]),
        (draft_with(|d| d.warp = wire_warp(1.0, 0.0)), ["draft.warp.top_p is 0", "greater than 0"]),
        (draft_with(|d| d.warp = None), ["draft.warp is missing", "required"]),
        (draft_with(|d| d.randomness = None), ["draft.randomness is missing", "required"]),
    ]
}

#[tokio::test]
async fn each_is_refused_by_name_and_the_stream_goes_on() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    for (operation, words) in cases() {
        let shown = format!("{operation:?}");
        let (code, message) = failure(wire.run(operation).await);
        assert_eq!(code, "invalid_argument", "{shown}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
    let described = harness.describe().await;
    assert_eq!((described.sessions, described.free_blocks), (0, 512));
    assert_eq!(wire.rows(SessionId::random(), 0, &[4], &[1]).await, [logits(&[4])]);
}

#[tokio::test]
async fn a_number_in_flight_is_refused() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    harness.gate.close();
    let session = SessionId::random();
    wire.send_as(77, extend(session, 0, &[4], &[1]), 0).await;
    wire.send_as(77, extend(session, 1, &[4], &[1]), 0).await;
    let (code, message) = failure(wire.next().await.unwrap().outcome.unwrap());
    assert_eq!(code, "invalid_argument");
    assert!(message.contains("op is 77"), "{message}");
    harness.gate.open();
    let answered = wire.next().await.unwrap();
    assert_eq!(answered.op, 77);
    assert_eq!(crate::harness::full_rows(&answered.outcome.unwrap()), Some(vec![logits(&[4])]));
    // And is free again afterwards.
    wire.send_as(77, extend(session, 1, &[4], &[1]), 0).await;
    assert!(crate::harness::full_rows(&wire.answer(77).await).is_some());
}
