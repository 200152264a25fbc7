//! Error messages of a worker that cannot use a GPU, on the stand-in of `tests/run`.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::path::Path;
use std::process::Command;

/// Starts a worker that must fail, and returns its error.
fn complaint(device: &str, (setting, value): (&str, &str)) -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo-pair/base");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_cosec-worker"));
    worker.args(["serve", "--role", "base", "--listen", "127.0.0.1:0", "--device", device, "--model"]).arg(model);
    let output = worker.env(setting, value).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "needs the stand-in for a GPU that tests/run gives it"]
fn what_keeps_a_gpu_from_being_used_is_named() {
    for (device, setting, expected) in [
        (
            "cuda:7",
            ("STAND_IN_MEMORY_MIB", "64"),
            "device is cuda:7; it cannot be used: there is no GPU 7; the driver sees 1",
        ),
        (
            "cuda",
            ("STAND_IN_DRIVER", "12040"),
            "the driver is made for CUDA 12.4, libnvrtc is of CUDA 13.0: install a newer driver",
        ),
        ("cuda", ("STAND_IN_CAPABILITY", "75"), "has compute capability 7.5; at least 8.0 is needed"),
        ("cuda", ("STAND_IN_MEMORY_MIB", "8"), "the weights take 20 MiB, the memory available is 7 MiB"),
        ("cuda", ("LD_LIBRARY_PATH", ""), "libcuda is not found; install NVIDIA's driver"),
    ] {
        let found = complaint(device, setting);
        assert!(found.contains(expected), "{setting:?}: {found}");
    }
}
