//! Faults of real workers in every phase of a session: each must take effect, change no byte that clients get, and leave
//! no session behind.
//!
//! Two bases and two experts stand behind proxies, whose gate holds an operation of the phase in question while the fault
//! is made: so it strikes in that phase for certain. Everything runs in a network of its own, where packets can be dropped.
//! `cargo test` takes a selection; `tests/faults` runs the whole matrix.

use std::fmt;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use cosec_proto::WorkerRole;
use cosec_tests::fleet::{
    Coordinator, PATIENCE, Worker, coordinator, metric, metric_where, model, signal, until, worker_of,
};
use cosec_tests::network::{Network, say};
use cosec_tests::proxy::{Answers, Gate, Kind, Proxy};
use cosec_tests::stream::{choices, read};
use futures::FutureExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

/// After which a worker counts as hung that has not been measured enough.
const STEP_DEADLINE: Duration = Duration::from_secs(4);

/// After which a worker forgets a session that it hears nothing of.
const LEASE_SECONDS: &str = "6";

/// Operations of the phase that pass before one is held: the fault strikes in mid-decode.
const SKIPPED: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9.
    Killed,
    /// SIGSTOP.
    Hangs,
    /// Packets are dropped, and for good.
    CutOff,
    /// Packets are dropped for a while.
    CutOffForAWhile,
    /// Every answer comes after its deadline.
    Slow,
    /// Answers that cannot be true.
    Garbage,
    /// kill -9; then another model serves at the address.
    OtherModel,
}

const FAULTS: [Fault; 7] = [
    Fault::Killed,
    Fault::Hangs,
    Fault::CutOff,
    Fault::CutOffForAWhile,
    Fault::Slow,
    Fault::Garbage,
    Fault::OtherModel,
];

/// When it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// While a worker of the role is fed a prompt.
    Prefill,
    /// While an expert draws.
    Draft,
    /// While a base judges.
    Verify,
    /// Before a session comes.
    Idle,
}

const PHASES: [Phase; 4] = [Phase::Prefill, Phase::Draft, Phase::Verify, Phase::Idle];

#[derive(Clone, Copy)]
struct Case {
    fault: Fault,
    role: WorkerRole,
    phase: Phase,
    /// As the coordinator's flag has it.
    speculation: &'static str,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, role, phase, speculation } = self;
        let [fault, phase] = [format!("{fault:?}"), format!("{phase:?}")];
        write!(f, "{fault:16} {:7} {phase:8} {speculation:9}", name(*role))
    }
}

impl Case {
    /// Whether the fault must drive sessions elsewhere.
    fn must_move(&self) -> bool {
        match self.fault {
            // It was missed before anybody came.
            Fault::Killed | Fault::OtherModel => self.phase != Phase::Idle,
            // It may be over before anybody gives up.
            Fault::CutOffForAWhile => false,
            Fault::Hangs | Fault::CutOff | Fault::Slow | Fault::Garbage => true,
        }
    }

    /// The operation that is held.
    fn held(&self) -> (WorkerRole, Kind, u32) {
        match self.phase {
            Phase::Prefill | Phase::Idle => (self.role, Kind::Prefill, 0),
            Phase::Draft => (WorkerRole::Expert, Kind::Draft, SKIPPED),
            Phase::Verify => (WorkerRole::Base, Kind::Verify, SKIPPED),
        }
    }
}

fn name(role: WorkerRole) -> &'static str {
    if role == WorkerRole::Base { "base" } else { "expert" }
}

/// A worker, and the proxy in front of it.
struct Post {
    name: &'static str,
    role: WorkerRole,
    address: SocketAddr,
    /// `None` while nobody answers at the address.
    proxy: Option<Proxy>,
    worker: Worker,
}

impl Post {
    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("somebody serves")
    }

    async fn sessions(&self) -> f64 {
        metric(&self.worker.metrics, "cosec_worker_sessions").await
    }

    async fn is_idle(&self) -> bool {
        let blocks = metric(&self.worker.metrics, "cosec_worker_blocks").await;
        self.sessions().await == 0.0 && metric(&self.worker.metrics, "cosec_worker_blocks_free").await == blocks
    }
}

