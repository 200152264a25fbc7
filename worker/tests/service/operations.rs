//! What Extend, Draft and Release mean.

use cosec_proto::SessionId;
use cosec_proto::sampling::{Distribution, DrawPurpose, SamplingSeed};
use cosec_proto::wire::worker::row::Content;
use cosec_proto::wire::worker::row_request::View;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::{
    Extend, Full, Gather, Nucleus, Precision, Role, RowRequest, Sample, TokenizerRequest, TokenizerResponse,
};

use crate::fake_model::{CONTEXT_TOKENS, ERROR_TOKEN, NAN_TOKEN, TOKENIZER, VOCABULARY, adapted, logits};
use crate::harness::{Harness, SEED, draft, extend, failure, full_rows, need_prefix, options, release, warp};

fn drafted(outcome: Outcome) -> (u32, Vec<u32>, Vec<f64>) {
    match outcome {
        Outcome::Drafted(drafted) => (drafted.length, drafted.ids, drafted.probabilities),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn describes_itself() {
    let harness = Harness::start(options()).await;
    let described = harness.describe().await;
    assert_eq!((described.role(), described.model.as_str()), (Role::Expert, "fake"));
    assert_eq!((described.vocabulary, described.context_tokens), (VOCABULARY as u32, CONTEXT_TOKENS as u32));
    assert_eq!((described.block_tokens, described.total_blocks, described.free_blocks), (4, 512, 512));
    assert_eq!((described.sessions, described.protocol_version), (0, cosec_proto::PROTOCOL_VERSION));
    assert_eq!((described.queued_tokens, described.draining, described.zone.as_str()), (0, false, "here"));
    assert_eq!(described.adapters, ["polite", "terse"]);
    assert_eq!(described.end_token_ids, [0, 7]);
    assert_eq!(described.max_operation_tokens, CONTEXT_TOKENS as u32);
    let mut wire = harness.wire().await;
    wire.rows(SessionId::random(), 0, &[1, 2, 3, 4, 5], &[5]).await;
    let described = harness.describe().await;
    assert_eq!((described.sessions, described.free_blocks), (1, 510));
}

#[tokio::test]
async fn the_context_is_what_the_cache_can_hold() {
    let harness = Harness::start(cosec_worker::limits::EngineOptions { blocks: 10, ..options() }).await;
    assert_eq!(harness.describe().await.context_tokens, 40);
}

#[tokio::test]
async fn rows_stand_behind_the_tokens_they_name() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    // In the order of the requests, also when that is not ascending.
    let rows = wire.rows(session, 0, &[5, 6, 7], &[3, 1]).await;
    assert_eq!(rows, [logits(&[5, 6, 7]), logits(&[5])]);
    let rows = wire.rows(session, 3, &[8], &[0, 1, 0]).await;
    assert_eq!(rows, [logits(&[5, 6, 7]), logits(&[5, 6, 7, 8]), logits(&[5, 6, 7])]);
    // The kept row without any tokens.
    let rows = wire.rows(session, 4, &[], &[0]).await;
    assert_eq!(rows, [logits(&[5, 6, 7, 8])]);
}

#[tokio::test]
async fn a_run_looks_one_id_up_in_row_after_row() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let run = Gather { warp: Some(warp().into()), ids: vec![4, 299], each: true };
    let rows = vec![RowRequest { offset: 1, view: Some(View::Gather(run)) }];
    let extend =
        Extend { session: SessionId::random().to_wire(), at: 0, tokens: vec![9, 9], rows, ..Extend::default() };
    let Outcome::Rows(rows) = wire.run(Operation::Extend(extend)).await else { panic!("no rows") };
    assert_eq!((rows.rows.len(), rows.rows[0].offset), (1, 1));
    let Some(Content::Gathered(gathered)) = &rows.rows[0].content else { panic!("{rows:?}") };
    let of = |history: &[u32], id| Distribution::from_logits(&logits(history), &warp()).unwrap().probability(id);
    assert_eq!(gathered.probabilities, [of(&[9], 4), of(&[9, 9], 299)]);
}

