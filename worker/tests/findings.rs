//! Replays what fuzzing has found.

use std::path::Path;

#[path = "../fuzz/readers.rs"]
#[expect(clippy::expect_used, reason = "fuzzing has no other way to say that it cannot go on")]
mod readers;

#[test]
fn findings_are_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings");
    let mut replayed = 0;
    for reader in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let read = match reader.file_name().unwrap().to_str().unwrap() {
            "config" => readers::config,
            "index" => readers::index,
            "safetensors" => readers::safetensors,
            "pickle" => readers::pickle,
            "gguf" => readers::gguf,
            "adapter" => readers::adapter,
            other => panic!("no reader is called {other}"),
        };
        for finding in std::fs::read_dir(&reader).unwrap().map(|entry| entry.unwrap().path()) {
            println!("{}", finding.display());
            read(&std::fs::read(finding).unwrap());
            replayed += 1;
        }
    }
    assert!(replayed > 0, "there are no findings to replay");
}
