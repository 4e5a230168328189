//! Compiles the control API without a protoc of the system.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/souk/control/v1/control.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        // Recordings of the dashboard hold them as JSON; a field that an older recording lacks is as absent on the wire.
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .boxed(".souk.control.v1.WatchReply.what.snapshot")
        .compile_fds(files)?;
    Ok(())
}
