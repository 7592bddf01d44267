//! The programs that are attacked, looked at before anything is started.

use crate::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PIECE_BYTES: usize = 1 << 20;

/// That it is there and can be run.
///
/// # Errors
/// It is not, or cannot.
pub(crate) fn there(path: &Path) -> Result<(), Error> {
    let wrong = |why: &str| Error::Asked(format!("{}: {why}", path.display()));
    let found = std::fs::metadata(path).map_err(|e| wrong(&e.to_string()))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(wrong("this is no program"));
    }
    Ok(())
}

/// Whether two are the same, byte for byte.
///
/// # Errors
/// One cannot be read.
pub(crate) fn same(one: &Path, other: &Path) -> Result<bool, Error> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        for (file, piece) in [(&mut one, &mut left), (&mut other, &mut right)] {
            piece.clear();
            file.take(PIECE_BYTES as u64).read_to_end(piece)?;
        }
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

/// Whether its bytes hold a text anywhere.
pub(crate) fn holds(path: &Path, text: &str) -> bool {
    let looked = Command::new("grep").args(["-q", "-a", "-F", text]).arg(path).stdout(Stdio::null()).status();
    looked.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let long = |last: u8| [vec![7; PIECE_BYTES + 5], vec![last]].concat();
        let (a, b, c) = (file("a", long(1)), file("b", long(1)), file("c", long(2)));
        assert!(same(&a, &b).unwrap() && !same(&a, &c).unwrap() && !same(&a, &file("d", vec![7])).unwrap());
        assert!(there(&a).is_err() && there(folder.path()).is_err() && there(Path::new("/no/such/program")).is_err());
        assert!(there(&std::env::current_exe().unwrap()).is_ok());
        assert!(holds(&file("e", b"\0some ENGRAM text\0".to_vec()), "ENGRAM") && !holds(&a, "ENGRAM"));
    }
}
