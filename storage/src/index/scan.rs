//! One pass over a table of the index file, in bounded memory.
//!
//! Why: the symbols and the offsets of posting lists are single sections that may be hundreds of megabytes long, with
//! one checksum at the end. They are fetched piece by piece; entries are handed out as they come, and the checksum
//! decides at the end whether what was made of them may be used.
//!
//! ```text
//! u32 length | u32 count | entries … | u32 checksum of all between
//! ```

use crate::Error;
use crate::codec::{Broken, Reader, crc32c_append};
use crate::ranges::{Fetched, File, Place, STEP_BYTES, Want};

/// Most bytes of one entry: two texts and a number.
const ENTRY_BYTES_MAX: usize = 32 << 20;

/// Takes one entry from the reader; the number is where in the file it begins. It must change nothing when it fails,
/// since it is asked again when more bytes are there.
pub(crate) type OnEntry<'a> = &'a mut dyn FnMut(&mut Reader<'_>, u64) -> Result<(), Broken>;

/// Where a pass stands.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Where the section begins.
    at: u64,
    /// Where it ends at the latest.
    bound: u64,
    /// Where its entries end, once its length was read.
    end: Option<u64>,
    left: u32,
    crc: u32,
    /// Bytes fetched and not used yet, and where in the file they lie.
    held: Vec<u8>,
    held_at: u64,
}

impl Scan {
    /// A pass over the section at `at`, which ends at `bound` at the latest.
    pub(crate) fn new(at: u64, bound: u64) -> Self {
        Self { at, bound, end: None, left: 0, crc: 0, held: Vec::new(), held_at: at }
    }

    /// What to fetch next.
    pub(crate) fn want(&self) -> Want {
        let at = self.held_at + self.held.len() as u64;
        let until = self.end.map_or(self.bound, |end| end + 4);
        Want { file: File::Index, at, len: until.saturating_sub(at).min(STEP_BYTES) }
    }

    /// Goes on with the bytes that were wanted; whether the section is done.
    pub(crate) fn feed(&mut self, place: &Place, have: &Fetched, entry: OnEntry<'_>) -> Result<bool, Error> {
        let want = self.want();
        let bytes = have.from(File::Index, want.at);
        let bytes = &bytes[..bytes.len().min(usize::try_from(want.len).unwrap_or(usize::MAX))];
        if bytes.is_empty() {
            return Err(place.corrupt(File::Index, want.at, "a table ends early"));
        }
        self.held.extend_from_slice(bytes);
        let fail = |at: u64, what: &'static str| place.corrupt(File::Index, at, what);
        if self.end.is_none() {
            let mut r = Reader::new(&self.held);
            let (Ok(len), Ok(count)) = (r.u32(), r.u32()) else {
                return if want.at + want.len == self.bound {
                    Err(fail(self.at, "a table ends early"))
                } else {
                    Ok(false)
                };
            };
            let end = self.at + 4 + u64::from(len);
            if len < 4 || end + 4 > self.bound {
                return Err(fail(self.at, "a table is longer than its place"));
            }
            (self.end, self.left) = (Some(end), count);
            self.crc = crc32c_append(0, &self.held[4..8]);
            self.drop_front(8);
        }
        self.entries(place, entry)?;
        let end = self.end.unwrap_or(self.bound);
        if self.left > 0 || self.held_at + (self.held.len() as u64) < end + 4 {
            return Ok(false);
        }
        let sum = Reader::new(&self.held).u32();
        match (self.held_at == end, sum) {
            (true, Ok(sum)) if sum == self.crc => Ok(true),
            (true, _) => Err(fail(self.at, "checksum of a table differs")),
            (false, _) => Err(fail(self.held_at, "bytes after the last entry of a table")),
        }
    }

    fn entries(&mut self, place: &Place, entry: OnEntry<'_>) -> Result<(), Error> {
        let end = self.end.unwrap_or(self.bound);
        let inside = usize::try_from(end.saturating_sub(self.held_at)).unwrap_or(usize::MAX).min(self.held.len());
        let is_last = self.held_at + inside as u64 == end;
        let mut used = 0;
        while self.left > 0 {
            let mut r = Reader::new(&self.held[used..inside]);
            match entry(&mut r, self.held_at + used as u64) {
                Ok(()) => {
                    self.left -= 1;
                    used += r.at();
                }
                Err(broken) if is_last || inside - used > ENTRY_BYTES_MAX => {
                    let at = self.held_at + used as u64 + broken.at as u64;
                    return Err(place.corrupt(File::Index, at, broken.what));
                }
                Err(_) => break,
            }
        }
        self.crc = crc32c_append(self.crc, &self.held[..used]);
        self.drop_front(used);
        Ok(())
    }

    fn drop_front(&mut self, len: usize) {
        self.held.drain(..len);
        self.held_at += len as u64;
    }
}
