//! What an attack costs others: memory of a process, gaps in a bystander's stream.

use std::fmt;
use std::time::Duration;

use cosec_launcher::Process;
use cosec_tests::fleet::body;
use cosec_tests::network::say;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Whether attacks run in full, as `tests/attacks` asks for, or short.
pub(crate) fn in_full() -> bool {
    std::env::var_os("COSEC_ATTACKS_IN_FULL").is_some()
}

/// Prints the line of one attack.
pub(crate) fn report(finding: &str, what: &str, seen: &str) {
    say(&format!("{finding:<4} {what:<60} {seen}"));
}

/// The most memory that `process` ever had resident, in MiB (`VmHWM`).
pub(crate) fn peak_memory_mib(process: &Process) -> u64 {
    let id = process.id().expect("the process has ended");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// Descriptors that `process` has open.
pub(crate) fn open_files(process: &Process) -> usize {
    let id = process.id().expect("the process has ended");
    std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count()
}

/// A client that streams completions one after the other and notes the time between their tokens.
pub(crate) struct Bystander {
    stop: watch::Sender<bool>,
    gaps: JoinHandle<Vec<Duration>>,
}

/// What a bystander saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterTokenLatency {
    pub(crate) tokens: usize,
    pub(crate) p99: Duration,
    pub(crate) longest: Duration,
}

impl fmt::Display for InterTokenLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p99, longest] = [self.p99, self.longest].map(|gap| gap.as_secs_f64() * 1e3);
        write!(f, "{} tokens, gaps p99 {p99:.0} ms, longest {longest:.0} ms", self.tokens)
    }
}

impl Bystander {
    /// Starts streaming from the coordinator at `http`, with the key where one is given.
    pub(crate) fn start(http: &str, key: Option<&str>) -> Self {
        let (http, key) = (http.to_owned(), key.map(str::to_owned));
        let (stop, mut stopped) = watch::channel(false);
        let gaps = tokio::spawn(async move {
            let mut gaps = Vec::new();
            let mut seed = 0;
            while !*stopped.borrow() {
                seed += 1;
                let mut request: Value = body(seed, 400);
                request["stream"] = true.into();
                let mut post = reqwest::Client::new().post(format!("{http}/v1/completions")).json(&request);
                if let Some(key) = &key {
                    post = post.bearer_auth(key);
                }
                let mut last = Instant::now();
                let Ok(answer) = post.send().await else { continue };
                let mut pieces = answer.bytes_stream();
                loop {
                    tokio::select! {
                        _ = stopped.changed() => { gaps.push(last.elapsed()); break }
                        piece = pieces.next() => {
                            let Some(Ok(_)) = piece else { break };
                            gaps.push(last.elapsed());
                            last = Instant::now();
                        }
                    }
                }
            }
            gaps
        });
        Self { stop, gaps }
    }

    /// Ends the stream. A token that was awaited then counts with the time that it had been awaited.
    pub(crate) async fn stop(self) -> InterTokenLatency {
        let _ = self.stop.send(true);
        let mut gaps = self.gaps.await.unwrap();
        assert!(!gaps.is_empty(), "the bystander was never served");
        gaps.sort();
        let p99 = gaps[(gaps.len() * 99 / 100).min(gaps.len() - 1)];
        InterTokenLatency { tokens: gaps.len(), p99, longest: gaps[gaps.len() - 1] }
    }

    /// What a bystander sees in `span` with nobody else around.
    pub(crate) async fn undisturbed(http: &str, key: Option<&str>, span: Duration) -> InterTokenLatency {
        let bystander = Self::start(http, key);
        tokio::time::sleep(span).await;
        bystander.stop().await
    }
}
