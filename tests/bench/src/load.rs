//! Clients in a closed loop (so many streams at a time) or an open one (so many requests a second), and what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::completions::{NoStream, Received, complete};
use crate::difference::Difference;

/// Pause of a client in a closed loop that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// After a process is lost the longest pause of a stream that begins within this time counts as its recovery.
const LOSS_IS_FELT: Duration = Duration::from_secs(1);

/// A request and the tokens that it gives undisturbed.
#[derive(Clone, Debug)]
pub struct Work {
    body: Value,
    expected: Vec<u32>,
}

/// Clients that ask one coordinator and know the others in case it is lost.
#[derive(Clone)]
pub struct Clients {
    http: Client,
    addresses: Arc<Vec<String>>,
    work: Arc<Vec<Work>>,
}

impl Clients {
    /// Learns what each of `bodies` gives, `streams` at a time; the first of the coordinators at `addresses` is asked.
    ///
    /// # Errors
    /// When one of them is refused or fails.
    pub async fn learn(http: Client, addresses: Vec<String>, bodies: Vec<Value>, streams: usize) -> Result<Self> {
        let work = bodies.into_iter().map(|body| Work { body, expected: Vec::new() }).collect();
        let mut clients = Self { http, addresses: Arc::new(addresses), work: Arc::new(work) };
        let mut learnt = clients.work.to_vec();
        let next = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        for _ in 0..streams {
            let (clients, next) = (clients.clone(), Arc::clone(&next));
            running.spawn(async move {
                let mut asked = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= clients.work.len() {
                        return asked;
                    }
                    asked.push(clients.ask(index).await);
                }
            });
        }
        for asked in running.join_all().await.into_iter().flatten() {
            match asked.outcome {
                Ok(received) => learnt[asked.work].expected = received.tokens,
                Err(why) => bail!("an undisturbed request has no answer: {why:?}"),
            }
        }
        clients.work = Arc::new(learnt);
        Ok(clients)
    }

    async fn ask(&self, index: usize) -> Asked {
        let work = index % self.work.len();
        let began = Instant::now();
        let outcome = complete(&self.http, &self.addresses, &self.work[work].body).await;
        Asked { work, began, ended: Instant::now(), outcome }
    }

    /// Keeps `streams` requests under way while `meanwhile` lasts, then lets them end.
    ///
    /// # Errors
    /// What `meanwhile` says.
    pub async fn closed<T>(&self, streams: usize, meanwhile: impl Future<Output = Result<T>>) -> Result<(Seen, T)> {
        let (next, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut running = JoinSet::new();
        let began = Instant::now();
        for _ in 0..streams {
            let (clients, next, over) = (self.clone(), Arc::clone(&next), Arc::clone(&over));
            running.spawn(async move {
                let mut asked = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    asked.push(clients.ask(next.fetch_add(1, Ordering::Relaxed)).await);
                    if let Some(Asked { outcome: Err(_), .. }) = asked.last() {
                        sleep(REFUSED_PAUSE).await;
                    }
                }
                asked
            });
        }
        let done = meanwhile.await;
        let ended = Instant::now();
        over.store(true, Ordering::Relaxed);
        let asked = running.join_all().await.into_iter().flatten().collect();
        Ok((Seen { began, ended, asked, work: Arc::clone(&self.work) }, done?))
    }

    /// Asks `per_second` times a second, at random times (Poisson), for `span`, whatever becomes of the requests.
    ///
    /// # Errors
    /// When there is no such rate.
    pub async fn open(&self, per_second: f64, span: Duration, seed: u64) -> Result<Seen> {
        if !(per_second.is_finite() && per_second > 0.0) {
            return Err(anyhow!("{per_second} requests a second are none"));
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut running = JoinSet::new();
        let began = Instant::now();
        let mut at = began;
        for index in 0.. {
            at += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / per_second);
            if at >= began + span {
                break;
            }
            sleep_until(at).await;
            let clients = self.clone();
            running.spawn(async move { clients.ask(index).await });
        }
        sleep_until(began + span).await;
        Ok(Seen { began, ended: began + span, asked: running.join_all().await, work: Arc::clone(&self.work) })
    }
}

/// A request and what became of it.
#[derive(Clone, Debug)]
struct Asked {
    work: usize,
    began: Instant,
    ended: Instant,
    outcome: Result<Received, NoStream>,
}

