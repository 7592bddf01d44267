//! Chaos: the adversary. It meets a store only from outside, as its clients do, and distrusts the answers.
//!
//! - `load` writes realistic series by remote write, queries them as dashboards do, measures both and compares
//!   what is read back with what was acknowledged. It speaks to any Prometheus-compatible server.
//! - `kill` starts an `engram`, kills it in the middle of writes, starts it again and requires every
//!   acknowledged sample, none twice and none invented.
//! - `run` starts a cluster, breaks it under load in every way it can, and holds what clients saw against what is
//!   promised: `scenario` says what there is, `run` plays it with `cluster` (nodes and the network between them),
//!   `workload` (clients), `nemesis` (faults), `history` (what happened), `check` (what must hold) and `report`.
//! - `mutants` plays scenarios with builds that are broken on purpose, and requires each to be caught; `hard` has the
//!   scenarios made for it.
//!
//! - `soak` mixes faults without end; each episode is a run.
//! - `peer`: another store in place of ours, described by a file.
//! - `binary`: the programs that are attacked; `interrupt`: being asked to end.
//!
//! - `sim` (a feature of the build) runs a whole cluster in one thread with simulated time, network, disks and metadata,
//!   thousands of times, each replayed by its seed; the same checkers judge. It alone links the node.
//!
//! Below them: `client` is the one way to a server, `wire` the bytes of remote write.

mod args;
mod binary;
mod check;
mod client;
mod cluster;
mod error;
mod hard;
mod history;
mod interrupt;
mod kill;
mod load;
mod mutants;
mod nemesis;
mod peer;
mod report;
mod run;
mod scenario;
#[cfg(any(test, feature = "sim"))]
mod sim;
mod soak;
mod wire;
mod workload;

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

/// What the command line's own reader ends with as well.
const ASKED_WRONGLY: u8 = 2;

/// Reads the arguments, runs what they name, prints its verdict.
///
/// Ends with 0 when everything held, 1 when something did not or could not be judged, 2 when it was asked wrongly.
#[must_use]
pub fn main() -> ExitCode {
    let command = args::Command::parse();
    match &command {
        args::Command::Guard { parent, network, command } => {
            return complain(&cluster::guard(*parent, network.as_deref(), command).to_string());
        }
        args::Command::Run(args::Run { how, .. })
        | args::Command::Mutants(args::Mutants { how, .. })
        | args::Command::Soak(args::Soak { how, .. }) => {
            // In this order: the first begins this program again.
            cluster::enter_own_mounts();
            cluster::enter_own_network(how.network);
        }
        args::Command::List => cluster::enter_own_mounts(),
        #[cfg(any(test, feature = "sim"))]
        args::Command::Sim(args) => return simulate(args),
        args::Command::Load(_) | args::Command::Kill(_) => {}
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        complain("another TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("the runtime did not start: {error}")),
    };
    let verdict = runtime.block_on(async {
        match command {
            args::Command::Load(args) => load::run(args).await,
            args::Command::Kill(args) => kill::run(args).await,
            args::Command::Run(args) => run::run(args).await,
            args::Command::Soak(args) => soak::run(args).await,
            args::Command::Mutants(args) => mutants::run(args).await,
            #[cfg(any(test, feature = "sim"))]
            args::Command::Sim(_) => unreachable!("answered above"),
            args::Command::List | args::Command::Guard { .. } => run::list(),
        }
    });
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error @ error::Error::Asked(_)) => {
            complain(&error.to_string());
            ExitCode::from(ASKED_WRONGLY)
        }
        Err(error) => complain(&error.to_string()),
    }
}

#[cfg(any(test, feature = "sim"))]
fn simulate(args: &args::Sim) -> ExitCode {
    #[cfg(feature = "mutants")]
    let done = args.mutant.as_ref().map_or_else(|| sim::run(args.wanted()), |name| sim::hunt(name, args.wanted()));
    #[cfg(not(feature = "mutants"))]
    let done = sim::run(args.wanted());
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complain(&error.to_string()),
    }
}

fn complain(text: &str) -> ExitCode {
    // When even standard error is closed there is nobody left to tell.
    let _closed = writeln!(std::io::stderr(), "engram-chaos: {text}");
    ExitCode::FAILURE
}
