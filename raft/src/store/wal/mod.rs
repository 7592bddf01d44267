//! The end of the write-ahead log after a power loss: what was never synced is cut off, what was synced and is gone is told.
//!
//! Why: pages that were not synced reach a disk in any order, and a file may be longer than what was written of it. So a
//! log that lost power can end in a record that is half zeros, or have a hole with records behind it. RocksDB takes the
//! first for rot and does not open, and may step over the second and go on behind it. Neither says what matters: whether
//! the damaged place had been synced, and others counted on it.
//!
//! So each batch begins with a row [`SYNCED`]: the last sequence number that was known to be synced when the batch was
//! made. Before the database is opened its logs are read. At the first place that is not a whole record, or after which numbers
//! are missing, records behind it are looked for:
//!
//! - one says that the missing number was synced: the disk lost what it had promised, the log is left as it is, [`Error::Corrupt`];
//! - none does: nothing from there on was ever acknowledged; it is cut off, and kept beside the database as
//!   `torn-<log>-<offset>`;
//! - there are some that say nothing, as versions without that row wrote them, or records of a kind that is not known here:
//!   RocksDB decides alone, as it does about everything else.
//!
//! What cannot be told from a power loss is damage of the last synced record with nothing behind it.
//!
//! Source of the format: RocksDB's wiki, "Write Ahead Log File Format" (blocks of 32 KiB, records in fragments, masked
//! CRC-32C), and `db/write_batch.cc` (sequence number, count, changes).

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Key of the first row of each batch, in the family `raft`: eight bytes, little-endian.
pub(super) const SYNCED: &[u8] = b"\0synced";

/// A record never goes over the border of a block.
const BLOCK: usize = 32 << 10;
/// Masked checksum, length, kind.
const HEADER: usize = 7;
/// Sequence number and count before the changes of a batch.
const BATCH_HEADER: usize = 12;
/// A change "put in a column family", as a batch names it.
const PUT_IN_FAMILY: u8 = 5;
/// Bytes of a batch up to the end of its row [`SYNCED`]: kind, family (at most five bytes), two lengths, key and value.
const HEAD: usize = BATCH_HEADER + 1 + 5 + 2 + SYNCED.len() + 8;

/// What was cut off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Torn {
    /// The log.
    pub(super) log: PathBuf,
    /// Bytes of it that stay.
    pub(super) at: usize,
    /// Bytes that were cut off, of it and of the logs after it.
    pub(super) bytes: usize,
}

/// Makes the logs of the closed database `db` end where the last record of an unbroken row of records ends. What is cut off is kept in
/// `beside`. Answers with what was cut off, if anything was.
///
/// # Errors
/// [`Error::Corrupt`] if what is missing had been synced; [`Error::Io`].
pub(super) fn mend(db: &Path, beside: &Path) -> Result<Option<Torn>, Error> {
    let logs = logs(db)?;
    let mut torn = None;
    let mut row = Row::default();
    for (nth, log) in logs.iter().enumerate() {
        let bytes = std::fs::read(log).map_err(|e| Error::io(log, e))?;
        let at = match row.follow(&bytes) {
            Ends::Whole => continue,
            Ends::Foreign => return Ok(torn),
            Ends::At(at) => at,
        };
        let later = logs.get(nth + 1..).unwrap_or_default();
        let mut behind = Behind::default();
        behind.search(bytes.get(at..).unwrap_or_default(), at % BLOCK);
        // A log that could not be written to its end is followed by one that goes on where it stopped.
        let goes_on = behind == Behind::default() && row.goes_on(later)?;
        if !goes_on {
            for log in later {
                behind.search(&std::fs::read(log).map_err(|e| Error::io(log, e))?, 0);
            }
        }
        let was_synced = match row.next {
            Some(missing) => behind.synced >= Some(missing),
            // The first record since the database was opened is synced before any other is made. Of the first one of a log
            // whose forerunners are gone nobody knows: to refuse is the side on which nothing is forgotten.
            None => behind.any && !behind.unsaid,
        };
        if was_synced {
            let why = format!("{} is damaged at byte {at}, and later records say that it was synced", log.display());
            return Err(Error::corrupt("write-ahead log", why));
        }
        if behind.unsaid {
            return Ok(torn);
        }
        let mut cut = cut(log, at, bytes.get(at..).unwrap_or_default(), beside)?;
        if !goes_on {
            for log in later {
                let bytes = std::fs::read(log).map_err(|e| Error::io(log, e))?;
                cut += self::cut(log, 0, &bytes, beside)?;
            }
        }
        torn = Some(Torn { log: log.clone(), at, bytes: cut });
        if !goes_on {
            break;
        }
    }
    Ok(torn)
}

/// Logs, oldest first.
fn logs(db: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(db).map_err(|e| Error::io(db, e))? {
        let path = entry.map_err(|e| Error::io(db, e))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "log")) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Keeps the end of a log beside, then cuts it off; both are durable when this returns. Answers with its bytes.
fn cut(log: &Path, at: usize, end: &[u8], beside: &Path) -> Result<usize, Error> {
    if end.is_empty() {
        return Ok(0);
    }
    let name = log.file_stem().unwrap_or_default().to_string_lossy();
    let kept = beside.join(format!("torn-{name}-{at}"));
    let keep = || {
        std::fs::write(&kept, end)?;
        File::open(&kept)?.sync_all()?;
        File::open(beside)?.sync_all()
    };
    keep().map_err(|e| Error::io(&kept, e))?;
    let shorten = || {
        let file = File::options().write(true).open(log)?;
        file.set_len(u64::try_from(at).unwrap_or(u64::MAX))?;
        file.sync_all()
    };
    shorten().map_err(|e| Error::io(log, e))?;
    Ok(end.len())
}

