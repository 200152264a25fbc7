//! A network namespace for one test, in which it can drop packets.

use std::io::Write;
use std::process::{Command, Output};

/// Set in the process that has a network of its own.
const MARK: &str = "COSEC_TESTS_OWN_NETWORK";

/// The network namespace of this process, with nothing but loopback; it ends with the process.
pub struct Network(());

impl Network {
    /// Runs `test` of this test program again, in a process with a network of its own, and waits for it; `None` when
    /// that is done. In that process: its network.
    ///
    /// # Panics
    /// When the test failed there, or where there can be no such network; the message says what is needed.
    #[must_use]
    pub fn own(test: &str) -> Option<Self> {
        if std::env::var_os(MARK).is_some() {
            let network = Self(());
            run("ip", &["link", "set", "lo", "up"]);
            run("nft", &["add", "table", "inet", "faults"]);
            run("nft", &["add", "chain", "inet", "faults", "input", "{ type filter hook input priority 0; }"]);
            return Some(network);
        }
        for (probe, package) in [("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")] {
            let found = Command::new(probe).arg("--version").output();
            assert!(found.is_ok(), "{test} CANNOT RUN: {probe} is missing; Debian: apt-get install {package}");
        }
        let allowed = Command::new("unshare").args(["--net", "true"]).output().unwrap();
        assert!(
            allowed.status.success(),
            "{test} CANNOT RUN: a network namespace of its own is not allowed here ({}); run it as root",
            String::from_utf8_lossy(&allowed.stderr).trim()
        );
        let status = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env(MARK, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{test} failed in its own network; see above");
        None
    }

    /// Drops every packet from and to a port of this network, silently, from now on.
    pub fn cut(&self, port: u16) {
        for direction in ["dport", "sport"] {
            let port = port.to_string();
            run("nft", &["add", "rule", "inet", "faults", "input", "tcp", direction, &port, "counter", "drop"]);
        }
    }

    /// Packets dropped since the last [`Self::heal`].
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let rules = run("nft", &["list", "chain", "inet", "faults", "input"]);
        let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
        let words: Vec<&str> = rules.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse::<u64>().unwrap()).sum()
    }

    /// Lets all packets pass again.
    pub fn heal(&self) {
        run("nft", &["flush", "chain", "inet", "faults", "input"]);
    }
}

/// Prints even where the output of a passing test is captured.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    output
}
