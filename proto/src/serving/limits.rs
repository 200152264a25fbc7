//! How much of a process its clients may hold.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most connections where files do not run out first. An idle one takes 10 KiB, over TLS 40.
const MOST_CONNECTIONS: usize = 8192;

/// Files that are not for clients: connections to workers and etcd, models, logs, the ports of probes and metrics.
const RESERVED_FILES: usize = 256;

/// Longest time that can be set, a day.
const MOST_SECONDS: u64 = 86_400;

/// How much of a process its clients may hold, on all its ports together but those of probes and metrics.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLimits {
    /// Most connections of clients; where all are taken, those that have been idle for longest give way [default: 8192,
    /// fewer where the process may open fewer files].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Time for a TLS handshake, and for the head of a request from its first byte on.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub head_timeout_seconds: u64,
    /// How long a connection without a request stays open.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub idle_timeout_seconds: u64,
    /// How long a client may leave all answers of a connection unread.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub write_timeout_seconds: u64,
    /// Most requests at a time on one connection of HTTP/2.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_streams: u32,
    /// Memory for the bodies of requests that are still arriving or unread; a body's first 16 KiB do not count.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub body_memory_mib: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: None,
            head_timeout_seconds: 15,
            idle_timeout_seconds: 120,
            write_timeout_seconds: 60,
            max_streams: 128,
            body_memory_mib: 256,
        }
    }
}

impl ConnectionLimits {
    /// For a port that only probes and scrapes are to use.
    #[must_use]
    pub fn of_probes() -> Self {
        let (few, seconds) = (Some(32), 5);
        Self {
            max_connections: few,
            head_timeout_seconds: seconds,
            write_timeout_seconds: seconds,
            max_streams: 8,
            body_memory_mib: 1,
            ..Self::default()
        }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let within = |setting, value: u64, most: u64| match value {
            value if (1..=most).contains(&value) => Ok(()),
            value => Err(InvalidLimit { setting, value, most }),
        };
        within("max_connections", self.max_connections.unwrap_or(1) as u64, 1 << 20)?;
        within("head_timeout_seconds", self.head_timeout_seconds, MOST_SECONDS)?;
        within("idle_timeout_seconds", self.idle_timeout_seconds, MOST_SECONDS)?;
        within("write_timeout_seconds", self.write_timeout_seconds, MOST_SECONDS)?;
        within("max_streams", self.max_streams.into(), 1 << 16)?;
        within("body_memory_mib", self.body_memory_mib as u64, 1 << 20)
    }

    /// Most connections, as many as the process may open files for.
    pub(super) fn places(&self) -> usize {
        let files = open_files();
        let free = files.saturating_sub(RESERVED_FILES).max(files / 4).max(1);
        self.max_connections.unwrap_or(MOST_CONNECTIONS).min(free)
    }

    pub(super) fn head_timeout(&self) -> Duration {
        Duration::from_secs(self.head_timeout_seconds)
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }

    pub(super) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_seconds)
    }
}

/// Most files that the process may open, once that is as many as the system lets it ask for.
fn open_files() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    limit.current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

/// A limit that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {value}; it must be 1 to {most}")]
pub struct InvalidLimit {
    setting: &'static str,
    value: u64,
    most: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_setting_and_the_files() {
        let of = |max_connections| ConnectionLimits { max_connections, ..ConnectionLimits::default() }.places();
        assert_eq!(of(Some(3)), 3);
        assert!((1..=MOST_CONNECTIONS).contains(&of(None)));
        assert!(of(Some(usize::MAX)) <= open_files());
    }

    #[test]
    fn impossible_limits_are_named() {
        let none = ConnectionLimits { max_streams: 0, ..ConnectionLimits::default() };
        assert_eq!(none.check().unwrap_err().to_string(), "max_streams is 0; it must be 1 to 65536");
        assert_eq!(ConnectionLimits::default().check(), Ok(()));
    }
}
