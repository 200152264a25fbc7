//! What may stand between a hub id and its files.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::hub_id::HubId;

/// A download that brings nothing for so long has been interrupted.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Why a reference leads to no directory.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor a hub id.
    #[error("{}: no such file or directory, and no hub id OWNER/NAME or OWNER/NAME@REVISION", reference.display())]
    NoReference {
        /// What was given.
        reference: PathBuf,
    },
    /// A directory has no revisions.
    #[error("{}: is a local path; --revision is for hub ids", path.display())]
    LocalRevision {
        /// The path.
        path: PathBuf,
    },
    /// No place for the cache.
    #[error("none of HF_HUB_CACHE, HF_HOME and HOME is set: there is no place for models of the hub")]
    NoCache,
    /// Not allowed to ask.
    #[error("{id}: no local path, not whole in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    NotCached {
        /// What was looked for.
        id: HubId,
        /// Where.
        cache: PathBuf,
    },
    /// The hub has no such repository or revision.
    #[error("{id}: no local path, and {endpoint} has no such model or revision")]
    NotFound {
        /// What was asked for.
        id: HubId,
        /// Whom.
        endpoint: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "{id}: {endpoint} does not show it to everybody: set HF_TOKEN if it is private or gated, or correct the id"
    )]
    Unauthorised {
        /// What was asked for.
        id: HubId,
        /// Whom.
        endpoint: String,
    },
    /// The hub knows who asks.
    #[error("{id}: {endpoint} refuses it to the owner of HF_TOKEN: use another token or ask for access")]
    Forbidden {
        /// What was asked for.
        id: HubId,
        /// Whom.
        endpoint: String,
    },
    /// No connection.
    #[error("{id}: no local path, not whole in the cache, and {endpoint} cannot be reached: {problem}")]
    Unreachable {
        /// What was asked for.
        id: HubId,
        /// Whom.
        endpoint: String,
        /// What happened.
        problem: String,
    },
    /// The repository holds something else.
    #[error("{id}: the repository lacks {config} or weights ({weights}); of GGUF files give the path of a local one")]
    NoModel {
        /// The repository.
        id: HubId,
        /// The file that says what it is.
        config: &'static str,
        /// Names of files that would do.
        weights: String,
    },
    /// The connection broke.
    #[error("{id}: the download of {file} was interrupted: {problem}; start again to go on from there")]
    Interrupted {
        /// The repository.
        id: HubId,
        /// What was being downloaded.
        file: String,
        /// What happened.
        problem: String,
    },
    /// The connection brings nothing.
    #[error("{id}: the download of {file} brought nothing for {} s; start again to go on from there", STALLED_AFTER.as_secs())]
    Stalled {
        /// The repository.
        id: HubId,
        /// What was being downloaded.
        file: String,
    },
    /// Somebody else downloads it into the same cache.
    #[error("{id}: another process is downloading {file}; start again when it is done")]
    Locked {
        /// The repository.
        id: HubId,
        /// What is being downloaded.
        file: String,
    },
    /// The hub is none.
    #[error("{endpoint} does not answer as a hub should: {problem}")]
    Answer {
        /// Who.
        endpoint: String,
        /// What it did.
        problem: String,
    },
    /// The cache cannot be written.
    #[error("the cache of the hub: {0}")]
    Cache(io::Error),
    /// The system has no means to download.
    #[error("starting the download: {0}")]
    Runtime(io::Error),
}
