//! Certificates and keys from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{self, RootCertStore};

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The one implementation of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The content of a file.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, InvalidTls> {
    let unread = |cause: std::io::Error| InvalidTls::File { file: file.to_owned(), problem: cause.to_string() };
    let bytes = std::fs::metadata(file).map_err(unread)?.len();
    if bytes > MAX_BYTES {
        let problem = format!("it has {bytes} bytes; it must have at most {MAX_BYTES}");
        return Err(InvalidTls::File { file: file.to_owned(), problem });
    }
    std::fs::read(file).map_err(unread)
}

/// The certificates in `pem`, which `file` had; at least one.
pub(super) fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let invalid = |problem: String| InvalidTls::File { file: file.to_owned(), problem };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read.map_err(|cause| invalid(cause.to_string()))? {
        none if none.is_empty() => Err(invalid("it has no certificate".to_owned())),
        certificates => Ok(certificates),
    }
}

/// The private key in `pem`, which `file` had.
pub(super) fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, InvalidTls> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|cause| InvalidTls::File { file: file.to_owned(), problem: cause.to_string() })
}

/// The authorities in `pem`, which `file` had.
pub(super) fn authorities(file: &Path, pem: &[u8]) -> Result<Arc<RootCertStore>, InvalidTls> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem)? {
        roots
            .add(certificate)
            .map_err(|cause| InvalidTls::File { file: file.to_owned(), problem: cause.to_string() })?;
    }
    Ok(Arc::new(roots))
}

/// Files that make no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum InvalidTls {
    #[error("{0} go together; only a part of them is set")]
    Incomplete(&'static str),
    #[error("{}: {problem}", file.display())]
    File { file: PathBuf, problem: String },
    #[error("{} and its key make no identity: {problem}", certificate.display())]
    Identity { certificate: PathBuf, problem: String },
}

impl InvalidTls {
    pub(super) fn identity(certificate: &Path, cause: &rustls::Error) -> Self {
        Self::Identity { certificate: certificate.to_owned(), problem: cause.to_string() }
    }
}
