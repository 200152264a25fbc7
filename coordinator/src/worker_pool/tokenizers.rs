//! Holds the tokenizers of workers against the one that their model must have, and finds out in what they differ.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cosec_proto::tokenizer_fingerprint::Content;
use cosec_proto::wire::worker::TokenizerRequest;
use cosec_proto::wire::worker::worker_client::WorkerClient;
use cosec_proto::{WorkerRole, transport};
use parking_lot::Mutex;

use super::changes::ChangeCount;
use crate::tasks::TaskSpawner;

/// Largest tokenizer.json that is compared, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// For the content of two tokenizers.
const DEADLINE: Duration = Duration::from_secs(30);

/// Comparisons that are remembered; after so many, fingerprints must do.
const MAX_COMPARISONS: usize = 64;

/// A tokenizer by its fingerprint, and where its content is.
#[derive(Clone, Debug)]
pub struct KnownTokenizer {
    /// A digest of its content.
    pub fingerprint: String,
    /// Where its content can be read.
    pub owner: TokenizerOwner,
}

/// Who has a tokenizer.
#[derive(Clone, Debug)]
pub enum TokenizerOwner {
    /// The coordinator, in this tokenizer.json.
    Coordinator(PathBuf),
    /// The worker at this address that has this role.
    Worker(String, WorkerRole),
}

impl fmt::Display for TokenizerOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(_) => write!(f, "the coordinator's tokenizer"),
            Self::Worker(address, _) => write!(f, "that of the worker at {address}"),
        }
    }
}

/// In what tokenizers differ, found out in the background and remembered.
pub(super) struct TokenizerComparisons {
    /// By both fingerprints; `None` while it is being found out.
    known: Mutex<HashMap<[String; 2], Option<String>>>,
    connect: Arc<transport::Connect>,
    tasks: TaskSpawner,
    /// Told when something was found out.
    changes: Arc<ChangeCount>,
}

impl TokenizerComparisons {
    pub(super) fn new(connect: Arc<transport::Connect>, tasks: TaskSpawner, changes: Arc<ChangeCount>) -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), connect, tasks, changes })
    }

    /// Says in what the tokenizer `found` differs from the one that is `expected`, as soon as that has been found out;
    /// which begins with the first call.
    pub(super) fn differ(self: &Arc<Self>, expected: &KnownTokenizer, found: &KnownTokenizer) -> String {
        let what =
            format!("its tokenizer ({}) is not that of the model ({})", found.fingerprint, expected.fingerprint);
        let pair = [expected.fingerprint.clone(), found.fingerprint.clone()];
        let mut known = self.known.lock();
        match known.get(&pair) {
            Some(Some(differences)) => return format!("{what}: {differences}"),
            Some(None) => {}
            None if known.len() >= MAX_COMPARISONS => {}
            None => {
                known.insert(pair.clone(), None);
                let compare = Arc::clone(self).compare(pair, expected.owner.clone(), found.owner.clone());
                self.tasks.spawn(compare);
            }
        }
        what
    }

    async fn compare(self: Arc<Self>, pair: [String; 2], expected: TokenizerOwner, found: TokenizerOwner) {
        let compared = tokio::select! {
            biased;
            compared = tokio::time::timeout(DEADLINE, differences(&*self.connect, &expected, &found)) => compared,
            () = self.tasks.shutdown.cancelled() => return,
        };
        let text = match compared {
            Ok(Ok(differences)) => differences,
            Ok(Err(why)) => format!("they could not be compared: {why}"),
            Err(_) => format!("they could not be compared within {DEADLINE:?}"),
        };
        tracing::warn!(expected = %expected, found = %found, "tokenizers differ: {text}");
        self.known.lock().insert(pair, Some(text));
        self.changes.tell();
    }
}

async fn differences(
    connect: &transport::Connect,
    expected: &TokenizerOwner,
    found: &TokenizerOwner,
) -> Result<String, String> {
    let (ours, theirs) = tokio::try_join!(content(connect, expected), content(connect, found))?;
    let names = [expected.to_string(), "its own".to_owned()];
    let compare = move || {
        let parse = |json: &[u8]| Content::parse(json).map_err(|error| error.to_string());
        let differences = parse(&ours)?.differences(&parse(&theirs)?, names.each_ref().map(String::as_str));
        differences.ok_or_else(|| "they have become the same".to_owned())
    };
    tokio::task::spawn_blocking(compare).await.map_err(|error| error.to_string())?
}

/// Reads a tokenizer.json.
async fn content(connect: &transport::Connect, owner: &TokenizerOwner) -> Result<Vec<u8>, String> {
    let (address, role) = match owner {
        TokenizerOwner::Coordinator(path) => {
            return tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()));
        }
        TokenizerOwner::Worker(address, role) => (address, *role),
    };
    let refused = |status: tonic::Status| format!("{address}: {}", status.message());
    let channel = connect(address, role).map_err(|error| error.to_string())?;
    let mut client = WorkerClient::new(channel).max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
    let mut pieces = client.tokenizer(TokenizerRequest {}).await.map_err(refused)?.into_inner();
    let mut content = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        if content.len() + piece.piece.len() > MAX_BYTES {
            return Err(format!("{address}: its tokenizer.json has more than {MAX_BYTES} bytes"));
        }
        content.extend(piece.piece);
    }
    Ok(content)
}
