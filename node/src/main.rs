//! The `engram` binary: arguments, configuration, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    engram_node::cli::main(engram_node::run)
}
