//! The workers that a file names, which operators or their tools may rewrite at any time.

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

/// A file of `[[members]]` with `model`, `role` and `address`.
#[derive(Debug)]
pub struct MembersFile {
    path: PathBuf,
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
        Ok(Self { path: path.to_owned(), members: read(path)? })
    }
}

fn read(path: &Path) -> Result<Vec<Member>, InvalidMembers> {
    let invalid = |problem: String| InvalidMembers { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|cause| invalid(cause.to_string()))?;
    let content: FileContent =
        Figment::from(Toml::string(&text)).extract().map_err(|cause| invalid(cause.to_string()))?;
    Ok(content.members)
}

impl DiscoverySource for MembersFile {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        announcer.up();
        announcer.announce(self.members);
        let path = self.path;
        Box::pin(async move {
            let mut problem = None;
            loop {
                tokio::time::sleep(INTERVAL).await;
                match read(&path) {
                    Ok(members) => {
                        problem = None;
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
