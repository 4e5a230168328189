//! Compiles the control API without a protoc of the system.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/souk/control/v1/control.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
