//! Which files say who a process is.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pem_files::InvalidTls;

/// What clients are shown. The files are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    /// PEM file of the certificate and those between it and the authority. Default: none, HTTP and gRPC are in the clear.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub private_key_file: Option<PathBuf>,
    /// PEM file of the authorities that sign certificates of clients. Default: clients need none.
    pub client_authority_file: Option<PathBuf>,
}

impl ServerTls {
    /// Certificate and key, if they are set.
    ///
    /// # Errors
    /// When only a part is set.
    pub fn files(&self) -> Result<Option<(&Path, &Path)>, InvalidTls> {
        match (self.certificate_file.as_deref(), self.private_key_file.as_deref()) {
            (None, None) if self.client_authority_file.is_none() => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (None | Some(_), None | Some(_)) => Err(InvalidTls::Incomplete("certificate_file and private_key_file")),
        }
    }
}

/// Who this process is to coordinators, workers and those who read metrics, and whose word it takes for who they are. The
/// files are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MutualTls {
    /// PEM file of the authorities that sign the certificates of coordinators and workers [default: none, in the clear].
    #[arg(long = "tls-ca", value_name = "FILE")]
    pub authority_file: Option<PathBuf>,
    /// PEM file of the own certificate, which names what this process is, and of those between it and the authority.
    #[arg(long = "tls-cert", value_name = "FILE")]
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[arg(long = "tls-key", value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
}

/// The files of a [`MutualTls`] that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MutualFiles {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl MutualTls {
    /// Whether anything is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn files(&self) -> Result<MutualFiles, InvalidTls> {
        match (self.authority_file.clone(), self.certificate_file.clone(), self.private_key_file.clone()) {
            (Some(authority), Some(certificate), Some(key)) => Ok(MutualFiles { authority, certificate, key }),
            _ => Err(InvalidTls::Incomplete("authority_file, certificate_file and private_key_file")),
        }
    }
}
