//! Models and adapters by hub id: found in Hugging Face's cache, else downloaded into it.
//!
//! Cached files are never requested again, so a model that was loaded once loads without a network. A branch thus stays
//! at the commit that was downloaded first.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hf_hub::api::tokio::{Api, ApiBuilder, ApiError, Progress as Watch};
use hf_hub::{Cache, Repo, RepoType};
use parking_lot::Mutex;
use serde_json::Value;

pub use self::error::HubError;
use self::error::STALLED_AFTER;
pub use self::hub_id::HubId;
use super::progress::ByteProgress;
use super::tensor_files;

mod error;
mod hub_id;

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";
/// How often that is checked.
const POLL: Duration = Duration::from_secs(1);

/// The kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoContent {
    /// A model with its tokenizer.
    Model,
    /// A PEFT adapter.
    Adapter,
}

impl RepoContent {
    /// Names of the files besides the weights; the first is required.
    fn configs(self) -> &'static [&'static str] {
        match self {
            Self::Model => &["config.json", "generation_config.json", "tokenizer.json"],
            Self::Adapter => &["adapter_config.json"],
        }
    }

    /// Names of the weights, the preferred ones first.
    fn weights(self) -> &'static [&'static str] {
        match self {
            Self::Model => &tensor_files::MODEL,
            Self::Adapter => &tensor_files::ADAPTER,
        }
    }
}

/// Resolves `reference`: an existing path, or a hub id `OWNER/NAME` or `OWNER/NAME@REVISION`.
///
/// Blocks while it downloads; it must not be called within an asynchronous runtime.
///
/// # Errors
/// [`HubError`].
pub fn locate(reference: &Path, revision: Option<&str>, content: RepoContent) -> Result<PathBuf, HubError> {
    if reference.exists() {
        return match revision {
            None => Ok(reference.to_owned()),
            Some(_) => Err(HubError::LocalRevision { path: reference.to_owned() }),
        };
    }
    let id = reference.to_str().and_then(|text| HubId::parse(text, revision));
    let id = id.ok_or_else(|| HubError::NoReference { reference: reference.to_owned() })?;
    HubClient::from_env()?.directory(&id, content)
}

/// A hub and its local cache.
struct HubClient {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

impl HubClient {
    /// Reads the environment variables of Python's `huggingface_hub`.
    fn from_env() -> Result<Self, HubError> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = match (variable("HF_HOME"), variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(home), ..) => Some(PathBuf::from(home)),
            (None, Some(cache), _) => Some(Path::new(&cache).join("huggingface")),
            (None, None, Some(user)) => Some(Path::new(&user).join(".cache/huggingface")),
            (None, None, None) => None,
        };
        let hub = home.as_ref().map(|home| home.join("hub"));
        let cache = variable("HF_HUB_CACHE").map(PathBuf::from).or(hub).ok_or(HubError::NoCache)?;
        let token_file = || fs::read_to_string(home?.join("token")).ok();
        let token = variable("HF_TOKEN").or_else(token_file).map(|token| token.trim().to_owned());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let offline = variable("HF_HUB_OFFLINE");
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())),
        })
    }

    fn directory(&self, id: &HubId, content: RepoContent) -> Result<PathBuf, HubError> {
        if let Some(directory) = self.cached(id, content) {
            return Ok(directory);
        }
        if self.offline {
            return Err(HubError::NotCached { id: id.clone(), cache: self.cache.clone() });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(HubError::Runtime)?;
        runtime.block_on(HubDownload::new(self, id)?.run(content))
    }

    /// The snapshot of `id`, if it is complete.
    fn cached(&self, id: &HubId, content: RepoContent) -> Option<PathBuf> {
        let repository = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
        let folder = self.cache.join(repository.folder_name());
        // A revision is a branch or tag with a ref file, or the commit itself.
        let commit = fs::read_to_string(folder.join("refs").join(&id.revision));
        let commit = commit.map_or_else(|_| id.revision.clone(), |commit| commit.trim().to_owned());
        let snapshot = folder.join("snapshots").join(commit);
        complete(&snapshot, content).then_some(snapshot)
    }
}

/// Whether `snapshot` has a config and weights with all their shards. The weights are downloaded last.
fn complete(snapshot: &Path, content: RepoContent) -> bool {
    let there = |name: &str| snapshot.join(name).exists();
    let weights = content.weights().iter().find(|name| there(name));
    let weights_complete = weights.is_some_and(|name| match name.ends_with(".index.json") {
        true => shards(&snapshot.join(name)).is_some_and(|shards| shards.iter().all(|shard| there(shard))),
        false => true,
    });
    weights_complete && there(content.configs()[0])
}

/// The files that an index names; `None` when it is no index.
fn shards(index: &Path) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let files = index.get("weight_map")?.as_object()?.values();
    let mut shards: Vec<String> = files.map(|file| file.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    shards.sort_unstable();
    shards.dedup();
    Some(shards)
}

/// A repository that is being downloaded.
struct HubDownload<'a> {
    hub: &'a HubClient,
    id: &'a HubId,
    api: Api,
}

