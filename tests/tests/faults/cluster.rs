//! The processes of a case: workers behind proxies, two coordinators, and a network of their own.

use std::net::SocketAddr;
use std::time::Duration;

use cosec_proto::WorkerRole;
use cosec_tests::fleet::{
    Coordinator, PATIENCE, Worker, coordinator, metric, metric_where, model, signal, until, worker_of,
};
use cosec_tests::network::Network;
use cosec_tests::proxy::{Answers, Gate, Proxy};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::case::{Case, Fault, Phase, name};
use crate::clients::{answer_all, body, read_whole};

/// Deadline for workers that have not been measured enough.
const STEP_DEADLINE: Duration = Duration::from_secs(4);

/// Time after which a worker drops an idle session.
const LEASE_SECONDS: &str = "6";

/// A worker, and the proxy in front of it.
struct ProxiedWorker {
    name: &'static str,
    role: WorkerRole,
    address: SocketAddr,
    /// `None` while nobody answers at the address.
    proxy: Option<Proxy>,
    backend: Worker,
}

impl ProxiedWorker {
    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("somebody serves")
    }

    async fn sessions(&self) -> f64 {
        metric(&self.backend.metrics, "cosec_worker_sessions").await
    }

    async fn is_idle(&self) -> bool {
        let blocks = metric(&self.backend.metrics, "cosec_worker_blocks").await;
        self.sessions().await == 0.0 && metric(&self.backend.metrics, "cosec_worker_blocks_free").await == blocks
    }
}