/// All processes.
struct Stage {
    network: Network,
    gate: Gate,
    posts: Vec<Post>,
    /// By what `speculation` is set to.
    coordinators: [(&'static str, Coordinator); 2],
    undisturbed: Value,
    stop: String,
    logs: TempDir,
}

async fn hosting(name: &'static str, role: WorkerRole, directory: &str, logs: &TempDir) -> Worker {
    let flags = ["--lease-seconds", LEASE_SECONDS];
    worker_of(name, self::name(role), &model(directory), &flags, logs.path()).await
}

impl Stage {
    async fn build(network: Network) -> Self {
        let logs = TempDir::new().unwrap();
        let gate = Gate::default();
        let mut posts = Vec::new();
        for (name, role) in [
            ("base-1", WorkerRole::Base),
            ("base-2", WorkerRole::Base),
            ("expert-1", WorkerRole::Expert),
            ("expert-2", WorkerRole::Expert),
        ] {
            let worker = hosting(name, role, self::name(role), &logs).await;
            let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], 0)), role, &worker.address, &gate);
            posts.push(Post { name, role, address: proxy.address(), proxy: Some(proxy), worker });
        }
        let addresses = |role| {
            let of_role = posts.iter().filter(|post| post.role == role).map(|post| post.address.to_string());
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
        let mut stage =
            Self { network, gate, posts, coordinators, undisturbed: Value::Null, stop: String::new(), logs };
        for (_, coordinator) in &stage.coordinators {
            all_up(coordinator).await;
        }
        stage.rehearse().await;
        stage
    }

    /// What clients get while nothing is wrong, whatever `speculation` says.
    async fn rehearse(&mut self) {
        let [(_, adaptive), (_, off)] = &self.coordinators;
        let text = read_whole(&adaptive.http, &body(json!({"seed": 12}))).await;
        let text = text[0]["text"].as_str().unwrap().to_owned();
        // What ends the second half of a text comes in the midst of it.
        let at = (text.len() / 2..).find(|&at| text.is_char_boundary(at)).unwrap();
        self.stop = text[at..].chars().take(4).collect();
        self.undisturbed = play(&adaptive.http, &self.stop).await;
        assert_eq!(play(&off.http, &self.stop).await, self.undisturbed);
        let stopped = self.undisturbed[1][0]["text"].as_str().unwrap();
        assert!(text.starts_with(stopped) && stopped.len() < text.len() && stopped.len() > 20, "{stopped:?}");
        let metrics = format!("{}/metrics", off.http);
        let ended = async |outcome| metric_where(&metrics, "cosec_choices_total", outcome).await;
        assert!(ended("\"stop\"").await >= 1.0 && ended("\"closed\"").await == 0.0, "a stop string was found");
        self.settled(&self.posts.iter().collect::<Vec<_>>()).await;
    }

    fn coordinator(&self, case: Case) -> &Coordinator {
        &self.coordinators.iter().find(|(speculation, _)| *speculation == case.speculation).unwrap().1
    }

    /// Waits until no session and no block is held there.
    async fn settled(&self, posts: &[&Post]) {
        for post in posts {
            until(&format!("{} is as before", post.name), async || post.is_idle().await).await;
        }
    }

    /// Whoever has most of the sessions in a role.
    async fn busiest(&self, role: WorkerRole) -> usize {
        let mut found = (0.0, None);
        for (at, post) in self.posts.iter().enumerate().filter(|(_, post)| post.role == role) {
            let sessions = post.sessions().await;
            if sessions > found.0 {
                found = (sessions, Some(at));
            }
        }
        found.1.expect("a session sits somewhere")
    }

    /// Plays a case; returns what there is to say of it.
    async fn play(&mut self, case: Case) -> String {
        let (http, metrics) = {
            let http = &self.coordinator(case).http;
            (http.clone(), format!("{http}/metrics"))
        };
        let relocations = async || {
            let role = format!("role=\"{}\"", name(case.role));
            metric_where(&metrics, "cosec_relocations_total", &role).await
        };
        let (stop, undisturbed) = (self.stop.clone(), self.undisturbed.clone());
        let clients = || {
            let (http, stop) = (http.clone(), stop.clone());
            tokio::spawn(async move { play(&http, &stop).await })
        };
        let before = relocations().await;

        let (acting, kind, skipped) = case.held();
        self.gate.close(acting, kind, skipped);
        let running = clients();
        let held = within("an operation is held", self.gate.held()).await;
        let at_gate = self.posts.iter().position(|post| post.address == held).unwrap();
        let running = if case.phase == Phase::Idle {
            self.gate.open();
            assert_eq!(within("the clients are served", running).await.unwrap(), undisturbed);
            self.settled(&self.posts.iter().collect::<Vec<_>>()).await;
            None
        } else {
            Some(running)
        };
        let victim = if acting == case.role { at_gate } else { self.busiest(case.role).await };
        self.strike(case.fault, victim, &metrics).await;
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
            // These clients went elsewhere, perhaps; others that begin otherwise come there.
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
        let living: Vec<&Post> =
            self.posts.iter().enumerate().filter(|&(at, _)| lives(at)).map(|(_, post)| post).collect();
        self.settled(&living).await;

        if case.fault == Fault::OtherModel {
            // It serves, but not those who began elsewhere, nor new ones while another has the model that was there.
            assert_eq!(play(&http, &stop).await, undisturbed, "{case}: served by another model");
            self.settled(&self.posts.iter().collect::<Vec<_>>()).await;
        }
        self.mend(case.fault, victim).await;
        for (answer, body) in later {
            assert_eq!(read_whole(&http, &body).await, answer, "{case}");
        }
        self.settled(&self.posts.iter().collect::<Vec<_>>()).await;
        format!("{} in {kind:?} at {}: {seen}", self.posts[victim].name, self.posts[at_gate].name)
    }

    /// Makes the fault and waits until it is one.
    async fn strike(&mut self, fault: Fault, victim: usize, metrics: &str) {
        let network = &self.network;
        let post = &mut self.posts[victim];
        match fault {
            Fault::Killed | Fault::OtherModel => {
                kill(post).await;
                until("it is missed", async || metric(metrics, "cosec_worker_up").await == 3.0).await;
            }
            Fault::Hangs => {
                signal(&post.worker.process, "STOP");
                post.proxy().freeze().await;
            }
            Fault::CutOff | Fault::CutOffForAWhile => network.cut(post.address.port()),
            Fault::Slow => post.proxy().set_answers(Answers::Late(STEP_DEADLINE + Duration::from_secs(2))),
            Fault::Garbage => post.proxy().set_answers(Answers::False),
        }
    }

    /// Another model comes to the address.
    async fn host_another_model(&mut self, victim: usize, metrics: &str) {
        let post = &mut self.posts[victim];
        let other = if post.role == WorkerRole::Base { "expert" } else { "base" };
        post.worker = hosting(post.name, post.role, other, &self.logs).await;
        post.proxy = Some(Proxy::start(post.address, post.role, &post.worker.address, &self.gate));
        until("the other model is up", async || metric(metrics, "cosec_worker_up").await == 4.0).await;
    }

    /// What shows that the fault was felt.
    fn effect(&self, case: Case, victim: usize, moved: f64, lost: u64) -> String {
        assert!(moved > 0.0 || !case.must_move(), "{case}: nobody felt it");
        let tampered = self.posts[victim].proxy.as_ref().map_or(0, Proxy::tampered);
        match case.fault {
            Fault::CutOff | Fault::CutOffForAWhile => assert!(lost > 0, "{case}: no packet was lost"),
            Fault::Slow | Fault::Garbage => assert!(tampered > 0, "{case}: no answer was touched"),
            Fault::Killed | Fault::OtherModel | Fault::Hangs => {}
        }
        format!("{moved} moved, {lost} packets lost, {tampered} answers touched")
    }

    /// Makes everything as it was.
    async fn mend(&mut self, fault: Fault, victim: usize) {
        self.network.heal();
        let post = &mut self.posts[victim];
        match fault {
            Fault::Killed | Fault::OtherModel => {
                if post.proxy.is_some() {
                    kill(post).await;
                }
                post.worker = hosting(post.name, post.role, name(post.role), &self.logs).await;
                post.proxy = Some(Proxy::start(post.address, post.role, &post.worker.address, &self.gate));
            }
            Fault::Hangs => {
                signal(&post.worker.process, "CONT");
                post.proxy().thaw();
            }
            Fault::Slow | Fault::Garbage => post.proxy().set_answers(Answers::True),
            Fault::CutOff | Fault::CutOffForAWhile => {}
        }
        self.settled(&self.posts.iter().collect::<Vec<_>>()).await;
        for (_, coordinator) in &self.coordinators {
            all_up(coordinator).await;
        }
    }
}