impl<'a> HubDownload<'a> {
    fn new(hub: &'a HubClient, id: &'a HubId) -> Result<Self, HubError> {
        let builder = ApiBuilder::from_cache(Cache::new(hub.cache.clone())).with_endpoint(hub.endpoint.clone());
        let api = builder.with_token(hub.token.clone()).with_progress(false).build();
        let api = api.map_err(|error| HubError::Answer { endpoint: hub.endpoint.clone(), problem: chain(&error) })?;
        Ok(Self { hub, id, api })
    }

    /// Downloads the missing files.
    async fn run(&self, content: RepoContent) -> Result<PathBuf, HubError> {
        let Self { hub, id, api } = self;
        let repository = |revision: &str| Repo::with_revision(id.name.clone(), RepoType::Model, revision.to_owned());
        let asked = api.repo(repository(&id.revision));
        let info = tokio::time::timeout(STALLED_AFTER, asked.info()).await;
        let stalled = |_| HubError::Stalled { file: "its list of files".to_owned(), id: (*id).clone() };
        let info = info.map_err(stalled)?.map_err(|error| self.error("its list of files", error))?;
        if !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) || info.sha.is_empty() {
            return Err(self.answer(format!("the commit {:?}", info.sha)));
        }
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        let weights = content.weights().iter().find(|name| has(name));
        let (Some(weights), true) = (weights, has(content.configs()[0])) else {
            return Err(HubError::NoModel {
                id: (*id).clone(),
                config: content.configs()[0],
                weights: content.weights().join(", "),
            });
        };
        tracing::info!(model = id.name, revision = id.revision, commit = info.sha, hub = hub.endpoint, "downloading");
        // All files of one commit, even if the branch moves meanwhile.
        let pinned = repository(&info.sha);
        let cache = Cache::new(hub.cache.clone());
        let snapshot = cache.repo(pinned.clone()).pointer_path(&info.sha);
        for name in content.configs().iter().filter(|name| has(name)) {
            self.fetch(&pinned, &snapshot, name).await?;
        }
        self.fetch(&pinned, &snapshot, weights).await?;
        if weights.ends_with(".index.json") {
            let invalid = || self.answer(format!("{weights} without a weight_map of files"));
            for shard in shards(&snapshot.join(weights)).ok_or_else(invalid)? {
                if !has(&shard) {
                    return Err(self.answer(format!("{weights} names {shard:?}, which the repository lacks")));
                }
                self.fetch(&pinned, &snapshot, &shard).await?;
            }
        }
        if id.revision != info.sha {
            cache.repo(repository(&id.revision)).create_ref(&info.sha).map_err(HubError::Cache)?;
        }
        Ok(snapshot)
    }

    async fn fetch(&self, repository: &Repo, snapshot: &Path, file: &str) -> Result<(), HubError> {
        if snapshot.join(file).exists() {
            return Ok(());
        }
        let watch = DownloadProgress { progress: None, heard: Arc::new(Mutex::new(Instant::now())) };
        let heard = Arc::clone(&watch.heard);
        let silent = async {
            while heard.lock().elapsed() < STALLED_AFTER {
                tokio::time::sleep(POLL).await;
            }
        };
        // A task of its own, so that a panic of the client on a malformed answer ends there.
        let (repository, name) = (self.api.repo(repository.clone()), file.to_owned());
        let mut download = tokio::spawn(async move { repository.download_with_progress(&name, watch).await });
        let done = tokio::select! {
            done = &mut download => done,
            () = silent => {
                download.abort();
                return Err(HubError::Stalled { file: file.to_owned(), id: self.id.clone() });
            }
        };
        let path = done.map_err(|error| self.answer(error.to_string()))?;
        match path.map_err(|error| self.error(file, error))? {
            path if path == snapshot.join(file) => Ok(()),
            path => Err(self.answer(format!("another commit for {file}: {}", path.display()))),
        }
    }

    fn error(&self, file: &str, error: ApiError) -> HubError {
        let (id, endpoint) = (self.id.clone(), self.hub.endpoint.clone());
        match &error {
            ApiError::RequestError(cause) => match cause.status().map(|status| status.as_u16()) {
                Some(401 | 403) if self.hub.token.is_some() => HubError::Forbidden { id, endpoint },
                Some(401 | 403) => HubError::Unauthorised { id, endpoint },
                Some(404) => HubError::NotFound { id, endpoint },
                Some(_) => self.answer(chain(cause)),
                None if cause.is_connect() => HubError::Unreachable { id, endpoint, problem: chain(cause) },
                None => HubError::Interrupted { id, file: file.to_owned(), problem: chain(cause) },
            },
            ApiError::LockAcquisition(_) => HubError::Locked { id, file: file.to_owned() },
            _ => self.answer(chain(&error)),
        }
    }

    fn answer(&self, problem: String) -> HubError {
        HubError::Answer { endpoint: self.hub.endpoint.clone(), problem }
    }
}

/// The progress of a download, and when data last arrived.
#[derive(Clone)]
struct DownloadProgress {
    progress: Option<ByteProgress>,
    heard: Arc<Mutex<Instant>>,
}

impl Watch for DownloadProgress {
    async fn init(&mut self, size: usize, filename: &str) {
        self.progress = Some(ByteProgress::new(&format!("downloading {filename}"), size as u64));
        self.update(0).await;
    }

    async fn update(&mut self, size: usize) {
        *self.heard.lock() = Instant::now();
        if let Some(progress) = &self.progress {
            progress.advance(size as u64);
        }
    }

    async fn finish(&mut self) {
        self.progress = None;
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
