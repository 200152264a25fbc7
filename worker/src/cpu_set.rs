//! Sets of CPUs that threads run on.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// CPU numbers are below this: the capacity of the C library's set.
const MOST: usize = 1024;

/// At least one CPU, written as the kernel lists them: `0-3,8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenCpus", into = "String")]
pub struct CpuSet(BTreeSet<usize>);

impl CpuSet {
    /// The CPUs that the calling thread may run on.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn available() -> io::Result<Self> {
        system::available().map(Self)
    }

    /// Restricts the calling thread, and threads that it starts later, to these CPUs.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn keep_to(&self) -> io::Result<()> {
        system::keep_to(&self.0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether `other` contains all of them.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// A set for each CPU, in ascending order.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|&cpu| Self(BTreeSet::from([cpu])))
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("cpus is {text:?}; expected numbers below {MOST} and ranges of them, such as 0-3,8");
        let number = |text: &str| text.parse().ok().filter(|&cpu: &usize| cpu < MOST).ok_or_else(refused);
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(refused());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for &first in self.0.iter().filter(|&&cpu| cpu == 0 || !self.0.contains(&(cpu - 1))) {
            let last = (first..).take_while(|cpu| self.0.contains(cpu)).last().unwrap_or(first);
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

/// A list in a configuration, where one CPU may be a number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected cpus as a list of numbers and ranges of them, such as \"0-3,8\"")]
enum WrittenCpus {
    One(usize),
    List(String),
}

impl TryFrom<WrittenCpus> for CpuSet {
    type Error = String;

    fn try_from(written: WrittenCpus) -> Result<Self, String> {
        match written {
            WrittenCpus::One(cpu) => cpu.to_string().parse(),
            WrittenCpus::List(list) => list.parse(),
        }
    }
}

impl From<CpuSet> for String {
    fn from(cpus: CpuSet) -> Self {
        cpus.to_string()
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::collections::BTreeSet;
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::MOST;

    pub(super) fn available() -> io::Result<BTreeSet<usize>> {
        let cpus = sched_getaffinity(None)?;
        Ok((0..MOST).filter(|&cpu| cpus.is_set(cpu)).collect())
    }

    pub(super) fn keep_to(cpus: &BTreeSet<usize>) -> io::Result<()> {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|&cpu| set.set(cpu));
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::collections::BTreeSet;
    use std::io;

    pub(super) fn available() -> io::Result<BTreeSet<usize>> {
        Err(unsupported())
    }

    pub(super) fn keep_to(_: &BTreeSet<usize>) -> io::Result<()> {
        Err(unsupported())
    }

    fn unsupported() -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, "CPUs can be chosen on Linux only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        match (text.parse::<CpuSet>(), expected) {
            (Ok(cpus), Some(expected)) => assert_eq!(cpus.to_string(), expected, "{text:?}"),
            (Err(problem), None) => assert!(problem.contains(&format!("cpus is {text:?}; expected")), "{problem}"),
            (found, _) => panic!("{text:?}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn lists_are_those_of_the_kernel() {
        for same in ["0", "0-3,8", "1-2", "1023", "0,2,4-6"] {
            check(same, Some(same));
        }
        check("3,1,2", Some("1-3"));
        check("0-4,2-6,6", Some("0-6"));
        check("5-5", Some("5"));
        for refused in
            ["", ",", "0,", "a", "-1", "1-", "3-1", "0--2", "0-1-2", "0 1", "0-3:2", "1024", "0-4294967296"]
        {
            check(refused, None);
        }
    }

    #[test]
    fn each_cpu_stands_alone() {
        let cpus: CpuSet = "0-1,8".parse().unwrap();
        assert_eq!(cpus.count(), 3);
        assert_eq!(cpus.each().map(String::from).collect::<Vec<_>>(), ["0", "1", "8"]);
        assert!(cpus.is_within(&"0-8".parse().unwrap()) && !cpus.is_within(&"0-7".parse().unwrap()));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_keeps_to_its_cpus_and_hands_them_on() {
        let all = CpuSet::available().unwrap();
        for one in all.each() {
            let settled = one.clone();
            let settle = move || {
                settled.keep_to().unwrap();
                std::thread::spawn(CpuSet::available).join().unwrap().unwrap()
            };
            assert_eq!(std::thread::spawn(settle).join().unwrap(), one);
        }
        assert_eq!(CpuSet::available().unwrap(), all);
    }
}
