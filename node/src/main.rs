//! The `engram` binary: arguments, configuration, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything may speak TLS; another provider that is installed already serves as well.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    engram_node::cli::main(engram_node::run)
}