async fn kill(post: &mut Post) {
    signal(&post.worker.process, "KILL");
    post.worker.process.wait().await.unwrap();
    post.proxy = None;
}

/// A coordinator that lost a worker a moment ago may not know it yet: all must serve for longer than it looks away.
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

fn body(more: Value) -> Value {
    let mut body = json!({
        "model": "demo", "prompt": "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
        "max_tokens": 60, "seed": 11,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn read_whole(http: &str, body: &Value) -> Value {
    let answer = reqwest::Client::new().post(format!("{http}/v1/completions")).json(body).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    assert!(answer["choices"].is_array(), "{answer}");
    answer["choices"].take()
}

/// What clients of all kinds get at the same time: several choices streamed with their scores, a stop string, a plain text.
async fn play(http: &str, stop: &str) -> Value {
    let streamed = body(json!({"stream": true, "n": 2, "logprobs": 2, "temperature": 0.8}));
    let stopped = body(json!({"seed": 12, "stop": [stop], "cosec": {"report": true}}));
    let plain = body(json!({"seed": 13, "temperature": 1.2, "max_tokens": 80}));
    let streamed = async { choices(&read(http, &streamed, None, usize::MAX).await.unwrap()) };
    let (streamed, stopped, plain) = tokio::join!(streamed, read_whole(http, &stopped), read_whole(http, &plain));
    json!([streamed, stopped, plain])
}

/// Every fault, role and phase at least once.
fn selection() -> Vec<Case> {
    use Fault::{CutOff, CutOffForAWhile, Garbage, Hangs, Killed, OtherModel, Slow};
    use Phase::{Draft, Idle, Prefill, Verify};
    let case = |(fault, role, phase, speculation)| Case { fault, role, phase, speculation };
    [
        (Killed, WorkerRole::Base, Verify, "adaptive"),
        (Killed, WorkerRole::Expert, Draft, "off"),
        (Hangs, WorkerRole::Expert, Prefill, "adaptive"),
        (CutOff, WorkerRole::Base, Draft, "adaptive"),
        (CutOffForAWhile, WorkerRole::Expert, Verify, "off"),
        (Slow, WorkerRole::Base, Idle, "adaptive"),
        (Garbage, WorkerRole::Expert, Draft, "adaptive"),
        (OtherModel, WorkerRole::Base, Prefill, "off"),
        (OtherModel, WorkerRole::Expert, Idle, "adaptive"),
    ]
    .map(case)
    .into()
}

fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for speculation in ["adaptive", "off"] {
        for fault in FAULTS {
            for role in [WorkerRole::Base, WorkerRole::Expert] {
                cases.extend(PHASES.map(|phase| Case { fault, role, phase, speculation }));
            }
        }
    }
    cases
}

/// Plays all cases, each to its end whatever became of those before it, and prints a table.
async fn play_all(test: &str, cases: Vec<Case>) {
    let Some(network) = Network::own(test) else { return };
    let mut stage = Stage::build(network).await;
    let mut failed = Vec::new();
    for case in cases {
        let began = Instant::now();
        match AssertUnwindSafe(stage.play(case)).catch_unwind().await {
            Ok(seen) => say(&format!("{case} ok     {:5.1} s  {seen}", began.elapsed().as_secs_f64())),
            Err(_) => {
                say(&format!("{case} FAILED {:5.1} s", began.elapsed().as_secs_f64()));
                failed.push(case.to_string());
                // Nobody knows what it left.
                let Stage { network, .. } = stage;
                network.heal();
                stage = Stage::build(network).await;
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test]
async fn faults_change_no_byte() {
    play_all("faults_change_no_byte", selection()).await;
}

#[tokio::test]
#[ignore = "every fault, role and phase takes a quarter of an hour; tests/faults runs it"]
async fn the_whole_matrix_of_faults_changes_no_byte() {
    play_all("the_whole_matrix_of_faults_changes_no_byte", matrix()).await;
}
