//! Keeps the worker's entry in etcd: under a lease, restored when lease or entry is lost, marked while the worker
//! drains, withdrawn at the end.

use std::net::SocketAddr;
use std::time::Duration;

use cosec_proto::registry::{EtcdConfig, InvalidEtcd, LEASE, PREFIX, Registration};
use etcd_client::{Client, GetOptions, PutOptions};
use prometheus::IntGauge;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Shortest and longest pause between attempts to register.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Interval between two renewals of the lease.
const RENEWAL: Duration = Duration::from_secs(LEASE.as_secs() / 3);

/// Timeout of one call to etcd.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the worker registers, under which address and models.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrationConfig {
    /// The etcd to register with; none by default.
    #[command(flatten)]
    pub etcd: EtcdConfig,
    /// host:port at which coordinators reach this worker [default: where it listens].
    #[arg(long, value_name = "HOST:PORT", requires = "endpoints")]
    pub advertise: Option<String>,
    /// Models to take part in, as clients name them [default: --name].
    #[arg(long = "register-model", value_name = "NAME", value_delimiter = ',', requires = "endpoints")]
    pub models: Vec<String>,
}

impl RegistrationConfig {
    /// Whether the worker registers.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.etcd != EtcdConfig::default()
    }

    /// Checks the settings and fills in the worker's own `name` where no models are given.
    ///
    /// # Errors
    /// [`InvalidRegistration`] names the setting.
    pub fn completed(mut self, name: &str, listen: &str) -> Result<Self, InvalidRegistration> {
        if !self.is_wanted() {
            return Ok(self);
        }
        self.etcd.check()?;
        let everywhere = listen.parse().is_ok_and(|address: SocketAddr| address.ip().is_unspecified());
        if self.advertise.is_none() && everywhere {
            return Err(InvalidRegistration::Advertise { listen: listen.to_owned() });
        }
        if self.models.is_empty() {
            self.models.push(name.to_owned());
        }
        Ok(self)
    }
}

/// Why coordinators could not find the worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum InvalidRegistration {
    #[error("registration.etcd.{0}")]
    Etcd(#[from] InvalidEtcd),
    #[error("registration.advertise is missing; set --advertise HOST:PORT, since listen is {listen}")]
    Advertise { listen: String },
}

/// Keeps one entry.
pub(crate) struct EtcdRegistrar {
    pub(crate) etcd: EtcdConfig,
    pub(crate) entry: Registration,
    /// 1 while the entry is in etcd.
    pub(crate) registered: IntGauge,
}

impl EtcdRegistrar {
    /// Keeps the entry until `closing`, marked as draining from `draining` on.
    pub(crate) async fn keep(mut self, draining: CancellationToken, closing: CancellationToken) {
        let mut pause = BACKOFF.0;
        for attempt in 0.. {
            let held = self.hold(attempt, &draining, &closing).await;
            let stood = self.registered.get() == 1;
            self.registered.set(0);
            let Err(why) = held else { return };
            tracing::warn!(why, "not registered with etcd; trying again");
            if stood {
                pause = BACKOFF.0;
            }
            // Jitter, so that workers that lost etcd together do not return at once.
            let jitter = rand::rng().random_range(0.5..1.5);
            tokio::select! {
                () = sleep(pause.mul_f64(jitter)) => {}
                () = closing.cancelled() => return,
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Registers and renews the lease; returns at `closing`, or with the reason why the entry may be lost.
    async fn hold(
        &mut self,
        attempt: usize,
        draining: &CancellationToken,
        closing: &CancellationToken,
    ) -> Result<(), String> {
        let mut client = tokio::select! {
            client = self.etcd.connect(attempt) => client?,
            () = closing.cancelled() => return Ok(()),
        };
        let seconds = i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX);
        let lease = within(client.lease_grant(seconds, None)).await?.id();
        let (mut renewals, mut renewed) = within(client.lease_keep_alive(lease)).await?;
        self.entry.draining = draining.is_cancelled();
        self.put(&mut client, lease).await?;
        self.registered.set(1);
        tracing::info!(endpoint = self.entry.endpoint, models = ?self.entry.models, "registered with etcd");
        loop {
            tokio::select! {
                () = closing.cancelled() => {
                    return within(client.lease_revoke(lease)).await.map(|_| ());
                }
                () = draining.cancelled(), if !self.entry.draining => {
                    self.entry.draining = true;
                    self.put(&mut client, lease).await?;
                }
                () = sleep(RENEWAL) => {
                    within(renewals.keep_alive()).await?;
                    let answer = within(renewed.message()).await?;
                    if answer.is_none_or(|answer| answer.ttl() <= 0) {
                        return Err("the lease has ended".to_owned());
                    }
                    let only_count = Some(GetOptions::new().with_count_only());
                    if within(client.get(self.key(), only_count)).await?.count() == 0 {
                        tracing::warn!("the entry in etcd is gone; it is put again");
                        self.put(&mut client, lease).await?;
                    }
                }
            }
        }
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.entry.endpoint)
    }

    async fn put(&self, client: &mut Client, lease: i64) -> Result<(), String> {
        let value = serde_json::to_string(&self.entry).map_err(|cause| cause.to_string())?;
        let leased = PutOptions::new().with_lease(lease);
        within(client.put(self.key(), value, Some(leased))).await.map(|_| ())
    }
}

async fn within<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, String> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|cause| cause.to_string()),
        Err(_) => Err(format!("etcd did not answer within {CALL_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_can_call_is_refused() {
        let etcd = || EtcdConfig { endpoints: vec!["http://127.0.0.1:1".to_owned()], ..EtcdConfig::default() };
        let everywhere = "0.0.0.0:9001";
        let config = RegistrationConfig { etcd: etcd(), ..RegistrationConfig::default() };
        let missing = config.clone().completed("m", everywhere).unwrap_err();
        assert!(missing.to_string().contains("--advertise"), "{missing}");
        let named = RegistrationConfig { advertise: Some("w:9001".to_owned()), ..config.clone() };
        assert_eq!(named.completed("m", everywhere).unwrap().models, ["m"]);
        assert!(config.completed("m", "127.0.0.1:9001").is_ok());
        let off = RegistrationConfig::default().completed("m", everywhere).unwrap();
        assert!(!off.is_wanted() && off.models.is_empty());
    }
}
