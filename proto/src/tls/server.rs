//! What a port presents over TLS, and whom it lets in.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio_rustls::server::TlsStream;

use super::pem_files::{self, InvalidTls};
use super::role::PeerRole;
use super::settings::{MutualTls, ServerTls};

/// Pause between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// Whether only this machine reaches a port at `address`.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// What a port presents over TLS and whom it lets in.
///
/// Where the files have changed, new connections get what is in them now. Files that make no identity, such as a new
/// certificate beside an old key, leave all as it was.
#[derive(Debug)]
pub struct ServerIdentity {
    certificate: PathBuf,
    key: PathBuf,
    clients: Option<KnownClients>,
    protocols: &'static [&'static str],
    loaded: Mutex<LoadedIdentity>,
}

/// Clients with a certificate of an authority.
#[derive(Debug)]
struct KnownClients {
    authority: PathBuf,
    /// What they must be; anybody of the authority without.
    role: Option<PeerRole>,
}

#[derive(Debug)]
struct LoadedIdentity {
    config: Arc<ServerConfig>,
    /// What the files held at the last look, whether it could be used or not.
    content: FileContent,
    looked: Instant,
}

/// Of certificate, key and authorities.
type FileContent = [Vec<u8>; 3];

impl ServerIdentity {
    /// For clients, over one of `protocols` (names as ALPN has them).
    ///
    /// # Errors
    /// [`InvalidTls`]; `None` where TLS is not set.
    pub fn of_clients(tls: &ServerTls, protocols: &'static [&'static str]) -> Result<Option<Arc<Self>>, InvalidTls> {
        let Some((certificate, key)) = tls.files()? else { return Ok(None) };
        let clients = tls.client_authority_file.clone().map(|authority| KnownClients { authority, role: None });
        Self::load(certificate.to_owned(), key.to_owned(), clients, protocols).map(Some)
    }

    /// For peers that are a `role`.
    ///
    /// # Errors
    /// [`InvalidTls`]; `None` where TLS is not set.
    pub fn of_peers(
        tls: &MutualTls,
        role: PeerRole,
        protocols: &'static [&'static str],
    ) -> Result<Option<Arc<Self>>, InvalidTls> {
        if !tls.is_set() {
            return Ok(None);
        }
        let files = tls.files()?;
        let clients = KnownClients { authority: files.authority, role: Some(role) };
        Self::load(files.certificate, files.key, Some(clients), protocols).map(Some)
    }

    fn load(
        certificate: PathBuf,
        key: PathBuf,
        clients: Option<KnownClients>,
        protocols: &'static [&'static str],
    ) -> Result<Arc<Self>, InvalidTls> {
        let authority = clients.as_ref().map(|clients| clients.authority.as_path());
        let content = read_all(&certificate, &key, authority)?;
        let config = server_config(&certificate, &key, clients.as_ref(), protocols, &content)?;
        let loaded = Mutex::new(LoadedIdentity { config: Arc::new(config), content, looked: Instant::now() });
        Ok(Arc::new(Self { certificate, key, clients, protocols, loaded }))
    }

    /// Shakes hands with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.current()).accept(stream).await
    }

    fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock();
        if loaded.looked.elapsed() < LOOK {
            return Arc::clone(&loaded.config);
        }
        loaded.looked = Instant::now();
        let authority = self.clients.as_ref().map(|clients| clients.authority.as_path());
        match read_all(&self.certificate, &self.key, authority) {
            Ok(content) if content == loaded.content => {}
            Ok(content) => {
                match server_config(&self.certificate, &self.key, self.clients.as_ref(), self.protocols, &content) {
                    Ok(config) => {
                        tracing::info!(certificate = %self.certificate.display(), "the certificate has been read anew");
                        loaded.config = Arc::new(config);
                    }
                    Err(cause) => tracing::warn!(%cause, "the certificate that was read before stays"),
                }
                loaded.content = content;
            }
            Err(cause) => tracing::warn!(%cause, "the certificate that was read before stays"),
        }
        Arc::clone(&loaded.config)
    }
}

fn read_all(
    certificate: &std::path::Path,
    key: &std::path::Path,
    authority: Option<&std::path::Path>,
) -> Result<FileContent, InvalidTls> {
    let authority = authority.map(pem_files::read).transpose()?.unwrap_or_default();
    Ok([pem_files::read(certificate)?, pem_files::read(key)?, authority])
}

fn server_config(
    certificate: &std::path::Path,
    key: &std::path::Path,
    clients: Option<&KnownClients>,
    protocols: &[&str],
    content: &FileContent,
) -> Result<ServerConfig, InvalidTls> {
    let invalid = |cause: rustls::Error| InvalidTls::identity(certificate, &cause);
    let [chain, private_key, authorities] = content;
    let chain = pem_files::certificates(certificate, chain)?;
    let private_key = pem_files::private_key(key, private_key)?;
    let config = ServerConfig::builder_with_provider(pem_files::provider()).with_safe_default_protocol_versions();
    let config = config.map_err(invalid)?;
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(clients) => config.with_client_cert_verifier(verifier(clients, authorities)?),
    };
    let mut config = config.with_single_cert(chain, private_key).map_err(invalid)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    if clients.is_some() {
        // A resumed session would not show its certificate again, which may have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn verifier(clients: &KnownClients, authorities: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, InvalidTls> {
    let roots = pem_files::authorities(&clients.authority, authorities)?;
    let chains = WebPkiClientVerifier::builder_with_provider(roots, pem_files::provider()).build();
    let invalid = |problem: String| InvalidTls::File { file: clients.authority.clone(), problem };
    let chains = chains.map_err(|cause| invalid(cause.to_string()))?;
    Ok(match clients.role {
        None => chains,
        Some(role) => Arc::new(RoleVerifier { chains, role }),
    })
}

/// Asks of a certificate that its chain is good and that it names a role.
#[derive(Debug)]
struct RoleVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    role: PeerRole,
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now)?;
        let name = self.role.server_name().map_err(|cause| rustls::Error::General(cause.to_string()))?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
