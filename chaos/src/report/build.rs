//! Which programs took part in a run: a version alone names no build, so the hash of the file stands beside it, the one
//! that `sha256sum` prints.

use crate::peer;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use serde::Serialize;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

/// Read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A program.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Build {
    /// What it was in the run.
    role: &'static str,
    path: String,
    version: String,
    bytes: u64,
    /// Empty: the file could not be read.
    sha256: String,
}

impl Build {
    /// Looks at a file.
    pub(crate) fn of(role: &'static str, path: &Path) -> Self {
        let program = path.display().to_string();
        let version = peer::first_line(&program, &["--version".to_owned()]);
        let (bytes, sha256) = hash(path).unwrap_or_default();
        Self { role, path: program, version, bytes, sha256 }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { role, path, version, bytes, sha256 } = self;
        format!("{role}: {path}, {version}, {bytes} bytes, sha256 {sha256}")
    }
}

/// Length and hash of a file.
fn hash(path: &Path) -> Option<(u64, String)> {
    let mut state = TLS13_AES_128_GCM_SHA256.tls13()?.common.hash_provider.start();
    let (mut file, mut piece, mut bytes) = (std::fs::File::open(path).ok()?, vec![0; PIECE_BYTES], 0);
    loop {
        let read = file.read(&mut piece).ok()?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        state.update(&piece[..read]);
    }
    let mut text = String::new();
    for byte in state.finish().as_ref() {
        let _text = write!(text, "{byte:02x}");
    }
    Some((bytes, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_everybody_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4, the example of one block.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash(&path), Some((3, known.to_owned())));
        assert_eq!(hash(&folder.path().join("none")), None);
    }
}
