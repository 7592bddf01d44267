//! How far it is: a bar on a terminal, a line now and then elsewhere. And Ctrl-C, which ends the writing in order.

use super::writer::Orders;
use engram_model::time::Stopwatch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Shows the progress until `over`; on Ctrl-C asks the writers to stop after what is in flight.
pub(crate) async fn show(orders: &Orders, total: u64, over: &AtomicBool) {
    let terminal = std::io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(
        Some(total),
        if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
    );
    let style = "{bar:40} {percent:>3} %  {human_pos} of {human_len} samples  {per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let start = Stopwatch::start();
    let mut told_seconds = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while !over.load(Ordering::Relaxed) {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => orders.stop.store(true, Ordering::Relaxed),
        }
        let done = orders.done.load(Ordering::Relaxed);
        bar.set_position(done);
        let seconds = start.elapsed().as_secs();
        if !terminal && seconds >= told_seconds + 5 {
            told_seconds = seconds;
            // When standard error is closed there is nobody to tell.
            let _closed = writeln!(std::io::stderr(), "load: {done} of {total} samples, {} a second", done / seconds);
        }
    }
    bar.finish_and_clear();
}
