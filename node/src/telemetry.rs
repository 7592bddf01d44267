//! Logs: rare, structured, one line for one event a person may act on.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::LogFormat;

/// Begins to log to standard error. `level` is a level (`info`) or a filter (`info,engram_raft=debug`); a second call
/// in one process changes nothing.
///
/// # Errors
/// The filter does not parse.
pub fn init(level: &str, format: LogFormat) -> Result<(), String> {
    // What openraft warns of at every beat, a member that is silent, the reconciler says once.
    let filter = EnvFilter::try_new(format!("{level},openraft=error"))
        .or_else(|_| EnvFilter::try_new(level))
        .map_err(|e| format!("log-level {level:?}: {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(false);
    // A subscriber that is set already stays: tests start several nodes in one process.
    let _set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
