//! Reads a process's `/metrics`, and its memory from the system.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// The samples of one scrape by name and labels, as the text has them: `name{label="value"}`.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads `url`.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn of(url: &str) -> Result<Self> {
        let text = reqwest::get(url).await.and_then(reqwest::Response::error_for_status);
        let text = text.with_context(|| format!("cannot scrape {url}"))?.text().await?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// Sum of the samples `name` that have all of `labels` (`role="base"`).
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matches = |key: &str| {
            let (family, rest) = key.split_once('{').unwrap_or((key, ""));
            family == name && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(|(key, _)| matches(key)).map(|(_, value)| value).sum()
    }

    /// What was added to each sample since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let added = |(key, value): (&String, &f64)| (key.clone(), value - before.0.get(key).unwrap_or(&0.0));
        Self(self.0.iter().map(added).collect())
    }
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kibibytes(&status, "VmRSS:")
}

/// Time that a process has spent on all cores.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(process: u32) -> Result<Duration> {
    /// The kernel's unit, on every architecture that Linux runs this on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name in parentheses may hold anything; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields.get(field).context("a short /proc stat")?.parse()?) };
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND))
}

/// Memory that processes can still have, in bytes.
///
/// # Errors
/// When the system does not say.
pub fn available_bytes() -> Result<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    kibibytes(&memory, "MemAvailable:")
}

fn kibibytes(text: &str, field: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_labels_and_subtracts() {
        let before = Scrape::parse("# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\",y=\"2\"} 4\nb 1\n");
        let after = Scrape::parse("a{x=\"1\",y=\"2\"} 5\na{x=\"2\",y=\"2\"} 4.5\nb 1\nab 9\n");
        assert_eq!(after.sum("a", &["y=\"2\""]), 9.5);
        assert_eq!(after.sum("a", &["x=\"1\"", "y=\"2\""]), 5.0);
        assert_eq!(after.since(&before).sum("a", &[]), 2.5);
        assert_eq!(after.sum("b", &[]), 1.0);
    }
}
