//! A certificate authority for one test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Signs certificates for loopback.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// PEM file of its own certificate.
    pub file: String,
}

/// PEM files of a certificate and its key.
pub struct Pair {
    /// Certificate.
    pub cert: String,
    /// Key.
    pub key: String,
}

impl Authority {
    /// Makes an authority whose files go to `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let file = write(folder, "ca.pem", &params.self_signed(&key).unwrap().pem());
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key), file }
    }

    /// Issues a certificate for 127.0.0.1 in the name of `name`, good for servers and clients.
    #[must_use]
    pub fn issue(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair {
            cert: write(&self.folder, &format!("{name}.pem"), &cert),
            key: write(&self.folder, &format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

fn write(folder: &Path, name: &str, pem: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, pem).unwrap();
    path.to_str().unwrap().to_owned()
}