#[tokio::test]
async fn every_view_is_of_the_same_row() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let distribution = Distribution::from_logits(&logits(&[9, 9]), &warp()).unwrap();
    let views = [
        View::Gather(Gather { warp: Some(warp().into()), ids: vec![4, 299, 4], each: false }),
        View::Nucleus(Nucleus { warp: Some(warp().into()), cap: 0 }),
        View::Nucleus(Nucleus { warp: Some(warp().into()), cap: 2 }),
        View::Sample(Sample { warp: Some(warp().into()), u: 0.25 }),
        View::Full(Full { precision: Precision::F32.into() }),
    ];
    let rows = views.into_iter().map(|view| RowRequest { offset: 2, view: Some(view) }).collect();
    let extend =
        Extend { session: SessionId::random().to_wire(), at: 0, tokens: vec![9, 9], rows, ..Extend::default() };
    let Outcome::Rows(rows) = wire.run(Operation::Extend(extend)).await else { panic!("no rows") };
    assert_eq!(rows.length, 2);
    let contents: Vec<Content> = rows.rows.into_iter().map(|row| row.content.unwrap()).collect();
    let [
        Content::Gathered(gathered),
        Content::Nucleus(all),
        Content::Nucleus(two),
        Content::Sampled(sampled),
        Content::Full(full),
    ] = contents.as_slice()
    else {
        panic!("{contents:?}")
    };
    assert_eq!(gathered.probabilities, [4, 299, 4].map(|id| distribution.probability(id)));
    assert_eq!(
        (all.ids.as_slice(), all.probabilities.as_slice()),
        (distribution.ids(), distribution.probabilities())
    );
    assert!(all.complete && !two.complete);
    assert_eq!((two.ids.len(), two.log_normaliser), (2, distribution.log_normaliser()));
    assert_eq!(sampled.id, distribution.sample(0.25));
    assert_eq!(sampled.probability, distribution.probability(sampled.id));
    assert_eq!(full.logits.len(), 4 * VOCABULARY);
}

#[tokio::test]
async fn a_missing_prefix_heals() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    assert_eq!(need_prefix(&wire.run(extend(session, 3, &[8], &[1])).await), Some(0));
    assert_eq!(need_prefix(&wire.run(draft(session, 3, &[8], 2)).await), Some(0));
    assert_eq!(harness.describe().await.sessions, 0);
    wire.rows(session, 0, &[5, 6], &[]).await;
    assert_eq!(need_prefix(&wire.run(extend(session, 3, &[8], &[1])).await), Some(2));
    assert_eq!(wire.rows(session, 2, &[7, 8], &[2]).await, [logits(&[5, 6, 7, 8])]);
    // Rolled back, the logits after the last token are no longer there.
    assert_eq!(need_prefix(&wire.run(extend(session, 2, &[7], &[0])).await), Some(1));
    assert_eq!(need_prefix(&wire.run(draft(session, 2, &[], 2)).await), Some(1));
    // Nothing was changed by that.
    assert_eq!(wire.rows(session, 4, &[], &[0]).await, [logits(&[5, 6, 7, 8])]);
    assert_eq!(wire.rows(session, 1, &[6, 7], &[1, 2]).await, [logits(&[5, 6]), logits(&[5, 6, 7])]);
}

#[tokio::test]
async fn a_rollback_is_as_if_it_had_never_been() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    let prompt: Vec<u32> = (20..45).collect();
    wire.rows(session, 0, &prompt, &[]).await;
    for at in [24, 23, 20, 17, 16, 1, 0] {
        wire.rows(session, at, &[101, 102, 103, 104, 105, 106], &[]).await;
        let mut history = prompt[..at as usize].to_vec();
        history.extend([111, 112]);
        // Twice: an operation that is repeated gives the same.
        for _ in 0..2 {
            assert_eq!(wire.rows(session, at, &[111, 112], &[2]).await, [logits(&history)]);
        }
        let free = harness.describe().await.free_blocks;
        assert_eq!(free, 512 - (at + 2).div_ceil(4));
        wire.rows(session, 0, &prompt, &[]).await;
    }
    // Without tokens it only forgets.
    wire.rows(session, 3, &[], &[]).await;
    assert_eq!(need_prefix(&wire.run(extend(session, 4, &[1], &[])).await), Some(3));
    assert_eq!(harness.describe().await.free_blocks, 511);
}

