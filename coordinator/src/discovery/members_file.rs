//! The workers that a file names, which operators or their tools may rewrite at any time.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use futures::future::BoxFuture;
use serde::Deserialize;

use super::{DiscoverySource, Member, MemberAnnouncer};

/// Pause between two looks. Looking works where notification does not: on network file systems, and for mounted
/// ConfigMaps, which change by a symbolic link.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A file of `[[members]]` with `model`, `role` and `address`.
#[derive(Debug)]
pub struct MembersFile {
    path: PathBuf,
    text: String,
    members: Vec<Member>,
}

/// A file that names no members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct InvalidMembers {
    path: PathBuf,
    problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContent {
    members: Vec<Member>,
}

impl MembersFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`InvalidMembers`] names the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self, InvalidMembers> {
        let text = read(path)?;
        Ok(Self { path: path.to_owned(), members: parse(path, &text)?, text })
    }
}

fn read(path: &Path) -> Result<String, InvalidMembers> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    let problem = match read {
        Err(cause) => cause.to_string(),
        Ok(_) if text.len() as u64 > MAX_BYTES => format!("it has more than {MAX_BYTES} bytes"),
        Ok(_) => return Ok(text),
    };
    Err(InvalidMembers { path: path.to_owned(), problem })
}

fn parse(path: &Path, text: &str) -> Result<Vec<Member>, InvalidMembers> {
    let invalid = |cause: figment::Error| InvalidMembers { path: path.to_owned(), problem: cause.to_string() };
    let content: FileContent = Figment::from(Toml::string(text)).extract().map_err(invalid)?;
    Ok(content.members)
}

impl DiscoverySource for MembersFile {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        announcer.up();
        let Self { path, mut text, members } = *self;
        announcer.announce(members);
        Box::pin(async move {
            let mut problem = None;
            loop {
                tokio::time::sleep(INTERVAL).await;
                let now = read(&path);
                // Parsing costs far more than reading.
                if problem.is_none() && now.as_ref().is_ok_and(|now| *now == text) {
                    continue;
                }
                match now.and_then(|now| Ok((parse(&path, &now)?, now))) {
                    Ok((members, now)) => {
                        (problem, text) = (None, now);
                        announcer.up();
                        announcer.announce(members);
                    }
                    Err(error) if problem.as_ref() != Some(&error) => {
                        announcer.lost(&error.to_string());
                        problem = Some(error);
                    }
                    Err(_) => {}
                }
            }
        })
    }
}
