//! What the holder of a certificate is.

use rustls_pki_types::ServerName;

use crate::WorkerRole;

/// What the holder of a certificate is: one of its alternative names says it, as a DNS name.
///
/// An address says nothing: workers are found at whatever address they have. Whoever signs a certificate with such a name
/// vouches for its holder being that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// A coordinator, which may use workers.
    Coordinator,
    /// A worker with a model for this.
    Worker(WorkerRole),
    /// Who may read metrics.
    Monitoring,
}

impl PeerRole {
    /// The name that certificates have.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator.peers.cosec",
            Self::Worker(WorkerRole::Base) => "base.workers.cosec",
            Self::Worker(WorkerRole::Expert) => "expert.workers.cosec",
            Self::Worker(WorkerRole::AntiExpert) => "anti-expert.workers.cosec",
            Self::Monitoring => "monitoring.peers.cosec",
        }
    }

    pub(super) fn server_name(self) -> Result<ServerName<'static>, rustls_pki_types::InvalidDnsNameError> {
        ServerName::try_from(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_stand_in_a_certificate() {
        let workers = [WorkerRole::Base, WorkerRole::Expert, WorkerRole::AntiExpert].map(PeerRole::Worker);
        for role in workers.into_iter().chain([PeerRole::Coordinator, PeerRole::Monitoring]) {
            assert!(role.server_name().is_ok(), "{role:?}");
        }
    }
}
