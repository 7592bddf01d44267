//! Any bytes as `meta.json` and as tombstones: see the entry, which the gate drives without coverage, too (`tests/hostile`).
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../entries/block_small_files.rs"]
mod entry;

fuzz_target!(|data: &[u8]| entry::run(data));
