//! The public keys of an issuer: fetched in the background, kept while the issuer does not answer, fetched anew when a
//! token names one that is not known.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::config::{OidcConfig, may_fetch};
use crate::tenant::metrics::TenantMetrics;

/// Requests that wait for a fetch; one more is answered by the keys that are known.
const MAX_WAITING: usize = 1024;

/// Longest document of an issuer.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Looks keys up.
pub(super) struct IssuerKeys {
    known: watch::Receiver<Arc<KeySet>>,
    asks: mpsc::Sender<oneshot::Sender<()>>,
    stale: Duration,
    patience: Duration,
}

/// Why there is no key for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer has no such key.
    Unknown,
    /// Nobody knows: the issuer did not answer for too long.
    IssuerSilent,
}

/// What an issuer published.
#[derive(Default)]
struct KeySet {
    keys: Vec<IssuerKey>,
    /// When it was asked for; never in the beginning.
    fetched: Option<Instant>,
}

struct IssuerKey {
    id: Option<String>,
    /// What it may verify.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl IssuerKeys {
    /// Nobody fetches keys until the returned task runs.
    ///
    /// # Errors
    /// When the authorities in `ca_file` cannot be read.
    pub(super) fn new(
        config: &OidcConfig,
        metrics: TenantMetrics,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), String> {
        let (publish, known) = watch::channel(Arc::new(KeySet::default()));
        let (asks, asked) = mpsc::channel(MAX_WAITING);
        let timeout = Duration::from_secs(config.timeout_seconds);
        let keys = Self { known, asks, stale: Duration::from_secs(config.stale_seconds), patience: timeout * 2 };
        let fetcher = KeyFetcher {
            client: client(config, timeout)?,
            issuer: config.issuer.clone(),
            jwks_uri: config.jwks_uri.clone(),
            timeout,
            refresh: Duration::from_secs(config.refresh_seconds),
            min_pause: Duration::from_secs(config.min_refresh_seconds),
            publish,
            metrics,
        };
        Ok((keys, fetcher.run(asked)))
    }

    /// The key that a token names, or the only one that fits where it names none.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, NoKey> {
        if let Some(key) = self.known.borrow().find(id, algorithm, self.stale) {
            return Ok(key);
        }
        // The issuer may have published it since the last fetch.
        let (done, answered) = oneshot::channel();
        if self.asks.try_send(done).is_ok() {
            let _ = timeout(self.patience, answered).await;
        }
        let known = self.known.borrow();
        let reason = if known.is_usable(self.stale) { NoKey::Unknown } else { NoKey::IssuerSilent };
        known.find(id, algorithm, self.stale).ok_or(reason)
    }
}

impl KeySet {
    fn is_usable(&self, stale: Duration) -> bool {
        self.fetched.is_some_and(|fetched| fetched.elapsed() < stale)
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm, stale: Duration) -> Option<DecodingKey> {
        if !self.is_usable(stale) {
            return None;
        }
        let named = |key: &&IssuerKey| id.is_none() || key.id.as_deref() == id;
        let mut fitting = self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next(), id) {
            (Some(_), Some(_), None) => None,
            (found, _, _) => found.map(|found| found.key.clone()),
        }
    }

    /// The keys of a set that can verify something; the others are for other purposes.
    fn read(document: JwksDocument) -> Self {
        let keys =
            document.keys.into_iter().filter_map(|value| IssuerKey::read(&serde_json::from_value(value).ok()?));
        Self { keys: keys.collect(), fetched: Some(Instant::now()) }
    }
}

impl IssuerKey {
    fn read(jwk: &Jwk) -> Option<Self> {
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            // A secret, or what nobody knows.
            _ => return None,
        };
        let algorithms = match &jwk.common.key_algorithm {
            None => fitting.to_vec(),
            Some(named) => {
                let named = Algorithm::from_str(&named.to_string()).ok()?;
                fitting.iter().copied().filter(|algorithm| *algorithm == named).collect()
            }
        };
        Some(Self { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(jwk).ok()? })
    }
}

