//! Certificates of a test's processes, and bare clients that show them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cosec_tests::certificates::{Authority, Pair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

pub(crate) const COORDINATOR: &str = "coordinator.peers.cosec";
pub(crate) const BASE: &str = "base.workers.cosec";
pub(crate) const EXPERT: &str = "expert.workers.cosec";
pub(crate) const MONITORING: &str = "monitoring.peers.cosec";

/// An authority with a folder of its own.
pub(crate) struct OwnAuthority {
    pub(crate) authority: Authority,
    pub(crate) folder: TempDir,
}

impl OwnAuthority {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self { authority: Authority::new(folder.path()), folder }
    }

    /// Flags of a worker with the certificate `pair`.
    pub(crate) fn worker_flags(&self, pair: &Pair) -> [String; 6] {
        let [ca, cert, key] = [&self.authority.file, &pair.cert, &pair.key].map(Clone::clone);
        ["--tls-ca".to_owned(), ca, "--tls-cert".to_owned(), cert, "--tls-key".to_owned(), key]
    }

    /// A coordinator's configuration file that has `pair` for its workers, with more sections behind.
    pub(crate) fn coordinator_file(&self, pair: &Pair, more: &str) -> String {
        let file = self.folder.path().join("coordinator.toml");
        let text = format!(
            "[workers.tls]\nauthority_file = {:?}\ncertificate_file = {:?}\nprivate_key_file = {:?}\n{more}",
            self.authority.file, pair.cert, pair.key
        );
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect()
}

/// What a server presents to a client that trusts `authority`, asks for `name` and shows `pair`, once the server has
/// let it in and spoken `hello`'s protocol; or why not.
pub(crate) async fn let_in(
    address: &str,
    authority: &str,
    name: &str,
    pair: Option<&Pair>,
    protocol: &str,
) -> Result<Vec<u8>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Path::new(authority)) {
        roots.add(certificate).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match pair {
        None => config.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
            config.with_client_auth_cert(certificates(Path::new(&pair.cert)), key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let talk = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let presented = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        // A server refuses a certificate after the client's part of the handshake, so an answer must be read.
        let hello: &[u8] = match protocol {
            "h2" => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            _ => b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        stream.write_all(hello).await?;
        if stream.read(&mut [0; 16]).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok::<_, std::io::Error>(presented)
    };
    match tokio::time::timeout(Duration::from_secs(20), talk).await {
        Ok(talked) => talked.map_err(|cause| cause.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
