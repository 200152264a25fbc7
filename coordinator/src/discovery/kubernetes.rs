//! The workers of headless services: each pod is an SRV record that names its port and its host.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use super::{Backoff, DiscoverySource, MAX_MEMBERS, Member, MemberAnnouncer};

/// Bounds of the pause between two resolutions; within them the records' time to live decides.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Resolves services again and again.
pub struct KubernetesSource {
    resolver: TokioResolver,
    /// Members whose address is the name of an SRV record.
    services: Vec<Member>,
}

impl KubernetesSource {
    /// Prepares to ask `nameserver`, or the one that the system names.
    ///
    /// # Errors
    /// When the system names none.
    pub fn new(services: Vec<Member>, nameserver: Option<SocketAddr>) -> Result<Self, NetError> {
        let mut builder = match nameserver {
            Some(address) => {
                let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                connections.iter_mut().for_each(|connection| connection.port = address.port());
                let server = NameServerConfig::new(address.ip(), true, connections.to_vec());
                let config = ResolverConfig::from_name_servers(vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
            None => TokioResolver::builder_tokio()?,
        };
        // The pauses between resolutions follow the time to live; a cache would only add to it.
        builder.options_mut().cache_size = 0;
        Ok(Self { resolver: builder.build()?, services })
    }

    /// The addresses of one service and until when they hold.
    async fn resolve(&self, service: &str) -> Result<(Vec<SocketAddr>, Instant), NetError> {
        let records = match self.resolver.srv_lookup(service).await {
            Ok(records) => records,
            // A service without a pod.
            Err(error) if error.is_no_records_found() => return Ok((Vec::new(), Instant::now())),
            Err(error) => return Err(error),
        };
        let mut until = records.valid_until();
        let mut addresses = Vec::new();
        for record in records.answers().iter().take(MAX_MEMBERS) {
            let RData::SRV(srv) = &record.data else { continue };
            let hosts = match self.resolver.lookup_ip(srv.target.clone()).await {
                Ok(hosts) => hosts,
                // The pod went between the two questions.
                Err(error) if error.is_no_records_found() => continue,
                Err(error) => return Err(error),
            };
            until = until.min(hosts.valid_until());
            addresses.extend(hosts.iter().map(|host| SocketAddr::new(host, srv.port)));
        }
        Ok((addresses, until))
    }

    /// The members of all services and until when they hold.
    async fn members(&self) -> Result<(Vec<Member>, Instant), String> {
        let mut members = Vec::new();
        let mut until = Instant::now() + INTERVAL.1;
        for service in &self.services {
            let resolved = self.resolve(&service.address).await;
            let (addresses, valid) = resolved.map_err(|cause| format!("{}: {cause}", service.address))?;
            until = until.min(valid);
            let member = |address: SocketAddr| Member { address: address.to_string(), ..service.clone() };
            members.extend(addresses.into_iter().map(member));
        }
        Ok((members, until))
    }
}

impl DiscoverySource for KubernetesSource {
    fn run(self: Box<Self>, announcer: MemberAnnouncer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut backoff = Backoff::new();
            loop {
                match self.members().await {
                    Ok((members, until)) => {
                        backoff = Backoff::new();
                        announcer.up();
                        announcer.announce(members);
                        tokio::time::sleep_until(until.max(Instant::now() + INTERVAL.0).into()).await;
                    }
                    Err(why) => {
                        announcer.lost(&why);
                        backoff.pause().await;
                    }
                }
            }
        })
    }
}
