//! A certificate authority for one test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// Signs certificates for loopback.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// PEM file of its own certificate.
    pub file: String,
}

/// PEM files of a certificate and its key.
#[derive(Clone, Debug)]
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
        self.issue_for(name, &["127.0.0.1"])
    }

    /// Issues a certificate for `names`; its files begin with `file` and take the place of earlier ones.
    #[must_use]
    pub fn issue_for(&self, file: &str, names: &[&str]) -> Pair {
        self.sign(file, params(file, names))
    }

    /// Issues a certificate that has expired.
    #[must_use]
    pub fn issue_expired(&self, file: &str, names: &[&str]) -> Pair {
        let mut params = params(file, names);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign(file, params)
    }

    fn sign(&self, file: &str, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair {
            cert: write(&self.folder, &format!("{file}.pem"), &cert),
            key: write(&self.folder, &format!("{file}.key"), &key.serialize_pem()),
        }
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(folder: &Path, name: &str, pem: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, pem).unwrap();
    path.to_str().unwrap().to_owned()
}