/// All processes.
pub(crate) struct FaultCluster {
    pub(crate) network: Network,
    gate: Gate,
    workers: Vec<ProxiedWorker>,
    /// By their setting of `speculation`.
    coordinators: [(&'static str, Coordinator); 2],
    undisturbed: Value,
    stop: String,
    logs: TempDir,
}

async fn start_worker(name: &'static str, role: WorkerRole, directory: &str, logs: &TempDir) -> Worker {
    let flags = ["--lease-seconds", LEASE_SECONDS];
    worker_of(name, self::name(role), &model(directory), &flags, logs.path()).await
}

impl FaultCluster {
    pub(crate) async fn start(network: Network) -> Self {
        let logs = TempDir::new().unwrap();
        let gate = Gate::default();
        let mut workers = Vec::new();
        for (name, role) in [
            ("base-1", WorkerRole::Base),
            ("base-2", WorkerRole::Base),
            ("expert-1", WorkerRole::Expert),
            ("expert-2", WorkerRole::Expert),
        ] {
            let backend = start_worker(name, role, self::name(role), &logs).await;
            let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], 0)), role, &backend.address, &gate);
            workers.push(ProxiedWorker { name, role, address: proxy.address(), proxy: Some(proxy), backend });
        }
        let addresses = |role| {
            let of_role =
                workers.iter().filter(|worker| worker.role == role).map(|worker| worker.address.to_string());
            of_role.collect::<Vec<_>>().join(",")
        };
        let config = logs.path().join("coordinator.toml");
        let deadline = STEP_DEADLINE.as_millis();
        std::fs::write(&config, format!("[workers]\nstep_deadline_ms = {deadline}\ndescribe_interval_ms = 1000\n"))
            .unwrap();
        let (bases, experts) = (addresses(WorkerRole::Base), addresses(WorkerRole::Expert));
        let start = async |name, speculation| {
            let flags = ["--base", &bases, "--expert", &experts, "--config", config.to_str().unwrap()];
            let flags = [flags.as_slice(), &["--speculation", speculation]].concat();
            (speculation, coordinator(name, &flags, logs.path()).await)
        };
        let coordinators = [start("adaptive", "adaptive").await, start("off", "off").await];
        let mut cluster =
            Self { network, gate, workers, coordinators, undisturbed: Value::Null, stop: String::new(), logs };
        for (_, coordinator) in &cluster.coordinators {
            all_up(coordinator).await;
        }
        cluster.record_undisturbed().await;
        cluster
    }

    /// What clients get while nothing is wrong, whatever `speculation` says.
    async fn record_undisturbed(&mut self) {
        let [(_, adaptive), (_, off)] = &self.coordinators;
        let text = read_whole(&adaptive.http, &body(json!({"seed": 12}))).await;
        let text = text[0]["text"].as_str().unwrap().to_owned();
        // A stop string from the middle of the text.
        let at = (text.len() / 2..).find(|&at| text.is_char_boundary(at)).unwrap();
        self.stop = text[at..].chars().take(4).collect();
        self.undisturbed = answer_all(&adaptive.http, &self.stop).await;
        assert_eq!(answer_all(&off.http, &self.stop).await, self.undisturbed);
        let stopped = self.undisturbed[1][0]["text"].as_str().unwrap();
        assert!(text.starts_with(stopped) && stopped.len() < text.len() && stopped.len() > 20, "{stopped:?}");
        let ended = async |outcome| metric_where(&off.metrics, "cosec_choices_total", outcome).await;
        assert!(ended("\"stop\"").await >= 1.0 && ended("\"closed\"").await == 0.0, "a stop string was found");
        self.settled(&self.workers.iter().collect::<Vec<_>>()).await;
    }

    fn coordinator(&self, case: Case) -> &Coordinator {
        &self.coordinators.iter().find(|(speculation, _)| *speculation == case.speculation).unwrap().1
    }

    /// Waits until no session and no block is held there.
    async fn settled(&self, workers: &[&ProxiedWorker]) {
        for worker in workers {
            until(&format!("{} is as before", worker.name), async || worker.is_idle().await).await;
        }
    }

    /// The worker with most of the sessions in a role.
    async fn busiest(&self, role: WorkerRole) -> usize {
        let mut found = (0.0, None);
        for (at, worker) in self.workers.iter().enumerate().filter(|(_, worker)| worker.role == role) {
            let sessions = worker.sessions().await;
            if sessions > found.0 {
                found = (sessions, Some(at));
            }
        }
        found.1.expect("a session sits somewhere")
    }

    /// Runs a case; returns its line for the table.
    pub(crate) async fn run_case(&mut self, case: Case) -> String {
        let (http, metrics) = {
            let coordinator = self.coordinator(case);
            (coordinator.http.clone(), coordinator.metrics.clone())
        };
        let relocations = async || {
            let role = format!("role=\"{}\"", name(case.role));
            metric_where(&metrics, "cosec_relocations_total", &role).await
        };
        let (stop, undisturbed) = (self.stop.clone(), self.undisturbed.clone());
        let clients = || {
            let (http, stop) = (http.clone(), stop.clone());
            tokio::spawn(async move { answer_all(&http, &stop).await })
        };
        let before = relocations().await;

        let (acting, kind, skipped) = case.held();
        self.gate.close(acting, kind, skipped);
        let running = clients();
        let held = within("an operation is held", self.gate.held()).await;
        let at_gate = self.workers.iter().position(|worker| worker.address == held).unwrap();
        let running = if case.phase == Phase::Idle {
            self.gate.open();
            assert_eq!(within("the clients are served", running).await.unwrap(), undisturbed);
            self.settled(&self.workers.iter().collect::<Vec<_>>()).await;
            None
        } else {
            Some(running)
        };
        let victim = if acting == case.role { at_gate } else { self.busiest(case.role).await };
        self.inject(case.fault, victim, &metrics).await;
        let running = running.unwrap_or_else(clients);
        self.gate.open();
        let mut lost = 0;
        if case.fault == Fault::CutOffForAWhile {
            until("packets are lost", async || {
                lost = self.network.dropped();
                lost > 0
            })
            .await;
            self.network.heal();
        }
        if case.fault == Fault::OtherModel {
            self.host_another_model(victim, &metrics).await;
        }
        assert_eq!(within("the clients are served", running).await.unwrap(), undisturbed, "{case}");
        let mut moved = relocations().await - before;
        let mut later = Vec::new();
        if case.must_move() && case.phase == Phase::Idle {
            // These clients may have gone elsewhere; prompts that begin differently reach the faulty worker.
            until("somebody feels it", async || {
                moved = relocations().await - before;
                if moved == 0.0 {
                    let body = body(json!({"prompt": format!("# {}\nimport ", later.len()), "max_tokens": 8}));
                    later.push((read_whole(&http, &body).await, body));
                }
                moved > 0.0
            })
            .await;
        }
        lost = lost.max(self.network.dropped());
        let seen = self.effect(case, victim, moved, lost);
        let lives = |at: usize| at != victim || !matches!(case.fault, Fault::Killed | Fault::Hangs);
        let living: Vec<&ProxiedWorker> =
            self.workers.iter().enumerate().filter(|&(at, _)| lives(at)).map(|(_, worker)| worker).collect();
        self.settled(&living).await;

        if case.fault == Fault::OtherModel {
            // It is up, but serves neither sessions that began elsewhere, nor new ones while another has the old model.
            assert_eq!(answer_all(&http, &stop).await, undisturbed, "{case}: served by another model");
            self.settled(&self.workers.iter().collect::<Vec<_>>()).await;
        }
        self.repair(case.fault, victim).await;
        for (answer, body) in later {
            assert_eq!(read_whole(&http, &body).await, answer, "{case}");
        }
        self.settled(&self.workers.iter().collect::<Vec<_>>()).await;
        format!("{} in {kind:?} at {}: {seen}", self.workers[victim].name, self.workers[at_gate].name)
    }

    /// Injects the fault and waits until it takes effect.
    async fn inject(&mut self, fault: Fault, victim: usize, metrics: &str) {
        let network = &self.network;
        let worker = &mut self.workers[victim];
        match fault {
            Fault::Killed | Fault::OtherModel => {
                kill(worker).await;
                until("it is missed", async || metric(metrics, "cosec_worker_up").await == 3.0).await;
            }
            Fault::Hangs => {
                signal(&worker.backend.process, "STOP");
                worker.proxy().freeze().await;
            }
            Fault::CutOff | Fault::CutOffForAWhile => network.cut(worker.address.port()),
            Fault::Slow => worker.proxy().set_answers(Answers::Late(STEP_DEADLINE + Duration::from_secs(2))),
            Fault::Garbage => worker.proxy().set_answers(Answers::False),
        }
    }

    /// Another model comes to the address.
    async fn host_another_model(&mut self, victim: usize, metrics: &str) {
        let worker = &mut self.workers[victim];
        let other = if worker.role == WorkerRole::Base { "expert" } else { "base" };
        worker.backend = start_worker(worker.name, worker.role, other, &self.logs).await;
        worker.proxy = Some(Proxy::start(worker.address, worker.role, &worker.backend.address, &self.gate));
        until("the other model is up", async || metric(metrics, "cosec_worker_up").await == 4.0).await;
    }

    /// Evidence that the fault took effect.
    fn effect(&self, case: Case, victim: usize, moved: f64, lost: u64) -> String {
        assert!(moved > 0.0 || !case.must_move(), "{case}: nobody felt it");
        let tampered = self.workers[victim].proxy.as_ref().map_or(0, Proxy::tampered);
        match case.fault {
            Fault::CutOff | Fault::CutOffForAWhile => assert!(lost > 0, "{case}: no packet was lost"),
            Fault::Slow | Fault::Garbage => assert!(tampered > 0, "{case}: no answer was touched"),
            Fault::Killed | Fault::OtherModel | Fault::Hangs => {}
        }
        format!("{moved} moved, {lost} packets lost, {tampered} answers touched")
    }

    /// Undoes the fault.
    async fn repair(&mut self, fault: Fault, victim: usize) {
        self.network.heal();
        let worker = &mut self.workers[victim];
        match fault {
            Fault::Killed | Fault::OtherModel => {
                if worker.proxy.is_some() {
                    kill(worker).await;
                }
                worker.backend = start_worker(worker.name, worker.role, name(worker.role), &self.logs).await;
                worker.proxy = Some(Proxy::start(worker.address, worker.role, &worker.backend.address, &self.gate));
            }
            Fault::Hangs => {
                signal(&worker.backend.process, "CONT");
                worker.proxy().thaw();
            }
            Fault::Slow | Fault::Garbage => worker.proxy().set_answers(Answers::True),
            Fault::CutOff | Fault::CutOffForAWhile => {}
        }
        self.settled(&self.workers.iter().collect::<Vec<_>>()).await;
        for (_, coordinator) in &self.coordinators {
            all_up(coordinator).await;
        }
    }
}

async fn kill(worker: &mut ProxiedWorker) {
    signal(&worker.backend.process, "KILL");
    worker.backend.process.wait().await.unwrap();
    worker.proxy = None;
}

/// A coordinator may not know yet that it lost a worker: all must be up for longer than its check interval.
async fn all_up(coordinator: &Coordinator) {
    let mut since = Instant::now();
    until("all workers are up", async || {
        if coordinator.metric("cosec_worker_up").await < 4.0 {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(200)
    })
    .await;
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
