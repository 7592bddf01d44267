//! One run of the program: logs, signals, the banner, the node from start to stop.

use std::process::ExitCode;

use engram_model::time::Clock;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Loaded};
use crate::{Node, StartError, telemetry};

/// When this variable is there, the node stops when its standard input ends: so it never outlives who has started it.
pub(crate) const STDIN_KEEPS: &str = "DEV_CLUSTER_STDIN";

/// Runs a node until it is told to stop or has to. 0: told to; 1: had to.
#[must_use]
pub fn run(loaded: Loaded) -> ExitCode {
    let config = loaded.config;
    if let Err(why) = telemetry::init(&config.log_level, config.log_format) {
        eprintln!("engram: {why}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("engram").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("engram: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(until_stopped(config));
    // A blocking task that hangs on a dead disk must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node ends");
            eprintln!("engram: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn until_stopped(config: Config) -> Result<(), StartError> {
    let (asked, stop) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(stop_on_signal(asked.clone()));
    if std::env::var_os(STDIN_KEEPS).is_some() {
        stop_with_stdin(asked.clone());
    }
    #[cfg(feature = "mutants")]
    if let Some(mutant) = engram_model::mutant::Mutant::ALL.into_iter().find(|mutant| mutant.lives()) {
        tracing::error!("this program is broken on purpose: mutant {}", mutant.name());
    }
    let told = config.clone();
    // A signal while the log is replayed ends the start: what was promised meanwhile is in the log.
    let node = tokio::select! {
        node = Node::start(config, Clock::real(), stop.clone()) => node?,
        () = asked.cancelled() => return Ok(()),
    };
    eprint!("{}", banner(&told, &node));
    let heir = node.heir();
    tasks.spawn(async move {
        asked.cancelled().await;
        // While this node still answers the others.
        heir.await;
        stop.cancel();
    });
    node.run().await
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heard: the node stops only when killed, which loses nothing");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    // The second signal: at once. What was acknowledged is on disk.
    std::process::exit(130);
}

/// A thread of its own, that nobody waits for: reading standard input cannot be broken off.
fn stop_with_stdin(stop: CancellationToken) {
    std::thread::spawn(move || {
        // The end and a failure mean the same: who has started this node is gone.
        let _ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.cancel();
    });
}

fn banner(config: &Config, node: &Node) -> String {
    let url = format!("http://{}", node.http_address);
    let width = url.len().max(node.grpc_address.to_string().len());
    format!(
        "engram {version} · {kind} · zone {zone}\n  \
         HTTP   {url:width$}   Prometheus API, remote write, /metrics\n  \
         gRPC   {grpc:width$}   other nodes\n  \
         data   {data}\n\n\
         Send data from Prometheus with these three lines in prometheus.yml:\n\n\
         remote_write:\n  - url: {url}/api/v1/push\n    headers: {{ X-Scope-OrgID: anonymous }}\n\n",
        version = env!("CARGO_PKG_VERSION"),
        kind = if config.join.is_empty() { "one-node cluster" } else { "member of a cluster" },
        zone = config.zone,
        grpc = node.grpc_address,
        data = config.data_dir.display(),
    )
}
