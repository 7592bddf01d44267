//! Reading the log back: every record in order, and the judgement where it ends.
//!
//! The hard question is whether bytes that make no sense are the torn end of a write that nobody was told about, or
//! damage to something acknowledged. The table in `docs/formats/log.md` answers it: a group is written only after
//! the one before was synced, so anything valid *behind* a bad place proves that the bad place had been good.

use std::path::{Path, PathBuf};

use super::group::{self, BLOCK};
use super::{Each, Position, segment};
use crate::Error;
use crate::codec::Reader;
use crate::disk::{Disk, DiskFile};

/// How much is read at once when looking for groups behind the end.
const SCAN_BYTES: usize = 1 << 20;
const _: () = assert!(SCAN_BYTES.is_multiple_of(BLOCK));

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Position of the oldest record kept; equal to `next` when there is none.
    pub oldest: Position,
    /// Position the next append will get.
    pub next: Position,
    /// Records read.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Where a torn group was cut off, if there was one.
    pub torn: Option<(PathBuf, u64)>,
    /// Number and first position of each segment, oldest first.
    pub(super) segments: Vec<(u64, u64)>,
    /// Whether the last segment holds no record.
    pub(super) last_is_empty: bool,
}

/// What stands where the next group is expected.
enum Found {
    Group(group::Header),
    /// Zeros, or the end of the file.
    Zeros,
    /// Anything else.
    Other(&'static str),
}

struct Walk<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    len: u64,
    salt_crc: u32,
    at: u64,
    next: u64,
    /// Body of the group at hand; used again.
    body: Vec<u8>,
}

impl Walk<'_> {
    /// Looks at `at`; a whole group leaves its body in `self.body`.
    fn look(&mut self) -> Result<Found, Error> {
        let mut block = [0; BLOCK];
        let got = self.file.read_at(self.at, &mut block)?;
        let block = &block[..got];
        if block.iter().all(|&b| b == 0) {
            return Ok(Found::Zeros);
        }
        let Some(header) = group::Header::parse(block, self.salt_crc) else {
            return Ok(Found::Other("no group header with the right checksum"));
        };
        if header.kind != group::KIND_RECORDS {
            let what = format!("group of kind {}, written by a newer version", header.kind);
            return Err(Error::corrupt(self.path, self.at, what));
        }
        if header.first != self.next {
            return Ok(Found::Other("group of another position than expected"));
        }
        // The header is checked, but what it says of the length is still held against the file before allocating.
        let body_at = self.at + group::HEADER as u64;
        if body_at + u64::from(header.body) > self.len {
            return Ok(Found::Other("group is longer than the file"));
        }
        self.body.resize(header.body as usize, 0);
        let got = self.file.read_at(body_at, &mut self.body)?;
        if got < self.body.len() || !header.matches(&self.body, self.salt_crc) {
            return Ok(Found::Other("body of a group with a wrong checksum"));
        }
        Ok(Found::Group(header))
    }

    /// Gives the records of the group at hand to `each` and steps over it.
    fn deliver(&mut self, header: group::Header, into: &mut Replayed, each: Each<'_>) -> Result<(), Error> {
        let broken = |broken| Error::broken(self.path, self.at + group::HEADER as u64, broken);
        if header.records == 0 || header.records as usize > group::records_max(self.body.len()) {
            return Err(Error::corrupt(self.path, self.at, format!("group of {} records", header.records)));
        }
        let mut body = Reader::new(&self.body);
        for _ in 0..header.records {
            let payload = group::take_record(&mut body).map_err(broken)?;
            each(Position(self.next), payload)?;
            self.next += 1;
            into.records += 1;
            into.payload_bytes += payload.len() as u64;
        }
        body.end().map_err(broken)?;
        self.at += header.disk_bytes();
        Ok(())
    }

    /// Whether the header of a later group of this segment stands behind `at`.
    fn later_group(&self) -> Result<Option<u64>, Error> {
        let mut chunk = vec![0; SCAN_BYTES];
        let mut at = self.at + BLOCK as u64;
        while at < self.len {
            let got = self.file.read_at(at, &mut chunk)?;
            if got == 0 {
                break;
            }
            for (i, block) in chunk[..got].chunks(BLOCK).enumerate() {
                if group::Header::parse(block, self.salt_crc).is_some_and(|header| header.first > self.next) {
                    return Ok(Some(at + (i * BLOCK) as u64));
                }
            }
            at += SCAN_BYTES as u64;
        }
        Ok(None)
    }
}

