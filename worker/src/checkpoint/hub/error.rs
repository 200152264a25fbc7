//! Why a hub id cannot be resolved to files.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::hub_id::HubId;

/// A download without data for this long is interrupted.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Why a reference leads to no directory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum HubError {
    #[error("{}: no such file or directory, and no hub id OWNER/NAME or OWNER/NAME@REVISION", reference.display())]
    NoReference { reference: PathBuf },
    #[error("{}: is a local path; --revision is for hub ids", path.display())]
    LocalRevision { path: PathBuf },
    #[error("none of HF_HUB_CACHE, HF_HOME and HOME is set: there is no place for models of the hub")]
    NoCache,
    #[error("{id}: no local path, not whole in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    NotCached { id: HubId, cache: PathBuf },
    #[error("{id}: no local path, and {endpoint} has no such model or revision")]
    NotFound { id: HubId, endpoint: String },
    #[error(
        "{id}: {endpoint} does not show it to everybody: set HF_TOKEN if it is private or gated, or correct the id"
    )]
    Unauthorised { id: HubId, endpoint: String },
    #[error("{id}: {endpoint} refuses it to the owner of HF_TOKEN: use another token or ask for access")]
    Forbidden { id: HubId, endpoint: String },
    #[error("{id}: no local path, not whole in the cache, and {endpoint} cannot be reached: {problem}")]
    Unreachable { id: HubId, endpoint: String, problem: String },
    #[error("{id}: the repository lacks {config} or weights ({weights}); of GGUF files give the path of a local one")]
    NoModel { id: HubId, config: &'static str, weights: String },
    #[error("{id}: the download of {file} was interrupted: {problem}; start again to go on from there")]
    Interrupted { id: HubId, file: String, problem: String },
    #[error("{id}: the download of {file} brought nothing for {} s; start again to go on from there", STALLED_AFTER.as_secs())]
    Stalled { id: HubId, file: String },
    #[error("{id}: another process is downloading {file}; start again when it is done")]
    Locked { id: HubId, file: String },
    #[error("{endpoint} does not answer as a hub should: {problem}")]
    Answer { endpoint: String, problem: String },
    #[error("the cache of the hub: {0}")]
    Cache(io::Error),
    #[error("starting the download: {0}")]
    Runtime(io::Error),
}
