//! Any bytes as what another node sends: see the entry, which the gate drives without coverage, too (`tests/hostile`).
//!
//! It needs all of the node, hence a feature: `cargo +nightly fuzz run --features peer peer_wire`.
#![no_main]

use engram_node::blocks;
use engram_node::peer::{self, wire};
use libfuzzer_sys::fuzz_target;

#[path = "../entries/peer_wire.rs"]
mod entry;

fuzz_target!(|data: &[u8]| entry::run(data));
