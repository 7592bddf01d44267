//! Damage to a node's files: what a torn write, a dying disk or a stray hand leaves behind.
//!
//! Why: a checksum that nobody has seen fail is a hope. Files are damaged while the node is down, as a machine finds them
//! after a crash, or under its feet. What a node makes of it is its affair: start without what was torn, refuse and say
//! why, take it from the others. What it may not do is answer with what was never written.

use rand::RngExt;
use rand::rngs::StdRng;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Of so many bits one is turned over.
const BITS: u64 = 1_000_000;
/// Bits that are turned over, at most.
const FLIPS_MAX: u64 = 64;
/// What a disk writes at once.
const PAGE: u64 = 4096;

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The log of samples.
    Log,
    /// The metadata group's log and state.
    Meta,
    /// Copies of parts of blocks.
    Cache,
    /// Files of full chunks, which heads read instead of keeping them in memory.
    Chunks,
}

/// What is done to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The newest file of the log ends 1 to 64 bytes before its last written byte; zeros behind, as it is preallocated.
    Torn,
    /// Its last written page is zeros.
    ZeroPage,
    /// It is cut off there: nothing behind.
    Short,
    /// Of each million bits of all these files together, one is turned over; at least one.
    Bits(Part),
}

impl Part {
    /// The directories, below the data directory.
    fn folder(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Meta => "meta",
            Self::Cache => "cache",
            Self::Chunks => "head",
        }
    }

    /// Files whose bytes are evidence; what a library writes for people, or makes anew at each start, is not.
    fn files(self, data: &Path) -> io::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        below(&data.join(self.folder()), &mut all)?;
        let skip = |name: &str| name.starts_with("LOG") || name == "LOCK" || name.starts_with("next");
        all.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| !skip(name)));
        all.sort();
        Ok(all)
    }
}

fn below(folder: &Path, all: &mut Vec<PathBuf>) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { below(&path, all)? } else { all.push(path) }
    }
    Ok(())
}

/// Damages files of the node whose data lie at `data`; says what was done, `None` when there was nothing to damage.
///
/// # Errors
/// The disk under us.
pub(crate) fn inflict(data: &Path, damage: Damage, chance: &mut StdRng) -> io::Result<Option<String>> {
    match damage {
        Damage::Bits(part) => flip_all(&part.files(data)?, chance),
        Damage::Torn | Damage::ZeroPage | Damage::Short => {
            // The newest file that holds anything behind its header.
            for path in Part::Log.files(data)?.into_iter().rev() {
                let file = File::options().read(true).write(true).open(&path)?;
                let end = written(&file)?;
                if end <= PAGE {
                    continue;
                }
                return Ok(Some(format!("{} {}", path.display(), tear(&file, end, damage, chance)?)));
            }
            Ok(None)
        }
    }
}

fn tear(file: &File, end: u64, damage: Damage, chance: &mut StdRng) -> io::Result<String> {
    match damage {
        Damage::ZeroPage => {
            let from = (end - 1) / PAGE * PAGE;
            file.write_all_at(&vec![0; usize::try_from(end - from).unwrap_or(0)], from)?;
            Ok(format!("zeros from {from} to {end}"))
        }
        Damage::Short | Damage::Torn | Damage::Bits(_) => {
            let cut = chance.random_range(1..=64);
            let (at, len) = (end - cut, file.metadata()?.len());
            file.set_len(at)?;
            if damage == Damage::Torn {
                file.set_len(len)?;
            }
            Ok(format!("without its last {cut} bytes of {end}"))
        }
    }
}

/// Where the last byte that is not zero ends.
fn written(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let part = &mut piece[..usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(part, start)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Bits are hit as a disk would hit them: a large file more often than a small one.
fn flip_all(files: &[PathBuf], chance: &mut StdRng) -> io::Result<Option<String>> {
    let mut all = Vec::new();
    for path in files {
        let file = File::options().read(true).write(true).open(path)?;
        // Zeros that were only set aside are not evidence of anything.
        let end = written(&file)?;
        all.push((path, file, end));
    }
    let total: u64 = all.iter().map(|(_, _, end)| end).sum();
    if total == 0 {
        return Ok(None);
    }
    let mut hit = std::collections::BTreeSet::new();
    let count = (total * 8).div_ceil(BITS).min(FLIPS_MAX);
    for _ in 0..count {
        let (mut at, bit) = (chance.random_range(0..total), chance.random_range(0..8_u32));
        for (path, file, end) in &all {
            if at < *end {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
                hit.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
                break;
            }
            at -= end;
        }
    }
    Ok(Some(format!("{count} bits turned over in {hit:?}")))
}

#[cfg(test)]
mod tests {
    //! Goal: files are damaged as they are said to be, and only there.
    //! Method: a log of one page of header and some bytes, preallocated.

    use super::*;
    use rand::SeedableRng;

    const END: usize = 10_000;

    fn log() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("log")).unwrap();
        let mut bytes = vec![7; END];
        bytes.resize(20_000, 0);
        std::fs::write(data.path().join("log/0001.log"), bytes).unwrap();
        std::fs::write(data.path().join("log/next.tmp"), [9; 100]).unwrap();
        data
    }

    fn after(damage: Damage) -> Vec<u8> {
        let data = log();
        let said = inflict(data.path(), damage, &mut StdRng::seed_from_u64(1)).unwrap();
        assert!(said.is_some());
        assert_eq!(std::fs::read(data.path().join("log/next.tmp")).unwrap(), [9; 100]);
        std::fs::read(data.path().join("log/0001.log")).unwrap()
    }

    #[test]
    fn a_tail_is_torn_where_the_bytes_end() {
        let kept = |bytes: &[u8]| bytes.iter().take_while(|byte| **byte == 7).count();
        for (damage, length) in [(Damage::Torn, Some(20_000)), (Damage::Short, None)] {
            let bytes = after(damage);
            assert!((END - 64..END).contains(&kept(&bytes)), "{damage:?}");
            assert_eq!(bytes.len(), length.unwrap_or(kept(&bytes)));
        }
        assert_eq!(kept(&after(Damage::ZeroPage)), 8192);
    }

    #[test]
    fn bits_are_turned_over_in_what_was_written() {
        let bytes = after(Damage::Bits(Part::Log));
        assert_eq!(bytes[..END].iter().filter(|byte| **byte != 7).count(), 1);
        assert!(bytes[END..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn where_nothing_was_written_nothing_is_damaged() {
        let data = tempfile::tempdir().unwrap();
        for damage in [Damage::Torn, Damage::Bits(Part::Meta)] {
            assert_eq!(inflict(data.path(), damage, &mut StdRng::seed_from_u64(1)).unwrap(), None);
        }
    }
}
