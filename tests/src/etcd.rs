//! etcd members as processes on loopback, which tests kill, wipe and bring back.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far longer than anything takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of etcd members; dropping it kills them.
pub struct Etcd {
    folder: TempDir,
    members: Vec<Member>,
    /// Further flags of every member.
    flags: Vec<String>,
    scheme: &'static str,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Reserves ports for `members` members; none runs yet. `flags` go to each.
    #[must_use]
    pub fn new(members: usize, scheme: &'static str, flags: &[String]) -> Self {
        let member = |_| Member { client_port: free_port(), peer_port: free_port(), process: None };
        let members = (0..members).map(member).collect();
        Self { folder: TempDir::new().unwrap(), members, flags: flags.to_vec(), scheme }
    }

    /// Starts `members` members and waits until they answer.
    #[must_use]
    pub fn start(members: usize) -> Self {
        let mut etcd = Self::new(members, "http", &[]);
        (0..members).for_each(|index| etcd.start_member(index));
        etcd.wait_until_healthy(&[]);
        etcd
    }

    /// The URLs of all members, separated by commas.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let url = |member: &Member| format!("{}://127.0.0.1:{}", self.scheme, member.client_port);
        self.members.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// Starts a member, with the data that it had if it ran before.
    pub fn start_member(&mut self, index: usize) {
        let peer = |(index, member): (usize, &Member)| format!("m{index}=http://127.0.0.1:{}", member.peer_port);
        let peers = self.members.iter().enumerate().map(peer).collect::<Vec<_>>().join(",");
        let client = format!("{}://127.0.0.1:{}", self.scheme, self.members[index].client_port);
        let own_peer = format!("http://127.0.0.1:{}", self.members[index].peer_port);
        let process = Command::new("etcd")
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(self.data(index))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &own_peer, "--initial-advertise-peer-urls", &own_peer])
            .args(["--initial-cluster", &peers, "--initial-cluster-state", "new", "--log-level", "error"])
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|cause| {
                panic!("etcd cannot be started ({cause}); Debian: apt-get install etcd-server etcd-client")
            });
        self.members[index].process = Some(process);
    }

    /// Kills a member with signal 9.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Removes a dead member's data: it will have forgotten all.
    pub fn wipe(&self, index: usize) {
        std::fs::remove_dir_all(self.data(index)).unwrap();
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("m{index}"))
    }

    /// Runs etcdctl with `arguments` and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let (printed, problem) = self.try_ctl(arguments);
        assert!(problem.is_empty(), "etcdctl {arguments:?}: {problem}");
        printed
    }

    fn try_ctl(&self, arguments: &[&str]) -> (String, String) {
        let endpoints = self.endpoints();
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoints, "--command-timeout", "3s"])
            .args(arguments)
            .output()
            .unwrap_or_else(|cause| {
                panic!("etcdctl cannot be started ({cause}); Debian: apt-get install etcd-client")
            });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let problem = if output.status.success() { String::new() } else { text(output.stderr) + "failed" };
        (text(output.stdout), problem)
    }

    /// Writes an entry that may be longer than an argument can be.
    ///
    /// # Panics
    /// When it fails.
    pub fn put(&self, key: &str, value: &str) {
        let mut writing = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints(), "put", key])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        writing.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
        assert!(writing.wait().unwrap().success(), "{key} cannot be written");
    }

    /// Waits until a write can be committed; `arguments` go to etcdctl before the command.
    pub fn wait_until_healthy(&self, arguments: &[&str]) {
        let began = Instant::now();
        let probe: Vec<&str> = arguments.iter().copied().chain(["put", "probe", "1"]).collect();
        loop {
            let (_, problem) = self.try_ctl(&probe);
            if problem.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "etcd does not come up: {problem}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
    }
}