#[tokio::test]
async fn a_draft_is_what_one_would_sample_step_by_step() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let (k, prompt) = (9, [40, 41, 42]);

    let at_once = SessionId::random();
    let (length, ids, probabilities) = drafted(wire.run(draft(at_once, 0, &prompt, k)).await);
    assert_eq!((length, ids.len()), (3 + k - 1, k as usize));

    let one_by_one = SessionId::random();
    let mut fed: Vec<u32> = prompt.to_vec();
    let mut at = 0;
    for index in 0..k as usize {
        let (length, id, probability) = drafted(wire.run(draft(one_by_one, at, &fed, 1)).await);
        assert_eq!((id.as_slice(), probability.as_slice()), (&ids[index..=index], &probabilities[index..=index]));
        (at, fed) = (length, id);
    }

    let from_rows = SessionId::random();
    let randomness = SamplingSeed { seed: SEED, sample: 1 };
    let mut fed: Vec<u32> = prompt.to_vec();
    let mut at = 0;
    for index in 0..k as usize {
        let rows = wire.rows(from_rows, at, &fed, &[fed.len() as u32]).await;
        at += fed.len() as u32;
        let distribution = Distribution::from_logits(&rows[0], &warp()).unwrap();
        let id = distribution.sample(randomness.uniform(DrawPurpose::Draft, at));
        assert_eq!((id, distribution.probability(id)), (ids[index], probabilities[index]));
        fed = vec![id];
    }

    // Going on from the kept row, and the kept row itself.
    let history: Vec<u32> = prompt.iter().chain(&ids[..k as usize - 1]).copied().collect();
    assert_eq!(wire.rows(at_once, length, &[], &[0]).await, [logits(&history)]);
    let (_, more, _) = drafted(wire.run(draft(at_once, length, &[], 3)).await);
    assert_eq!(more[0], ids[k as usize - 1]);
    assert_eq!(more.len(), 3);
}

#[tokio::test]
async fn a_draft_shows_the_rows_that_it_drew_from() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.rows(session, 0, &[40], &[]).await;
    let views = |offset| {
        [
            View::Full(Full { precision: Precision::F32.into() }),
            View::Gather(Gather { warp: Some(warp().into()), ids: vec![3], each: false }),
        ]
        .map(|view| RowRequest { offset, view: Some(view) })
    };
    let mut at = 1;
    let mut history = vec![40];
    // From tokens, then from the kept row.
    for tokens in [vec![41, 42], vec![]] {
        let Operation::Draft(mut asked) = draft(session, at, &tokens, 3) else { unreachable!() };
        // Not in order, and not of every row.
        asked.rows = [views(2), views(0)].concat();
        let Outcome::Drafted(drafted) = wire.run(Operation::Draft(asked)).await else { panic!("nothing drafted") };
        history.extend(tokens);
        let rows = [[&history[..], &drafted.ids[..2]].concat(), history.clone()].map(|history| logits(&history));
        let shown: Vec<u32> = drafted.rows.iter().map(|row| row.offset).collect();
        assert_eq!(shown, [2, 2, 0, 0]);
        for (pair, row) in drafted.rows.chunks(2).zip(rows) {
            let Some(Content::Full(full)) = &pair[0].content else { panic!("{pair:?}") };
            let values: Vec<f32> = full.logits.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(values, row);
            let distribution = Distribution::from_logits(&row, &warp()).unwrap();
            let Some(Content::Gathered(gathered)) = &pair[1].content else { panic!("{pair:?}") };
            assert_eq!(gathered.probabilities, [distribution.probability(3)]);
        }
        history.extend(&drafted.ids[..2]);
        at = drafted.length;
    }
}

