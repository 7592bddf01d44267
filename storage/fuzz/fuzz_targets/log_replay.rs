//! Replay of a log whose bytes somebody changed: see the entry, which the gate drives without coverage, too (`tests/hostile`).
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../entries/log_replay.rs"]
mod entry;

fuzz_target!(|data: &[u8]| entry::run(data));
