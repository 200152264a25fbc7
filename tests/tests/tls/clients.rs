//! HTTP and gRPC of a coordinator over TLS, with and without certificates of clients.

use cosec_tests::certificates::Pair;
use cosec_tests::fleet::coordinator;
use tempfile::TempDir;

use crate::identities::{OwnAuthority, let_in};

#[tokio::test]
async fn clients_are_shown_a_certificate_and_may_need_one() {
    let (own, other, logs) = (OwnAuthority::new(), OwnAuthority::new(), TempDir::new().unwrap());
    let server = own.authority.issue("server");
    let write = |name: &str, more: &str| {
        let file = own.folder.path().join(name);
        let text =
            format!("[tls]\ncertificate_file = {:?}\nprivate_key_file = {:?}\n{more}", server.cert, server.key);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let workers = ["--base", "127.0.0.1:1", "--expert", "127.0.0.1:1"];
    let open = write("open.toml", "");
    let open = coordinator("open", &[&["--config", &open], &workers[..]].concat(), logs.path()).await;
    let closed = write("closed.toml", &format!("client_authority_file = {:?}", own.authority.file));
    let closed = coordinator("closed", &[&["--config", &closed], &workers[..]].concat(), logs.path()).await;

    let ca = &own.authority.file;
    let ports = async |coordinator: &cosec_tests::fleet::Coordinator, pair: Option<&Pair>| {
        let http = coordinator.http.trim_start_matches("http://");
        let h1 = let_in(http, ca, "127.0.0.1", pair, "http/1.1").await;
        let h2 = let_in(http, ca, "127.0.0.1", pair, "h2").await;
        let grpc = let_in(&coordinator.grpc, ca, "127.0.0.1", pair, "h2").await;
        [h1.is_ok(), h2.is_ok(), grpc.is_ok()]
    };
    assert_eq!(ports(&open, None).await, [true; 3]);
    let client = own.authority.issue_for("client", &["editor"]);
    assert_eq!(ports(&closed, Some(&client)).await, [true; 3]);
    assert_eq!(ports(&closed, None).await, [false; 3]);
    assert_eq!(ports(&closed, Some(&other.authority.issue_for("client", &["editor"]))).await, [false; 3]);
    assert_eq!(ports(&closed, Some(&own.authority.issue_expired("late", &["editor"]))).await, [false; 3]);
    // Whoever trusts another authority goes away.
    let http = open.http.trim_start_matches("http://");
    assert!(let_in(http, &other.authority.file, "127.0.0.1", None, "http/1.1").await.is_err());
    // In the clear nothing is said.
    assert!(reqwest::get(format!("{}/health/live", open.http)).await.is_err());
}