#[tokio::test]
async fn a_session_keeps_to_its_adapter() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    let under = |adapter: &str, at, tokens: &[u32]| {
        let Operation::Extend(extend) = extend(session, at, tokens, &[1]) else { unreachable!() };
        Operation::Extend(Extend { adapter: adapter.to_owned(), ..extend })
    };
    let row = |history: &[u32]| Some(vec![logits(history)]);
    assert_eq!(full_rows(&wire.run(under("terse", 0, &[5])).await), row(&[adapted(Some(1), 5)]));
    let both = [5, 6].map(|token| adapted(Some(1), token));
    assert_eq!(full_rows(&wire.run(under("terse", 1, &[6])).await), row(&both));
    for other in ["", "polite"] {
        assert_eq!(need_prefix(&wire.run(under(other, 1, &[6])).await), Some(0));
    }
    assert_eq!(full_rows(&wire.run(under("polite", 0, &[5])).await), row(&[adapted(Some(0), 5)]));
    assert_eq!(need_prefix(&wire.run(under("terse", 1, &[6])).await), Some(0));
}

#[tokio::test]
async fn the_tokenizer_comes_in_pieces() {
    let harness = Harness::start(options()).await;
    let mut pieces = harness.client().tokenizer(TokenizerRequest {}).await.unwrap().into_inner();
    let mut content = Vec::new();
    while let Some(TokenizerResponse { piece }) = pieces.message().await.unwrap() {
        assert!((1..=1 << 20).contains(&piece.len()));
        content.extend(piece);
    }
    assert!(content == TOKENIZER.repeat(300_000));
}

#[tokio::test]
async fn release_gives_everything_back() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let sessions: Vec<SessionId> = (0..5).map(|_| SessionId::random()).collect();
    for (session, tokens) in sessions.iter().zip(1..) {
        wire.rows(*session, 0, &vec![3; tokens * 10], &[]).await;
        drafted(wire.run(draft(*session, tokens as u32 * 10, &[4], 5)).await);
    }
    for session in &sessions {
        assert!(matches!(wire.run(release(*session)).await, Outcome::Released(_)));
        assert_eq!(need_prefix(&wire.run(extend(*session, 1, &[1], &[])).await), Some(0));
    }
    let described = harness.describe().await;
    assert_eq!((described.sessions, described.free_blocks), (0, 512));
    // Also of a session that nobody knows.
    assert!(matches!(wire.run(release(SessionId::random())).await, Outcome::Released(_)));
}

#[tokio::test]
async fn a_broken_model_is_the_workers_fault_and_leaves_the_session_as_it_was() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    wire.rows(session, 0, &[5, 6], &[]).await;
    for token in [NAN_TOKEN, ERROR_TOKEN] {
        let operations = [
            extend(session, 2, &[7, token], &[2]),
            draft(session, 2, &[token], 3),
            extend(session, 2, &[token], &[0, 1]),
        ];
        for operation in operations {
            let (code, message) = failure(wire.run(operation).await);
            assert_eq!(code, "worker_fault", "{message}");
        }
        let opening = SessionId::random();
        assert_eq!(failure(wire.run(draft(opening, 0, &[token], 1)).await).0, "worker_fault");
    }
    assert_eq!(wire.rows(session, 2, &[8], &[0, 1]).await, [logits(&[5, 6]), logits(&[5, 6, 8])]);
    let described = harness.describe().await;
    assert_eq!((described.sessions, described.free_blocks), (1, 511));
}

#[tokio::test]
async fn operations_of_a_session_run_in_the_order_of_arrival() {
    let harness = Harness::start(options()).await;
    let mut wire = harness.wire().await;
    let session = SessionId::random();
    let first = wire.send(extend(session, 0, &[5; 150], &[150]), 0).await;
    let second = wire.send(extend(session, 150, &[6], &[1]), 0).await;
    let back = wire.send(extend(session, 2, &[7], &[1]), 0).await;
    let gone = wire.send(release(session), 0).await;
    let after = wire.send(extend(session, 3, &[8], &[1]), 0).await;
    let long = vec![5; 150];
    assert_eq!(full_rows(&wire.answer(first).await), Some(vec![logits(&long)]));
    assert_eq!(full_rows(&wire.answer(second).await), Some(vec![logits(&[long, vec![6]].concat())]));
    assert_eq!(full_rows(&wire.answer(back).await), Some(vec![logits(&[5, 5, 7])]));
    assert!(matches!(wire.answer(gone).await, Outcome::Released(_)));
    assert_eq!(need_prefix(&wire.answer(after).await), Some(0));
}
