//! `engram-chaos`: arguments in, verdict and exit code out.

fn main() -> std::process::ExitCode {
    engram_chaos::main()
}
