//! Any bytes as a remote-read request: no harm, and what is understood keeps its bounds.
//!
//! The decoder is included by its path, so that the rest of the node need not be built with sanitizers.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub, reason = "the target uses a part of the room")]
#[path = "../../src/read/remote/request.rs"]
mod request;
#[allow(dead_code, unreachable_pub, reason = "the target uses a part of the room")]
#[path = "../../src/read/remote/wire.rs"]
mod wire;

use request::{MATCHERS_MAX, QUERIES_MAX, decode, decode_plain};

fuzz_target!(|data: &[u8]| {
    for read in [decode(data), decode_plain(data)].into_iter().flatten() {
        assert!(read.queries.len() <= QUERIES_MAX);
        assert!(read.queries.iter().map(|query| query.matchers.len()).sum::<usize>() <= MATCHERS_MAX);
        for query in &read.queries {
            assert!(query.range.start <= query.range.end);
            let _passes = query.matchers.iter().filter(|matcher| matcher.matches("abc")).count();
        }
    }
});
