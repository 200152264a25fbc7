//! Connections to workers whose certificates name what they are.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{self, ClientConfig};
use tonic::transport::Uri;
use tower::Service;

use super::pem_files::{self, InvalidTls};
use super::role::PeerRole;
use super::settings::{MutualFiles, MutualTls};

/// Connects to whatever address is asked for, as the holder of `tls`, to a peer that is a `role`.
///
/// Every connection reads the files anew, since they may have been renewed.
pub(crate) fn connector(
    tls: &MutualTls,
    role: PeerRole,
) -> Result<
    impl Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send> + Send + use<>,
    InvalidTls,
> {
    let files = tls.files()?;
    let name = role.server_name().map_err(|_| InvalidTls::Incomplete("the names of roles"))?;
    Ok(tower::service_fn(move |uri: Uri| connect(files.clone(), name.clone(), uri)))
}

async fn connect(
    files: MutualFiles,
    name: ServerName<'static>,
    uri: Uri,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let config = Arc::new(client_config(&files).map_err(io::Error::other)?);
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let stream = TcpStream::connect(format!("{}:{port}", uri.host().unwrap_or_default())).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
}

fn client_config(files: &MutualFiles) -> Result<ClientConfig, InvalidTls> {
    let MutualFiles { authority, certificate, key } = files;
    let invalid = |cause: rustls::Error| InvalidTls::identity(certificate, &cause);
    let roots = pem_files::authorities(authority, &pem_files::read(authority)?)?;
    let chain = pem_files::certificates(certificate, &pem_files::read(certificate)?)?;
    let key = pem_files::private_key(key, &pem_files::read(key)?)?;
    let config = ClientConfig::builder_with_provider(pem_files::provider()).with_safe_default_protocol_versions();
    let config = config.map_err(invalid)?.with_root_certificates(roots);
    let mut config = config.with_client_auth_cert(chain, key).map_err(invalid)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