/// Records as they follow each other through the logs.
#[derive(Default)]
struct Row {
    /// The number after the last one, once there was a record.
    next: Option<u64>,
}

/// How far a log is a row of records.
enum Ends {
    Whole,
    /// Where the first record begins that is not.
    At(usize),
    /// A record of a kind that is not known here.
    Foreign,
}

impl Row {
    /// Reads on through a log.
    fn follow(&mut self, bytes: &[u8]) -> Ends {
        let mut reader = Reader { bytes, at: 0, phase: 0 };
        loop {
            let record = match reader.next() {
                Next::Record(record) => record,
                Next::End => return Ends::Whole,
                Next::Foreign => return Ends::Foreign,
                Next::Bad(at) => return Ends::At(at),
            };
            if self.next.is_some_and(|next| record.leaves_out_from(next)) {
                return Ends::At(record.at);
            }
            self.next = Some(record.seq.saturating_add(record.count));
        }
    }

    /// Whether the next log that has a record begins with the one that is due.
    fn goes_on(&self, later: &[PathBuf]) -> Result<bool, Error> {
        for log in later {
            let bytes = std::fs::read(log).map_err(|e| Error::io(log, e))?;
            match (Reader { bytes: &bytes, at: 0, phase: 0 }).next() {
                Next::Record(first) => return Ok(self.next.is_some_and(|next| first.seq <= next)),
                Next::End => {}
                Next::Foreign | Next::Bad(_) => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// What is found behind a damaged place.
#[derive(Default, PartialEq, Eq)]
struct Behind {
    /// A record.
    any: bool,
    /// A record that does not say what was synced.
    unsaid: bool,
    /// The greatest number that one says was synced.
    synced: Option<u64>,
}

impl Behind {
    /// Looks at each byte whether a record begins there; the first one lies `phase` bytes into a block.
    fn search(&mut self, bytes: &[u8], phase: usize) {
        let mut at = 0;
        while at + HEADER <= bytes.len() {
            let mut reader = Reader { bytes, at, phase };
            loop {
                match reader.next() {
                    Next::Record(record) => {
                        at = reader.at;
                        self.any = true;
                        self.unsaid |= record.count > 0 && record.synced.is_none();
                        self.synced = self.synced.max(record.synced);
                    }
                    Next::Foreign => {
                        self.unsaid = true;
                        break;
                    }
                    Next::Bad(_) | Next::End => break,
                }
            }
            at += 1;
        }
    }
}

/// A batch as the log holds it.
struct Record {
    /// Where its first fragment begins.
    at: usize,
    /// Number of its first change.
    seq: u64,
    /// Changes, a number each.
    count: u64,
    /// What its row [`SYNCED`] says.
    synced: Option<u64>,
}

impl Record {
    /// Whether numbers from `due` on are missing before it that were not synced when it was made. If all were, they are where
    /// a later log does not need them.
    fn leaves_out_from(&self, due: u64) -> bool {
        self.seq > due && self.synced.is_some_and(|synced| synced.saturating_add(1) < self.seq)
    }
}

enum Next {
    Record(Record),
    /// Nothing is left.
    End,
    /// No whole record begins here.
    Bad(usize),
    Foreign,
}

/// Reads whole records, one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How far into a block the first byte lies.
    phase: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Next {
        let mut head = Vec::new();
        let mut begun = None;
        loop {
            let left = BLOCK - (self.phase + self.at) % BLOCK;
            if left < HEADER {
                self.at += left;
                continue;
            }
            let start = begun.unwrap_or(self.at);
            if self.at >= self.bytes.len() {
                return if begun.is_some() { Next::Bad(start) } else { Next::End };
            }
            let Some((kind, payload)) = fragment(self.bytes.get(self.at..).unwrap_or_default(), left) else {
                return Next::Bad(start);
            };
            let ends = match (kind, begun) {
                (1, None) => true,
                (2, None) => false,
                (3, Some(_)) => false,
                (4, Some(_)) => true,
                (1..=4, _) => return Next::Bad(start),
                _ => return Next::Foreign,
            };
            begun = Some(start);
            head.extend(payload.iter().take(HEAD - head.len()));
            self.at += HEADER + payload.len();
            if ends {
                return batch(start, &head).map_or(Next::Bad(start), Next::Record);
            }
        }
    }
}

/// Kind and payload of the fragment that these bytes begin with, `left` bytes before the end of its block.
fn fragment(bytes: &[u8], left: usize) -> Option<(u8, &[u8])> {
    let (checksum, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (&kind, rest) = rest.split_first()?;
    let length = usize::from(u16::from_le_bytes(*length));
    // Zeros are what a file holds where nothing was written.
    if kind == 0 || HEADER + length > left {
        return None;
    }
    let payload = rest.get(..length)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    let masked = sum.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == u32::from_le_bytes(*checksum)).then_some((kind, payload))
}

/// The record whose batch begins with `head`.
fn batch(at: usize, head: &[u8]) -> Option<Record> {
    let (seq, rest) = head.split_first_chunk()?;
    let (count, changes) = rest.split_first_chunk()?;
    let (seq, count) = (u64::from_le_bytes(*seq), u64::from(u32::from_le_bytes(*count)));
    Some(Record { at, seq, count, synced: synced(changes) })
}

/// The value of the row [`SYNCED`], if it is the first of these changes.
fn synced(changes: &[u8]) -> Option<u64> {
    let rest = changes.strip_prefix(&[PUT_IN_FAMILY])?;
    let family = rest.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let rest = rest.get(family + 1..)?.strip_prefix(&[u8::try_from(SYNCED.len()).ok()?])?;
    let value = rest.strip_prefix(SYNCED)?.strip_prefix(&[8])?;
    Some(u64::from_le_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests;
