//! One base and one expert worker with a coordinator for each way to decode, so that the ways can take turns.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cosec_launcher::{Cluster, ClusterConfig, EVERY_RULE, Process};
use cosec_proto::transport;
use cosec_proto::wire::coordinator::coordinator_client::CoordinatorClient;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::metrics::Scrape;
use crate::worker::{PATIENCE, binaries};

/// Name that clients call every pair by.
pub const MODEL: &str = "pair";

/// Base and expert on disk.
#[derive(Clone, Debug)]
pub struct Pair {
    /// As the command line names it.
    pub name: String,
    /// Hugging Face directory of the base.
    pub base: PathBuf,
    /// Hugging Face directory of the expert.
    pub expert: PathBuf,
}

impl Pair {
    /// The pair that the repository in the folder `root` has.
    #[must_use]
    pub fn demo(root: &Path) -> Self {
        let folder = root.join("deploy/demo-pair");
        Self { name: "demo pair".to_owned(), base: folder.join("base"), expert: folder.join("expert") }
    }
}

/// A coordinator's doors.
#[derive(Clone, Debug)]
pub struct Coordinator {
    http: String,
    /// `http://…/metrics`.
    metrics: String,
    /// Its gRPC door.
    pub client: CoordinatorClient<Channel>,
}

impl Coordinator {
    fn at(http: String, grpc: &str, metrics: String) -> Result<Self> {
        Ok(Self { http, metrics, client: CoordinatorClient::new(transport::channel(grpc)?) })
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::of(&self.metrics).await
    }

    async fn wait_until_ready(&self, deadline: Instant) -> Result<()> {
        let url = format!("{}/health/ready", self.http);
        while !reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
            if Instant::now() > deadline {
                bail!("a coordinator was not ready in time");
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Waits until every session has given back what it held.
    ///
    /// # Errors
    /// When that takes unreasonably long.
    pub async fn settled(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.scrape().await?.sum("cosec_active_sessions", &[]) > 0.0 {
            if Instant::now() > deadline {
                bail!("sessions of clients that left are still active after a minute");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// How much two models agree is planted by the expert's sampling.
const EXPERT_SAMPLING_IS_FREE: &str =
    "[policy.bounds]\nexpert_temperature = [0.0, 1e300]\nexpert_top_p = [1e-300, 1.0]\n";

/// The processes; dropping it kills them.
pub struct Lanes {
    /// In the order of the settings asked for.
    pub coordinators: Vec<Coordinator>,
    cluster: Cluster,
    config: ClusterConfig,
    /// Of the coordinators but the first.
    others: Vec<(String, Process)>,
}

impl Lanes {
    /// Starts the pair's workers with `worker_flags`, and one coordinator for each of `speculations`.
    ///
    /// # Errors
    /// What a process died of.
    pub async fn start(pair: &Pair, speculations: &[&str], worker_flags: &[OsString], logs: &Path) -> Result<Self> {
        let (first, others) = speculations.split_first().context("no coordinator was asked for")?;
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let policy = logs.join("policy.toml");
        std::fs::write(&policy, EXPERT_SAMPLING_IS_FREE)?;
        let mut coordinator_flags: Vec<OsString> = EVERY_RULE.map(Into::into).to_vec();
        coordinator_flags.extend(["--config".into(), policy.into()]);
        let config = ClusterConfig {
            binaries: binaries()?,
            logs: logs.to_owned(),
            model: MODEL.to_owned(),
            base: pair.base.clone(),
            expert: pair.expert.clone(),
            http: any_port,
            grpc: any_port,
            worker_flags: worker_flags.to_vec(),
            coordinator_flags: [coordinator_flags, vec!["--speculation".into(), first.into()]].concat(),
            patience: PATIENCE,
        };
        let cluster = Cluster::start(&config, |_| {}).await?;
        let coordinators =
            vec![Coordinator::at(cluster.http.clone(), &cluster.grpc, cluster.coordinator_metrics.clone())?];
        let mut lanes = Self { coordinators, cluster, config, others: Vec::new() };
        for speculation in others {
            let (coordinator, process) = lanes.coordinator(speculation).await?;
            lanes.coordinators.push(coordinator);
            lanes.others.push(((*speculation).to_owned(), process));
        }
        Ok(lanes)
    }

    /// Replaces a coordinator, not the first, by a new one that has measured nothing.
    ///
    /// # Errors
    /// What the process died of.
    pub async fn restart(&mut self, lane: usize) -> Result<()> {
        let speculation = self.others.get(lane - 1).context("there is no such coordinator")?.0.clone();
        let (coordinator, process) = self.coordinator(&speculation).await?;
        (self.coordinators[lane], self.others[lane - 1]) = (coordinator, (speculation, process));
        Ok(())
    }

    async fn coordinator(&self, speculation: &str) -> Result<(Coordinator, Process)> {
        let config = &self.config;
        let logs = config.logs.join(speculation.replace(':', "-"));
        std::fs::create_dir_all(&logs)?;
        let (base, expert) = (&self.cluster.base_address, &self.cluster.expert_address);
        let mut process = Process::start(
            "coordinator",
            Command::new(config.binaries.join("cosec-coordinator"))
                .args(["--model", &config.model, "--base", base, "--expert", expert])
                .args(["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--speculation", speculation])
                .args(["--metrics-listen", "127.0.0.1:0"])
                .args(EVERY_RULE)
                .args(["--config".into(), config.logs.join("policy.toml")])
                .arg("--tokenizer")
                .arg(&config.base),
            &logs,
        )?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let http = format!("http://{}", process.announced("http on ", deadline).await?);
        let grpc = process.announced("grpc on ", deadline).await?;
        let metrics = format!("http://{}/metrics", process.announced("metrics on ", deadline).await?);
        let coordinator = Coordinator::at(http, &grpc, metrics)?;
        coordinator.wait_until_ready(deadline).await?;
        Ok((coordinator, process))
    }
}