/// What the clients of one load saw.
#[derive(Clone, Debug)]
pub struct Seen {
    began: Instant,
    /// When no new request was made any more.
    ended: Instant,
    asked: Vec<Asked>,
    work: Arc<Vec<Work>>,
}

impl Seen {
    /// Requests made.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.asked.len()
    }

    fn received(&self) -> impl Iterator<Item = &Received> {
        self.asked.iter().filter_map(|asked| asked.outcome.as_ref().ok())
    }

    /// Requests answered to their end.
    #[must_use]
    pub fn completed(&self) -> usize {
        self.received().count()
    }

    /// Requests completed per second, and tokens, in the time after the first `warm_up`.
    #[must_use]
    pub fn rates(&self, warm_up: Duration) -> (f64, f64) {
        let span = (self.began + warm_up)..self.ended;
        let seconds = (span.end - span.start).as_secs_f64();
        let completed =
            self.asked.iter().filter(|asked| asked.outcome.is_ok() && span.contains(&asked.ended)).count();
        let arrivals = self.received().flat_map(|received| &received.arrivals);
        let tokens: usize = arrivals.filter(|(time, _)| span.contains(time)).map(|&(_, tokens)| tokens).sum();
        (completed as f64 / seconds, tokens as f64 / seconds)
    }

    /// Tokens that came.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.received().map(|received| received.tokens.len()).sum()
    }

    /// Against what the same requests gave undisturbed.
    #[must_use]
    pub fn difference(&self) -> Difference {
        let mut sum = Difference::default();
        for asked in &self.asked {
            if let Ok(received) = &asked.outcome {
                sum += Difference::between(&self.work[asked.work].expected, &received.tokens);
            }
        }
        sum
    }

    /// Seconds until each refusal.
    #[must_use]
    pub fn refusals(&self) -> Vec<f64> {
        let refused = |asked: &&Asked| matches!(asked.outcome, Err(NoStream::Refused { .. }));
        self.asked.iter().filter(refused).map(|asked| (asked.ended - asked.began).as_secs_f64()).collect()
    }

    /// What is no answer: failures, and refusals that do not say when to come again.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let error = |asked: &Asked| match &asked.outcome {
            Ok(_) | Err(NoStream::Refused { with_hint: true }) => None,
            Err(NoStream::Refused { with_hint: false }) => Some("a refusal without Retry-After".to_owned()),
            Err(NoStream::Failed(why) | NoStream::Unreachable(why)) => Some(why.clone()),
        };
        self.asked.iter().filter_map(error).collect()
    }

    /// Streams that were taken up again.
    #[must_use]
    pub fn resumed(&self) -> usize {
        self.received().filter(|received| received.resumed > 0).count()
    }

    /// Seconds from each request to its first token.
    #[must_use]
    pub fn first_tokens(&self) -> Vec<f64> {
        let first = |received: &Received| Some((received.arrivals.first()?.0 - received.asked).as_secs_f64());
        self.received().filter_map(first).collect()
    }

    /// Seconds between two events with tokens of one stream.
    #[must_use]
    pub fn between_tokens(&self) -> Vec<f64> {
        let gaps = |received: &Received| {
            let pairs: Vec<f64> =
                received.arrivals.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()).collect();
            pairs
        };
        self.received().flat_map(gaps).collect()
    }

    /// Seconds of the longest pause that the streams under way at one of `losses` made because of it or nearly so.
    #[must_use]
    pub fn recoveries(&self, losses: &[Instant]) -> Vec<f64> {
        let pause = |received: &Received, loss: Instant| {
            let began = received.arrivals.first()?.0 < loss;
            let concerned = |pair: &&[(Instant, usize)]| pair[1].0 > loss && pair[0].0 < loss + LOSS_IS_FELT;
            let pauses = received.arrivals.windows(2).filter(concerned).map(|pair| pair[1].0 - pair[0].0);
            pauses.max().filter(|_| began).map(|pause| pause.as_secs_f64())
        };
        losses.iter().flat_map(|&loss| self.received().filter_map(move |received| pause(received, loss))).collect()
    }

    /// Both loads as one; rates are of this one alone.
    pub fn append(&mut self, other: Self) {
        self.asked.extend(other.asked);
    }
}
