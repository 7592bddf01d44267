//! Any bytes as a remote-read request: see the entry, which the gate drives without coverage, too (`tests/hostile`).
//!
//! The decoder is included by its path, so that the rest of the node need not be built with sanitizers.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../entries/remote_read.rs"]
mod entry;
#[allow(dead_code, unreachable_pub, reason = "the target uses a part of the room")]
#[path = "../../src/read/remote/request.rs"]
mod request;
#[allow(dead_code, unreachable_pub, reason = "the target uses a part of the room")]
#[path = "../../src/read/remote/wire.rs"]
mod wire;

fuzz_target!(|data: &[u8]| entry::run(data));
