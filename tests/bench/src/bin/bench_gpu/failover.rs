//! Streams of the demo pair while one of two base workers is killed.

use std::time::Duration;

use anyhow::{Result, bail};
use cosec_bench::cluster::{MODEL, Pair};
use cosec_bench::completions::complete;
use cosec_bench::fleet::{Replica, coordinator, until_up, worker};
use cosec_bench::metrics::Scrape;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::{PROMPTS, Place, agreement};

const STREAMS: usize = 8;
const TOKENS: u32 = 400;

/// Of all streams together before the kill.
const TOKENS_BEFORE: f64 = 160.0;

/// Kills each base worker once and holds the streams against undisturbed ones.
pub(crate) async fn run(place: &Place) -> Result<()> {
    let logs = cosec_bench::command::logs()?;
    let pair = Pair::demo(&place.root);
    let flags = ["--device", &place.device, "--kv-memory-mib", "512"];
    let (mut first, mut second, mut expert) = tokio::try_join!(
        Replica::start(worker("base", &pair.base, &flags), "base-0", logs.path()),
        Replica::start(worker("base", &pair.base, &flags), "base-1", logs.path()),
        Replica::start(worker("expert", &pair.expert, &flags), "expert", logs.path()),
    )?;
    let bases = [first.address.clone(), second.address.clone()];
    let program = coordinator(MODEL, &pair.base, [&bases, std::slice::from_ref(&expert.address)], Vec::new());
    let coordinator = Replica::start(program, "coordinator", logs.path()).await?;
    tokio::select! {
        up = until_up(&coordinator, 3) => up?,
        died = first.ended() => return Err(died),
        died = second.ended() => return Err(died),
        died = expert.ended() => return Err(died),
    }
    let undisturbed = streams(&coordinator.address).await?;
    let longest = undisturbed.iter().map(Vec::len).max().unwrap_or(0);
    println!("- undisturbed: {STREAMS} streams of up to {longest} tokens on two base workers and an expert");
    let (mut recoveries, mut all_equal) = (0.0, true);
    for (name, base) in [("first", &mut first), ("second", &mut second)] {
        let before = scrape(&coordinator).await?;
        let (disturbed, killed) =
            tokio::join!(streams(&coordinator.address), kill_among(&coordinator, base, &before));
        killed?;
        let disturbed = disturbed?;
        let added = scrape(&coordinator).await?.since(&before);
        let sum = |name: &str| added.sum(name, &["role=\"base\""]);
        let recovered = sum("cosec_recovery_seconds_count");
        let (equal, verdict) = agreement(&undisturbed, &disturbed);
        println!(
            "- the {name} base worker killed (kill -9) in mid-stream: {recovered} streams went on with the other after {:.3} s \
             on average; {verdict}",
            sum("cosec_recovery_seconds_sum") / recovered
        );
        (recoveries, all_equal) = (recoveries + recovered, all_equal && equal);
        base.restart().await?;
        until_up(&coordinator, 3).await?;
    }
    if recoveries == 0.0 {
        bail!("no stream was on a worker that was killed");
    }
    if !all_equal {
        bail!("a kill changed a stream");
    }
    Ok(())
}

async fn scrape(coordinator: &Replica) -> Result<Scrape> {
    coordinator.scrape().await
}

/// Tokens of each stream.
async fn streams(address: &str) -> Result<Vec<Vec<u32>>> {
    let client = Client::new();
    let mut running = JoinSet::new();
    for index in 0..STREAMS {
        let (client, addresses) = (client.clone(), [address.to_owned()]);
        running.spawn(async move { (index, complete(&client, &addresses, &body(index)).await) });
    }
    let mut tokens = vec![Vec::new(); STREAMS];
    while let Some(stream) = running.join_next().await {
        let (index, received) = stream?;
        let received = received.map_err(|error| anyhow::anyhow!("stream {index}: {error:?}"))?;
        tokens[index] = received.tokens;
    }
    Ok(tokens)
}

fn body(index: usize) -> Value {
    json!({
        "model": MODEL,
        "prompt": PROMPTS[index % PROMPTS.len()],
        "max_tokens": TOKENS,
        "seed": index,
        "stream": true,
        "cosec": {"report": true},
    })
}

/// Kills `base` once the streams have shown some tokens.
async fn kill_among(coordinator: &Replica, base: &mut Replica, before: &Scrape) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while scrape(coordinator).await?.since(before).sum("cosec_tokens_total", &[]) < TOKENS_BEFORE {
        if Instant::now() > deadline {
            bail!("the streams showed no tokens");
        }
        sleep(Duration::from_millis(2)).await;
    }
    base.kill().await
}
