//! Any bytes as a remote-read request: no harm, and what is understood keeps its bounds.
//!
//! Whoever includes this names the room it is about beside it.

use super::request::{MATCHERS_MAX, QUERIES_MAX, decode, decode_plain};

/// One case.
pub fn run(data: &[u8]) {
    for read in [decode(data), decode_plain(data)].into_iter().flatten() {
        assert!(read.queries.len() <= QUERIES_MAX);
        assert!(read.queries.iter().map(|query| query.matchers.len()).sum::<usize>() <= MATCHERS_MAX);
        for query in &read.queries {
            assert!(query.range.start <= query.range.end);
            let _passes = query.matchers.iter().filter(|matcher| matcher.matches("abc")).count();
        }
    }
}
