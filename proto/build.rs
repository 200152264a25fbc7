//! Generates the messages and services from `protos/`. Where protoc is missing, deploy/protoc brings it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["cosec/worker/v1/worker.proto", "cosec/coordinator/v1/coordinator.proto"];
    println!("cargo:rerun-if-changed=protos");
    Ok(tonic_prost_build::configure().compile_protos(&files, &["protos"])?)
}