fn client(config: &OidcConfig, timeout: Duration) -> Result<Client, String> {
    // A redirect would lead away from what the configuration names.
    let mut builder = Client::builder().redirect(Policy::none()).connect_timeout(timeout).timeout(timeout);
    if let Some(file) = &config.ca_file {
        let problem = |cause: String| format!("api.oidc.ca_file: {}: {cause}", file.display());
        let pem = std::fs::read(file).map_err(|cause| problem(cause.to_string()))?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|cause| problem(cause.to_string()))?;
        builder = builder.tls_built_in_root_certs(false);
        builder = authorities.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    }
    builder.build().map_err(|cause| format!("api.oidc: {cause}"))
}

/// Fetches keys and publishes them.
struct KeyFetcher {
    client: Client,
    issuer: String,
    jwks_uri: Option<String>,
    timeout: Duration,
    refresh: Duration,
    /// Least time between two fetches, whatever clients send.
    min_pause: Duration,
    publish: watch::Sender<Arc<KeySet>>,
    metrics: TenantMetrics,
}

#[derive(Deserialize)]
struct ProviderDocument {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct JwksDocument {
    keys: Vec<Value>,
}

impl KeyFetcher {
    /// Fetches now and then, and when somebody asks; ends when nobody can ask any more.
    async fn run(self, mut asks: mpsc::Receiver<oneshot::Sender<()>>) {
        let (mut last, mut next) = (None::<Instant>, Instant::now());
        loop {
            let asked = tokio::select! {
                () = sleep_until(next) => None,
                ask = asks.recv() => match ask {
                    None => return,
                    // Those who ask know the answer when their sender is dropped.
                    Some(_) if last.is_some_and(|last| last.elapsed() < self.min_pause) => continue,
                    asked => asked,
                },
            };
            last = Some(Instant::now());
            let pause = match self.fetch().await {
                Ok(()) => self.refresh,
                Err(problem) => {
                    tracing::error!(issuer = self.issuer, problem, "the keys of the OIDC issuer cannot be fetched");
                    self.refresh.min(self.min_pause)
                }
            };
            next = Instant::now() + pause;
            drop(asked);
        }
    }

    async fn fetch(&self) -> Result<(), String> {
        let fetched = timeout(self.timeout * 2, self.keys()).await;
        let keys = fetched.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout * 2)));
        let outcome = if keys.is_ok() { "taken" } else { "failed" };
        self.metrics.oidc_key_fetches.with_label_values(&[outcome]).inc();
        let keys = keys?;
        tracing::debug!(issuer = self.issuer, keys = keys.keys.len(), "fetched the keys of the OIDC issuer");
        self.publish.send_replace(Arc::new(keys));
        Ok(())
    }

    async fn keys(&self) -> Result<KeySet, String> {
        let uri = match &self.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.discovered().await?,
        };
        let keys = KeySet::read(self.document(&uri).await?);
        if keys.keys.is_empty() { Err(format!("{uri} has no key that verifies signatures")) } else { Ok(keys) }
    }

    /// Where the issuer says that its keys are (OpenID Connect Discovery 1.0, 4).
    async fn discovered(&self) -> Result<String, String> {
        let uri = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document: ProviderDocument = self.document(&uri).await?;
        if document.issuer != self.issuer {
            return Err(format!("{uri} is of the issuer {:?}", document.issuer));
        }
        Ok(document.jwks_uri)
    }

    async fn document<T: DeserializeOwned>(&self, uri: &str) -> Result<T, String> {
        let problem = |cause: &dyn std::fmt::Display| format!("{uri:?}: {cause}");
        let url: Url = uri.parse().map_err(|cause| problem(&cause))?;
        if !may_fetch(&url) {
            return Err(problem(&"it is not https"));
        }
        let mut answer = self.client.get(url).send().await.map_err(|cause| problem(&cause.without_url()))?;
        if !answer.status().is_success() {
            return Err(problem(&answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|cause| problem(&cause.without_url()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_DOCUMENT_BYTES {
                return Err(problem(&format!("it has more than {MAX_DOCUMENT_BYTES} bytes")));
            }
        }
        serde_json::from_slice(&bytes).map_err(|cause| problem(&cause))
    }
}
