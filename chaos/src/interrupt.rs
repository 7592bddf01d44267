//! Being asked to end: Ctrl-C, SIGTERM, and SIGHUP unless whoever started us has it ignored. Whoever waits for this drops
//! what it is at, and with that every node ends and everything of the run goes.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for it. To be waited for from the beginning to the end: a signal that nobody waits for just then is lost.
pub(crate) async fn asked_to_end() {
    let hang_up = if hang_up_is_ignored() { None } else { signal(SignalKind::hangup()).ok() };
    let terminate = signal(SignalKind::terminate()).ok();
    tokio::select! {
        done = tokio::signal::ctrl_c() => if done.is_err() { std::future::pending::<()>().await },
        () = once(terminate) => {}
        () = once(hang_up) => {}
    }
}

async fn once(signal: Option<Signal>) {
    match signal {
        Some(mut signal) => while signal.recv().await.is_none() {},
        None => std::future::pending().await,
    }
}

/// As `nohup` has it: then the run is to outlive the terminal.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores_hang_up(&status)
}

fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_started_us_may_have_the_hang_up_ignored() {
        assert!(ignores_hang_up("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hang_up("SigIgn:\t0000000000001000\n") && !ignores_hang_up(""));
    }
}
