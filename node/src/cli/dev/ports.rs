//! Who listens where: chosen once, then kept in the directory, because the nodes know each other by these addresses.

use std::net::TcpListener;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The first ports that are tried: those of a single node.
const HTTP_FIRST: u16 = 9009;
const GRPC_FIRST: u16 = 9095;
const FILE: &str = "cluster.json";

/// One node's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Its zone.
    pub(super) zone: String,
    /// Where its API answers.
    pub(super) http: String,
    /// Where other nodes reach it.
    pub(super) grpc: String,
}

/// The places of `nodes` nodes: those that are known, and new ones for the rest.
pub(super) fn places(dir: &Path, (nodes, zones): (u64, u64), any_ports: bool) -> Result<Vec<Place>, String> {
    let path = dir.join(FILE);
    let say = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut places: Vec<Place> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| say(&e))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(say(&error)),
    };
    // Held until all are chosen, so that none is given twice.
    let mut held = Vec::new();
    for i in places.len() as u64..nodes {
        let offset = u16::try_from(i).unwrap_or(u16::MAX);
        let wanted = |first: u16| if any_ports { 0 } else { first.saturating_add(offset) };
        let http = free(wanted(HTTP_FIRST), &mut held)?;
        let grpc = free(wanted(GRPC_FIRST), &mut held)?;
        places.push(Place { zone: format!("zone-{}", 1 + i % zones), http, grpc });
    }
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let text = serde_json::to_vec_pretty(&places).map_err(|e| say(&e))?;
    std::fs::write(&path, text).map_err(|e| say(&e))?;
    Ok(places)
}

/// The wanted port, or any.
fn free(wanted: u16, held: &mut Vec<TcpListener>) -> Result<String, String> {
    let listener = TcpListener::bind(("127.0.0.1", wanted)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    let listener = listener.map_err(|e| format!("no port is free: {e}"))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?.to_string();
    held.push(listener);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_chosen_once() {
        let dir = tempfile::tempdir().unwrap();
        let three = places(dir.path(), (3, 2), true).unwrap();
        assert_eq!(three.iter().map(|place| place.zone.as_str()).collect::<Vec<_>>(), ["zone-1", "zone-2", "zone-1"]);
        let four = places(dir.path(), (4, 2), false).unwrap();
        assert_eq!((four.len(), &four[..3]), (4, &three[..]));
        let mut all: Vec<&str> = four.iter().flat_map(|place| [place.http.as_str(), &place.grpc]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
    }
}
