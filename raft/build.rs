//! Stubs of `proto/raft.proto`, compiled without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/raft.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
