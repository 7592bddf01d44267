//! Any bytes as `meta.json` and as tombstones: no harm, and what is read as meta is written and read back the same.
use std::path::Path;

use engram_storage::block::{Meta, Tombstones};

/// One case.
pub fn run(data: &[u8]) {
    let path = Path::new("meta.json");
    if let Ok(meta) = Meta::read(path, data) {
        assert!(meta.range().start <= meta.range().end);
        let _sizes = meta.sizes();
        let again = Meta::read(path, &meta.to_bytes()).expect("what was written is read");
        assert_eq!(again, meta);
    }
    if let Ok(tombstones) = Tombstones::read(data) {
        let _first = tombstones.of(0);
    }
}
