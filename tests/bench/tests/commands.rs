//! The commands on models of a few million weights: that they come to their figures, not what the figures are.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

use std::process::Command;

fn output(program: &str, arguments: &[&str]) -> String {
    let work = tempfile::tempdir().unwrap();
    let arguments = [arguments, &["--work", work.path().to_str().unwrap()]].concat();
    run(program, &arguments)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The cells of the rows of tables that begin with `name`.
fn rows<'a>(text: &'a str, name: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>();
    let is_row = |cells: &Vec<&str>| cells.len() > 1 && cells[0].starts_with(name);
    text.lines().map(cells).filter(is_row).collect()
}

#[test]
fn the_worker_is_measured_at_every_batch() {
    let arguments = ["--quick", "--rounds", "1", "--shape", "llama-5m", "--format", "bf16"];
    let text = output(env!("CARGO_BIN_EXE_cosec-bench-worker"), &arguments);
    let decode = rows(&text, "decode, ");
    assert_eq!(decode.len(), 5, "{text}");
    assert!(decode.iter().all(|cells| cells[1].parse::<f64>().unwrap() > 0.0), "{text}");
    assert!(text.contains("read bandwidth"), "{text}");
}

#[test]
fn every_way_to_decode_is_measured_and_writes_the_same() {
    let arguments =
        ["--pair", "small", "--acceptance", "0.8", "--streams", "1,2", "--rounds", "1", "--seconds", "0.3"];
    let text = output(env!("CARGO_BIN_EXE_cosec-bench-lookahead"), &arguments);
    for way in ["sequential", "lookahead k=2", "lookahead k=4", "lookahead k=8", "adaptive"] {
        // The first table: rates, acceptance, streams that wrote what they wrote sequentially.
        assert_eq!(rows(&text, way)[0].last(), Some(&"3 of 3"), "{text}");
    }
    assert!(!rows(&text, "adaptive, gather").is_empty(), "{text}");
}

#[test]
fn a_device_is_checked_and_measured() {
    let golden = run(env!("CARGO_BIN_EXE_cosec-bench-gpu"), &["golden", "--device", "cpu", "--root", "../.."]);
    assert!(golden.contains("61 of 61 checks passed on cpu"), "{golden}");
    let arguments = "speed --device cpu --shape llama-5m --prefill 64 --batches 1,2 --seconds 0.2";
    let speed = output(env!("CARGO_BIN_EXE_cosec-bench-gpu"), &arguments.split(' ').collect::<Vec<_>>());
    for name in ["64", "1", "2"] {
        assert!(rows(&speed, name)[0][1].parse::<f64>().unwrap() > 0.0, "{speed}");
    }
    assert!(speed.contains("planned: weights_mib="), "{speed}");
}

#[test]
fn a_cluster_under_load_loses_nothing() {
    let arguments = "--streams 2 --replicas 1 --requests 3 --tokens 24 --rounds 1 --seconds 1.5 --kills 1";
    let text = run(env!("CARGO_BIN_EXE_cosec-bench-load"), &arguments.split(' ').collect::<Vec<_>>());
    for load in ["1x", "4x", "1x, workers killed", "1x, coordinator killed"] {
        let cells = rows(&text, load)[0].clone();
        assert!(cells[5].parse::<u32>().unwrap() > 0, "{text}");
        assert_eq!(cells[7..10], ["0", "0", "0"], "{text}");
    }
}

#[test]
fn what_a_coordinator_takes_is_measured_at_every_size() {
    let arguments = "--sizes 2x3,4x6 --seconds 1 --base-ms 20,0 --expert-ms 2,0";
    let text = run(env!("CARGO_BIN_EXE_cosec-bench-scale"), &arguments.split(' ').collect::<Vec<_>>());
    for size in ["2 workers, 3 streams", "4 workers, 6 streams"] {
        assert!(rows(&text, size)[0][1].parse::<f64>().unwrap() > 0.0, "{text}");
    }
}
