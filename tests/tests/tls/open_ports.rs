//! A port that other machines reach is closed, unless the operator said otherwise.

use std::process::{Command, Stdio};

use cosec_launcher::Process;
use cosec_tests::fleet::{PATIENCE, binaries, model};
use tempfile::TempDir;
use tokio::time::Instant;

fn refused(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(binaries().join(program));
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_plain_port_for_all_needs_the_operators_word() {
    let model = model("base");
    let model = model.to_str().unwrap();
    let serve = ["serve", "--role", "base", "--model", model];
    for (flags, setting) in [
        (["--listen", "0.0.0.0:0", "--metrics-listen", "127.0.0.1:0"], "listen is 0.0.0.0:"),
        (["--listen", "127.0.0.1:0", "--metrics-listen", "0.0.0.0:0"], "metrics_listen is 0.0.0.0:"),
    ] {
        let said = refused("cosec-worker", &[&serve[..], &flags].concat());
        assert!(
            said.contains(setting) && said.contains("--insecure") && said.contains("tls.certificate_file"),
            "{said}"
        );
    }
    let serve = ["--model", "demo", "--tokenizer", model, "--base", "127.0.0.1:1", "--expert", "127.0.0.1:1"];
    for (flags, setting) in [
        (["--http-listen", "0.0.0.0:0", "--grpc-listen", "127.0.0.1:0"], "http_listen is 0.0.0.0:"),
        (["--http-listen", "127.0.0.1:0", "--grpc-listen", "0.0.0.0:0"], "grpc_listen is 0.0.0.0:"),
    ] {
        let said = refused("cosec-coordinator", &[&serve[..], &flags].concat());
        assert!(
            said.contains(setting) && said.contains("--insecure") && said.contains("tls.certificate_file"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn with_the_operators_word_it_is_served_and_probes_need_none() {
    let logs = TempDir::new().unwrap();
    let mut command = tokio::process::Command::new(binaries().join("cosec-worker"));
    command.args(["serve", "--role", "base", "--threads", "1", "--listen", "0.0.0.0:0", "--insecure"]);
    command.args(["--health-listen", "0.0.0.0:0", "--kv-memory-mib", "64", "--model"]).arg(model("base"));
    let mut process = Process::start("worker", &mut command, logs.path()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    process.announced("listening on 0.0.0.0:", deadline).await.unwrap();
    let health = process.announced("health on 0.0.0.0:", deadline).await.unwrap();
    let page = async |path: &str| {
        let answer = reqwest::get(format!("http://127.0.0.1:{health}/health/{path}")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(page("live").await, (200, "live\n".to_owned()));
    while page("ready").await.0 != 200 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    let mut command = tokio::process::Command::new(binaries().join("cosec-coordinator"));
    command.args(["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--health-listen", "0.0.0.0:0"]);
    command.args(["--model", "demo", "--base", "127.0.0.1:1", "--expert", "127.0.0.1:1", "--tokenizer"]);
    let mut process = Process::start("coordinator", command.arg(model("base")), logs.path()).unwrap();
    let health = process.announced("health on 0.0.0.0:", deadline).await.unwrap();
    let ready = reqwest::get(format!("http://127.0.0.1:{health}/health/ready")).await.unwrap();
    assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (503, "not ready\n"));
}
