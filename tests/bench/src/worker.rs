//! A real worker process and one stream to it, as a coordinator has one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cosec_launcher::Process;
use cosec_proto::transport::with_protocol_version;
use cosec_proto::wire::worker::row::Content;
use cosec_proto::wire::worker::row_request::View;
use cosec_proto::wire::worker::step_request::Operation;
use cosec_proto::wire::worker::step_response::Outcome;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::wire::worker::{
    DescribeRequest, DescribeResponse, Extend, Release, RowRequest, Sample, SamplingParams, StepRequest, StepResponse,
};
use cosec_proto::{SessionId, transport};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::metrics::{Scrape, cpu_time};
use crate::report::{Decoded, Engine};

/// Time for a worker to load its model.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The folder of the programs that are measured: where this one stands.
///
/// # Errors
/// When the system does not say.
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("a program stands in a folder")?.to_owned())
}

/// A running worker; dropping it kills the process.
pub struct Worker {
    process: Process,
    metrics: String,
    requests: mpsc::Sender<StepRequest>,
    responses: Streaming<StepResponse>,
    next_op: u64,
    /// Sessions that decode, with the tokens they were opened with.
    sessions: Vec<(Vec<u8>, u32)>,
    /// Makes every prompt another one: what is measured is never found in a cache.
    next_prompt: u32,
    vocabulary: u32,
}

impl Worker {
    /// Starts `cosec-worker` with `flags` and waits until the model is loaded.
    ///
    /// # Errors
    /// What the worker died of.
    pub async fn start(model: &Path, flags: &[OsString], logs: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut process = Process::start(
            "worker",
            Command::new(binaries()?.join("cosec-worker"))
                .args(["serve", "--role", "base", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
                .arg("--model")
                .arg(model)
                .args(flags),
            logs,
        )?;
        let address = process.announced("listening on ", deadline).await?;
        let metrics = format!("http://{}/metrics", process.announced("metrics on ", deadline).await?);
        let mut client = WorkerClient::new(transport::channel(&address)?)
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(transport::MAX_MESSAGE_BYTES);
        let described = loop {
            match client.describe(DescribeRequest {}).await {
                Ok(described) => break described.into_inner(),
                Err(status) if Instant::now() > deadline => bail!("the worker is not ready: {}", status.message()),
                Err(_) => process.check_alive()?,
            }
            sleep(Duration::from_millis(100)).await;
        };
        let DescribeResponse { vocabulary, .. } = described;
        let (requests, outgoing) = mpsc::channel(256);
        let responses = client.step(with_protocol_version(ReceiverStream::new(outgoing))).await?.into_inner();
        Ok(Self {
            process,
            metrics,
            requests,
            responses,
            next_op: 0,
            sessions: Vec::new(),
            next_prompt: 0,
            vocabulary,
        })
    }

    /// What the worker has counted so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::of(&self.metrics).await
    }

    async fn send(&mut self, operation: Operation) -> Result<u64> {
        self.next_op += 1;
        let request = StepRequest { op: self.next_op, deadline_ms: 120_000, operation: Some(operation) };
        self.requests.send(request).await.context("the worker closed the stream")?;
        Ok(self.next_op)
    }

    /// The next answer: its operation and, where a row was asked for, the token drawn from it.
    async fn answer(&mut self) -> Result<(u64, Option<u32>)> {
        let response = self.responses.message().await?.context("the worker closed the stream")?;
        match response.outcome.context("an answer without outcome")? {
            Outcome::Rows(rows) => match rows.rows.first().and_then(|row| row.content.as_ref()) {
                Some(Content::Sampled(sampled)) => Ok((response.op, Some(sampled.id))),
                _ => Ok((response.op, None)),
            },
            Outcome::Released(_) => Ok((response.op, None)),
            other => bail!("an operation was answered {other:?}"),
        }
    }

    fn prompt(&mut self, tokens: u32) -> Vec<u32> {
        self.next_prompt += 1;
        let (first, vocabulary) = (self.next_prompt.wrapping_mul(7919), self.vocabulary);
        (0..tokens).map(|position| first.wrapping_add(position * 31) % vocabulary).collect()
    }

    async fn release(&mut self, session: Vec<u8>) -> Result<()> {
        self.send(Operation::Release(Release { session })).await?;
        self.answer().await.map(drop)
    }
}

/// Feeds `tokens` and asks for one draw under `temperature` after the last of them.
fn extend(session: &[u8], at: u32, tokens: Vec<u32>, temperature: f64) -> Operation {
    let warp = Some(SamplingParams { temperature, top_p: 1.0, top_k: 0 });
    let rows = vec![RowRequest { offset: tokens.len() as u32, view: Some(View::Sample(Sample { warp, u: 0.5 })) }];
    Operation::Extend(Extend { session: session.to_vec(), at, tokens, rows, ..Extend::default() })
}

impl Engine for Worker {
    async fn prefill(&mut self, tokens: u32) -> Result<(u32, Duration)> {
        let session = SessionId::random().to_wire();
        let prompt = self.prompt(tokens);
        let started = Instant::now();
        self.send(extend(&session, 0, prompt, 0.0)).await?;
        let (_, token) = self.answer().await?;
        let elapsed = started.elapsed();
        self.release(session).await?;
        Ok((token.context("no token was drawn")?, elapsed))
    }

    async fn open(&mut self, sequences: usize, tokens: u32) -> Result<()> {
        for _ in 0..sequences {
            let session = SessionId::random().to_wire();
            let prompt = self.prompt(tokens);
            self.send(extend(&session, 0, prompt, 1.0)).await?;
            self.sessions.push((session, tokens));
        }
        for _ in 0..sequences {
            self.answer().await?;
        }
        Ok(())
    }

    /// Every session sends its next operation as soon as it has its token, on its own.
    async fn decode(&mut self, sequences: usize, span: Duration, most_steps: u32) -> Result<Decoded> {
        let cpu = cpu_time(self.process()?)?;
        let mut waiting: HashMap<u64, (usize, u32, Instant)> = HashMap::new();
        let started = Instant::now();
        for index in 0..sequences {
            let (session, at) = self.sessions[index].clone();
            let op = self.send(extend(&session, at, vec![1 + index as u32], 1.0)).await?;
            waiting.insert(op, (index, 1, started));
        }
        let mut gaps = Vec::new();
        while !waiting.is_empty() {
            let (op, token) = self.answer().await?;
            let (index, steps, sent) = waiting.remove(&op).context("an answer to nothing")?;
            let now = Instant::now();
            gaps.push(now - sent);
            if now - started < span && steps < most_steps {
                let (session, opened) = self.sessions[index].clone();
                let next = extend(&session, opened + steps, vec![token.context("no token was drawn")?], 1.0);
                let op = self.send(next).await?;
                waiting.insert(op, (index, steps + 1, now));
            }
        }
        let elapsed = started.elapsed();
        Ok(Decoded { tokens: gaps.len(), elapsed, gaps, cpu: cpu_time(self.process()?)?.saturating_sub(cpu) })
    }

    fn process(&self) -> Result<u32> {
        self.process.id().context("the worker has ended")
    }
}
