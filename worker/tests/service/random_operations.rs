//! Random operations on many sessions at once against the simplest bookkeeping that could be right.

use cosec_proto::SessionId;
use cosec_proto::sampling::{Distribution, DrawPurpose, SamplingSeed};
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_worker::limits::EngineOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fake_model::logits;
use crate::harness::{Harness, SEED, draft, extend, full_rows, need_prefix, options, release, warp};

/// What a session should hold.
#[derive(Default)]
struct Expected {
    tokens: Vec<u32>,
    kept: bool,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Rows(Vec<Vec<f32>>),
    Drafted(u32, Vec<u32>),
    NeedPrefix(u32),
    Released,
}

fn seen(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Rows(_) => Answer::Rows(full_rows(outcome).unwrap()),
        Outcome::Drafted(drafted) => Answer::Drafted(drafted.length, drafted.ids.clone()),
        Outcome::NeedPrefix(_) => Answer::NeedPrefix(need_prefix(outcome).unwrap()),
        Outcome::Released(_) => Answer::Released,
        Outcome::Recalled(_) | Outcome::Failure(_) => panic!("{outcome:?}"),
    }
}

impl Expected {
    /// The answer to what needs `at` tokens, unless it can go on.
    fn lacks(&self, at: usize, needs_kept: bool) -> Option<Answer> {
        if at > self.tokens.len() {
            return Some(Answer::NeedPrefix(self.tokens.len() as u32));
        }
        let kept = at == self.tokens.len() && self.kept;
        (needs_kept && !kept).then(|| Answer::NeedPrefix(at as u32 - 1))
    }

    fn feed(&mut self, at: usize, tokens: &[u32]) {
        self.kept = !tokens.is_empty() || (self.kept && at == self.tokens.len());
        self.tokens.truncate(at);
        self.tokens.extend(tokens);
    }

    fn extend(&mut self, at: usize, tokens: &[u32], offsets: &[u32]) -> Answer {
        if let Some(answer) = self.lacks(at, offsets.contains(&0)) {
            return answer;
        }
        self.feed(at, tokens);
        Answer::Rows(offsets.iter().map(|&offset| logits(&self.tokens[..at + offset as usize])).collect())
    }

    fn draft(&mut self, at: usize, tokens: &[u32], k: usize) -> Answer {
        if let Some(answer) = self.lacks(at, tokens.is_empty()) {
            return answer;
        }
        self.feed(at, tokens);
        let mut ids = Vec::new();
        for index in 0..k {
            let position = self.tokens.len() as u32;
            let u = SamplingSeed { seed: SEED, sample: 1 }.uniform(DrawPurpose::Draft, position);
            ids.push(Distribution::from_logits(&logits(&self.tokens), &warp()).unwrap().sample(u));
            if index + 1 < k {
                self.tokens.push(ids[index]);
            }
        }
        Answer::Drafted(self.tokens.len() as u32, ids)
    }
}

#[tokio::test]
async fn many_sessions_at_once_answer_as_each_alone() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let harness = Harness::start(EngineOptions { step_tokens: 24, ..options() }).await;
    let mut wire = harness.wire().await;
    let sessions: Vec<SessionId> = (0..16).map(|_| SessionId::random()).collect();
    let mut expected: Vec<Expected> = sessions.iter().map(|_| Expected::default()).collect();
    let mut awaited = Vec::new();
    for _ in 0..1200 {
        let which = random.random_range(0..sessions.len());
        let (session, state) = (sessions[which], &mut expected[which]);
        let length = state.tokens.len();
        let at = if random.random_bool(0.7) { length } else { random.random_range(0..=length + 1) };
        let most = if at > 60 {
            0
        } else if random.random_bool(0.1) {
            90
        } else {
            6
        };
        let tokens: Vec<u32> = (0..random.random_range(0..=most)).map(|_| random.random_range(0..280)).collect();
        let least = u32::from(at == 0);
        let (operation, answer) = match random.random_range(0..20) {
            0 => {
                *state = Expected::default();
                (release(session), Answer::Released)
            }
            1..=8 if at > 0 || !tokens.is_empty() => {
                let k = random.random_range(1..=5);
                (draft(session, at as u32, &tokens, k), state.draft(at, &tokens, k as usize))
            }
            _ => {
                let highest = tokens.len() as u32;
                let count = if least > highest { 0 } else { random.random_range(0..=3) };
                let offsets: Vec<u32> = (0..count).map(|_| random.random_range(least..=highest)).collect();
                (extend(session, at as u32, &tokens, &offsets), state.extend(at, &tokens, &offsets))
            }
        };
        let shown = format!("{operation:?}");
        awaited.push((wire.send(operation, 0).await, answer, shown));
        if awaited.len() > random.random_range(1..60) {
            for (op, answer, shown) in awaited.drain(..) {
                assert_eq!(seen(&wire.answer(op).await), answer, "seed {seed}, operation {op}: {shown}");
            }
        }
    }
    for (op, answer, shown) in awaited {
        assert_eq!(seen(&wire.answer(op).await), answer, "seed {seed}, operation {op}: {shown}");
    }
    let held: usize = expected.iter().map(|session| session.tokens.len().div_ceil(4)).sum();
    assert_eq!(harness.describe().await.free_blocks as usize, 512 - held, "seed {seed}");
    for session in sessions {
        wire.run(release(session)).await;
    }
    assert_eq!(harness.describe().await.free_blocks, 512, "seed {seed}");
    assert!(harness.gate.passes().iter().any(|pass| pass.len() > 4), "nothing was batched, seed {seed}");
    assert!(harness.gate.passes().iter().all(|pass| pass.iter().sum::<usize>() <= 24), "seed {seed}");
}
