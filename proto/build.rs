//! Generates the messages and services from `protos/` without an installed protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["cosec/worker/v1/worker.proto", "cosec/coordinator/v1/coordinator.proto"];
    println!("cargo:rerun-if-changed=protos");
    let descriptors = protox::compile(files, ["protos"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