/// Gives every record in `dir` to `each`, in order. Changes nothing but cuts off the last segment behind its last
/// whole group, synced.
///
/// # Errors
/// [`Error::Corrupt`] for damage that is not a torn tail, [`Error::Io`], and whatever `each` returns.
pub fn replay(disk: &dyn Disk, dir: &Path, each: Each<'_>) -> Result<Replayed, Error> {
    let mut numbers: Vec<u64> = disk.list(dir)?.iter().filter_map(|name| segment::number_of(name)).collect();
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if pair[0] + 1 != pair[1] {
            return Err(Error::corrupt(&segment::path(dir, pair[1]), 0, format!("segment {} is missing", pair[0] + 1)));
        }
    }
    let mut found = Replayed { oldest: Position(1), next: Position(1), ..Replayed::default() };
    let mut body = Vec::new();
    for (i, &number) in numbers.iter().enumerate() {
        let path = segment::path(dir, number);
        let file = disk.open(&path)?;
        let is_last = i + 1 == numbers.len();
        if is_last {
            file.sync_data()?;
            file.drop_cache()?;
        }
        let header = segment::Header::read(file.as_ref(), &path, number)?;
        if i == 0 {
            found.oldest = Position(header.first);
            found.next = found.oldest;
        } else if header.first != found.next.0 {
            let what = format!("begins at position {}, {} was expected: records are missing", header.first, found.next);
            return Err(Error::corrupt(&path, 0, what));
        }
        let ends_at = if is_last {
            None
        } else {
            let path = segment::path(dir, numbers[i + 1]);
            Some(segment::Header::read(disk.open(&path)?.as_ref(), &path, numbers[i + 1])?.first)
        };
        let mut walk = Walk {
            file: file.as_ref(),
            path: &path,
            len: file.len()?,
            salt_crc: header.salt_crc(),
            at: BLOCK as u64,
            next: header.first,
            body: std::mem::take(&mut body),
        };
        walk_segment(&mut walk, ends_at, &mut found, each)?;
        found.next = Position(walk.next);
        found.segments.push((number, header.first));
        found.last_is_empty = walk.next == header.first;
        body = std::mem::take(&mut walk.body);
    }
    Ok(found)
}

/// Reads one segment; `ends_at` is the next segment's first position, `None` for the last.
fn walk_segment(walk: &mut Walk<'_>, ends_at: Option<u64>, found: &mut Replayed, each: Each<'_>) -> Result<(), Error> {
    while ends_at != Some(walk.next) {
        let why = match walk.look()? {
            Found::Group(header) => {
                walk.deliver(header, found, each)?;
                continue;
            }
            Found::Zeros => None,
            Found::Other(why) => Some(why),
        };
        let what = why.unwrap_or("zeros where a group was");
        if let Some(ends_at) = ends_at {
            let what = format!("{what}: position {} is lost, the next segment begins at {ends_at}", walk.next);
            return Err(Error::corrupt(walk.path, walk.at, what));
        }
        if let Some(later) = walk.later_group()? {
            let what = format!("{what}: position {} is lost, a later group stands at byte {later}", walk.next);
            return Err(Error::corrupt(walk.path, walk.at, what));
        }
        if why.is_some() {
            found.torn = Some((walk.path.to_owned(), walk.at));
        }
        // Also after a clean end: the space preallocated behind it is not needed, appends go to a new segment.
        walk.file.set_len(walk.at)?;
        walk.file.sync_all()?;
        return Ok(());
    }
    Ok(())
}
