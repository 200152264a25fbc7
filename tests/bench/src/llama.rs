//! The peer: llama.cpp through llama-cpp-python, in a Python process that is told line by line what to do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::metrics::cpu_time;
use crate::report::{Decoded, Engine};
use crate::shape::WeightFormat;

/// A Python that has llama-cpp-python and gguf.
#[derive(Clone, Debug)]
pub struct Python(pub PathBuf);

impl Python {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        // Idle threads of the peer must not spin on the cores that the other side is measured on.
        command.env("GOMP_SPINCOUNT", "0").arg("-u");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("llama_peer.py")).kill_on_drop(true);
        command
    }

    /// Writes the checkpoint's weights as GGUF next to it unless that is there, and names the file.
    ///
    /// # Errors
    /// When the conversion fails.
    pub async fn convert(&self, checkpoint: &Path, format: WeightFormat, threads: usize) -> Result<PathBuf> {
        let file = checkpoint.join(format!("{}.gguf", format.name()));
        if !file.is_file() {
            println!("writing {}", file.display());
            let mut command = self.command();
            command.arg("convert").arg(checkpoint).arg(&file).args([format.name(), &threads.to_string()]);
            let output = command.output().await?;
            if !output.status.success() {
                bail!("the conversion to GGUF failed: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(file)
    }
}

/// A llama.cpp process; dropping it kills it.
pub struct Llama {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Llama {
    /// Loads `model`.
    ///
    /// # Errors
    /// When llama.cpp does not take it.
    pub async fn start(python: &Python, model: &Path, threads: usize, sequences: usize, tokens: u32) -> Result<Self> {
        let mut command = python.command();
        command.arg("serve").arg(model).args([threads.to_string(), sequences.to_string(), tokens.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let input = process.stdin.take().context("no standard input")?;
        let output = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let mut llama = Self { process, input, output };
        llama.answer().await.context("llama.cpp did not load the model")?;
        Ok(llama)
    }

    async fn ask(&mut self, question: Value) -> Result<Value> {
        self.input.write_all(format!("{question}\n").as_bytes()).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = self.output.next_line().await?.context("llama.cpp has ended")?;
        Ok(serde_json::from_str(&line)?)
    }
}

fn seconds(value: &Value) -> Result<Duration> {
    Ok(Duration::from_secs_f64(value.as_f64().context("no seconds")?))
}

impl Engine for Llama {
    async fn prefill(&mut self, tokens: u32) -> Result<(u32, Duration)> {
        let answer = self.ask(json!({"op": "prefill", "tokens": tokens})).await?;
        let token = answer["token"].as_u64().context("no token")?;
        Ok((u32::try_from(token)?, seconds(&answer["seconds"])?))
    }

    async fn open(&mut self, sequences: usize, tokens: u32) -> Result<()> {
        self.ask(json!({"op": "open", "sequences": sequences, "tokens": tokens})).await.map(drop)
    }

    async fn decode(&mut self, sequences: usize, span: Duration, most_steps: u32) -> Result<Decoded> {
        let cpu = cpu_time(self.process()?)?;
        let question =
            json!({"op": "decode", "sequences": sequences, "seconds": span.as_secs_f64(), "most_steps": most_steps});
        let answer = self.ask(question).await?;
        let steps = answer["steps"].as_array().context("no steps")?;
        let steps: Vec<Duration> = steps.iter().map(seconds).collect::<Result<_>>()?;
        let elapsed = steps.iter().sum();
        let gaps = steps.iter().flat_map(|&step| std::iter::repeat_n(step, sequences)).collect();
        let cpu = cpu_time(self.process()?)?.saturating_sub(cpu);
        Ok(Decoded { tokens: steps.len() * sequences, elapsed, gaps, cpu })
    }

    fn process(&self) -> Result<u32> {
        self.process.id().context("llama.cpp has ended")
    }
}
