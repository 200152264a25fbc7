//! Concurrent completions against one coordinator, watched for a while.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cosec_proto::wire::coordinator::GenerateRequest;
use cosec_proto::wire::coordinator::generate_event::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cluster::Coordinator;
use crate::metrics::Scrape;

/// Tokens that arrived closer together than this came in one answer.
const BURST: Duration = Duration::from_millis(1);

/// Time for every stream to show its first token.
const FIRST_TOKENS: Duration = Duration::from_secs(120);

/// When watching ends.
#[derive(Clone, Copy, Debug)]
pub enum WatchEnd {
    /// After this time.
    After(Duration),
    /// When the coordinator has counted so many rounds of all streams together, or after `most`.
    Rounds {
        /// Blocks of drafts verified.
        rounds: usize,
        /// Longest time.
        most: Duration,
    },
}

/// Between two looks at the rounds.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What was seen of some streams.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Tokens per second of all streams together.
    pub rate: f64,
    /// How long they were watched.
    pub seconds: f64,
    /// What the coordinator counted meanwhile.
    pub added: Scrape,
    /// Token ids of each stream's first completion, as far as it came.
    pub tokens: Vec<Vec<u32>>,
}

/// Runs `requests` at the same time, each beginning anew with another seed where it ends, and watches them from
/// when all have shown a token. Then the clients leave.
///
/// # Errors
/// When a request fails or no token comes.
pub async fn watch(coordinator: &Coordinator, requests: Vec<GenerateRequest>, end: WatchEnd) -> Result<Watched> {
    let streams = requests.len();
    let (sink, mut arrivals) = mpsc::unbounded_channel();
    let mut running = JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        running.spawn(stream(coordinator.clone(), index, request, sink.clone()));
    }
    drop(sink);
    let mut seen: Vec<Seen> = vec![Seen::default(); streams];
    let deadline = Instant::now() + FIRST_TOKENS;
    while seen.iter().any(|stream| stream.times.is_empty()) {
        let Ok(arrival) = timeout_at(deadline, arrivals.recv()).await else { bail!("no token within two minutes") };
        // The channel closes only when all streams have failed.
        let Some(arrival) = arrival else { return Err(failure(&mut running).await) };
        seen[arrival.stream].note(arrival);
    }
    let before = coordinator.scrape().await?;
    let started = Instant::now();
    let end = until(coordinator, &before, end);
    tokio::pin!(end);
    loop {
        tokio::select! {
            ended = &mut end => break ended?,
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => seen[arrival.stream].note(arrival),
                None => return Err(failure(&mut running).await),
            },
            Some(_) = running.join_next() => return Err(failure(&mut running).await),
        }
    }
    let (seconds, added) = (started.elapsed().as_secs_f64(), coordinator.scrape().await?.since(&before));
    running.shutdown().await;
    coordinator.settled().await?;
    let rate = seen.iter().map(|stream| stream.rate(started)).sum();
    Ok(Watched { rate, seconds, added, tokens: seen.into_iter().map(|stream| stream.first).collect() })
}

async fn until(coordinator: &Coordinator, before: &Scrape, end: WatchEnd) -> Result<()> {
    let (rounds, most) = match end {
        WatchEnd::After(span) => {
            sleep(span).await;
            return Ok(());
        }
        WatchEnd::Rounds { rounds, most } => (rounds, most),
    };
    let looks = async {
        loop {
            sleep(LOOK_INTERVAL).await;
            let counted =
                coordinator.scrape().await?.since(before).sum("cosec_spec_decode_accepted_length_count", &[]);
            if counted >= rounds as f64 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(most, looks).await.unwrap_or(Ok(()))
}

async fn failure(running: &mut JoinSet<Result<()>>) -> anyhow::Error {
    match running.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => anyhow::anyhow!("a stream ended"),
    }
}

/// Tokens of one stream that came together.
struct Arrival {
    stream: usize,
    /// Of the stream's first completion.
    is_first: bool,
    ids: Vec<u32>,
    time: Instant,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    times: Vec<(Instant, usize)>,
    first: Vec<u32>,
}

impl Seen {
    fn note(&mut self, arrival: Arrival) {
        self.times.push((arrival.time, arrival.ids.len()));
        if arrival.is_first {
            self.first.extend(arrival.ids);
        }
    }

    /// Tokens per second from the end of the first burst after `started` to the last token; NaN where no other came.
    fn rate(&self, started: Instant) -> f64 {
        let mut times = self.times.iter().filter(|(time, _)| *time >= started).peekable();
        let Some(&(mut from, _)) = times.next() else { return f64::NAN };
        while let Some(&(time, _)) = times.next_if(|(time, _)| *time - from < BURST) {
            from = time;
        }
        let (until, tokens) = times.fold((from, 0), |(_, sum), &(time, tokens)| (time, sum + tokens));
        if tokens == 0 { f64::NAN } else { tokens as f64 / (until - from).as_secs_f64() }
    }
}

async fn stream(
    mut coordinator: Coordinator,
    stream: usize,
    mut request: GenerateRequest,
    sink: mpsc::UnboundedSender<Arrival>,
) -> Result<()> {
    let mut is_first = true;
    loop {
        let mut events =
            coordinator.client.generate(request.clone()).await.context("a request was refused")?.into_inner();
        while let Some(event) = events.message().await.context("a stream broke")? {
            if let Some(Event::Delta(delta)) = event.event {
                let ids: Vec<u32> = delta.tokens.iter().map(|token| token.id).collect();
                if !ids.is_empty() && sink.send(Arrival { stream, is_first, ids, time: Instant::now() }).is_err() {
                    return Ok(());
                }
            }
        }
        is_first = false;
        request.seed = request.seed.map(|seed| seed.wrapping_add(1_000_000));
    }
}
