//! Reading in two steps: say which bytes are wanted, then go on with the bytes given.
//!
//! Why: a block lies on a disk here and in an object store there. Whoever decodes must not wait, and whoever waits
//! must not decode, or each reader exists twice. So a [`Reading`] is a small machine that never does I/O: each step
//! either is done or names the ranges it needs next ([`Step::Need`]); the caller fetches exactly these, in whatever
//! way and order, and steps again. What was fetched for one step may be forgotten after it, and no step asks for much
//! more than [`STEP_BYTES`] at once, so memory is bounded whatever the block's size.
//!
//! ```text
//! loop { match reading.step(&have)? { Done(out) => break out, Need(wants) => have = fetch(wants) } }
//! ```
//!
//! [`drive`] is that loop for a [`Source`] that answers at once; an object store has the same loop with an await in it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;

/// About how many bytes one step asks for.
pub const STEP_BYTES: u64 = 4 << 20;
/// Ranges with a smaller gap between them are fetched as one: a request costs more than these bytes.
const GAP_MAX: u64 = 4 << 10;

/// One file of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    /// `meta.json`
    Meta,
    /// `index`
    Index,
    /// `chunks/NNNNNN`, counted from 1.
    Chunks(u32),
    /// `tombstones`
    Tombstones,
}

impl File {
    /// Where it lies in the block's directory, with `/` between names.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Meta => "meta.json".to_owned(),
            Self::Index => "index".to_owned(),
            Self::Chunks(n) => format!("chunks/{n:06}"),
            Self::Tombstones => "tombstones".to_owned(),
        }
    }
}

/// A range of bytes of one file. It never reaches behind the file's end, by the sizes that the reading was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Want {
    /// In which file.
    pub file: File,
    /// First byte.
    pub at: u64,
    /// How many.
    pub len: u64,
}

/// What a step of a reading comes to.
#[derive(Debug)]
pub enum Step<T> {
    /// Fetch these, then step again; they are sorted and do not overlap.
    Need(Vec<Want>),
    /// It is done; do not step again.
    Done(T),
}

/// A reading that does not wait, see the module's text.
pub trait Reading {
    /// What it finds.
    type Out;

    /// Goes as far as the bytes allow. `have` holds what the step before asked for; nothing for the first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are damaged, [`Error::TooLarge`] when there is more than the reading was
    /// allowed to find.
    fn step(&mut self, have: &Fetched) -> Result<Step<Self::Out>, Error>;
}

/// The bytes of one step.
#[derive(Clone, Debug, Default)]
pub struct Fetched(Vec<(Want, Bytes)>);

impl Fetched {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what came for `want`, in any order. Bytes of another length than asked for are kept too: whoever reads
    /// them will miss the rest and say so.
    pub fn insert(&mut self, want: Want, bytes: Bytes) {
        let place = self.0.partition_point(|(have, _)| *have < want);
        self.0.insert(place, (want, bytes));
    }

    /// What is there from byte `at` of a file on: nothing when that byte is not.
    #[must_use]
    pub fn from(&self, file: File, at: u64) -> &[u8] {
        let after = self.0.partition_point(|(have, _)| (have.file, have.at) <= (file, at));
        let found = after.checked_sub(1).and_then(|i| self.0.get(i)).filter(|(have, _)| have.file == file);
        found.and_then(|(have, bytes)| bytes.get(usize::try_from(at - have.at).ok()?..)).unwrap_or_default()
    }
}

/// Sorts ranges and joins those that overlap or nearly touch. Empty ones go: damage may place them behind the file.
#[must_use]
pub fn join(mut wants: Vec<Want>) -> Vec<Want> {
    wants.retain(|want| want.len > 0);
    wants.sort_unstable();
    let mut joined: Vec<Want> = Vec::with_capacity(wants.len());
    for want in wants {
        match joined.last_mut() {
            Some(last) if last.file == want.file && want.at <= last.at + last.len + GAP_MAX => {
                last.len = last.len.max(want.at + want.len - last.at);
            }
            _ => joined.push(want),
        }
    }
    joined
}

/// Things to be read, of which a bounded part is in flight.
#[derive(Debug)]
pub(crate) struct Batches<T> {
    todo: VecDeque<(Want, T)>,
    doing: Vec<(Want, T)>,
}

impl<T> Batches<T> {
    pub(crate) fn new(todo: impl IntoIterator<Item = (Want, T)>) -> Self {
        Self { todo: todo.into_iter().collect(), doing: Vec::new() }
    }

    /// The part whose bytes are there now.
    pub(crate) fn take(&mut self) -> Vec<(Want, T)> {
        std::mem::take(&mut self.doing)
    }

    /// How many bytes what is still to be done asks for.
    pub(crate) fn bytes(&self) -> u64 {
        self.todo.iter().fold(0, |sum, (want, _)| sum.saturating_add(want.len))
    }

    /// Puts back what needs more bytes than were asked for; it comes first again.
    pub(crate) fn again(&mut self, want: Want, thing: T) {
        self.todo.push_front((want, thing));
    }

    /// Chooses the next part and says what to fetch for it; nothing when all is done.
    pub(crate) fn next(&mut self) -> Option<Vec<Want>> {
        let mut sum = 0_u64;
        while sum < STEP_BYTES
            && let Some((want, thing)) = self.todo.pop_front()
        {
            sum = sum.saturating_add(want.len);
            self.doing.push((want, thing));
        }
        (!self.doing.is_empty()).then(|| join(self.doing.iter().map(|(want, _)| *want).collect()))
    }
}

/// How long the files of a block are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of `index`.
    pub index: u64,
    /// Bytes of `chunks/000001` and those after it.
    pub chunks: Vec<u64>,
}

impl Sizes {
    /// The length of a file; 0 for one that is not there.
    #[must_use]
    pub fn of(&self, file: File) -> u64 {
        match file {
            File::Index => self.index,
            File::Chunks(n) => {
                let place = usize::try_from(n).ok().and_then(|n| n.checked_sub(1));
                place.and_then(|n| self.chunks.get(n)).copied().unwrap_or(0)
            }
            File::Meta | File::Tombstones => 0,
        }
    }

    /// As much of `len` bytes from `at` on as the file has.
    #[must_use]
    pub fn clip(&self, file: File, at: u64, len: u64) -> Want {
        Want { file, at, len: len.min(self.of(file).saturating_sub(at)) }
    }
}

/// A block whose bytes can be had at once.
pub trait Source: Send + Sync {
    /// How long its files are.
    fn sizes(&self) -> &Sizes;

    /// Where it lies, for errors.
    fn path(&self) -> &Path;

    /// The bytes of a range.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Corrupt`] when the file has fewer bytes than `want` says.
    fn read(&self, want: Want) -> Result<Bytes, Error>;
}

/// Reads to the end from a source that answers at once.
///
/// # Errors
/// Those of the source and of the reading.
pub fn drive<R: Reading>(reading: &mut R, source: &dyn Source) -> Result<R::Out, Error> {
    let mut have = Fetched::new();
    loop {
        match reading.step(&have)? {
            Step::Done(out) => return Ok(out),
            Step::Need(wants) => {
                have = Fetched::new();
                for want in wants {
                    have.insert(want, source.read(want)?);
                }
            }
        }
    }
}

/// Where a block lies and how long its files are: what every reading of it must know.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Directory or prefix, for errors.
    pub path: PathBuf,
    /// Lengths of its files.
    pub sizes: Sizes,
}

impl Place {
    /// Damage in a file of the block.
    #[must_use]
    pub fn corrupt(&self, file: File, at: u64, what: impl Into<String>) -> Error {
        Error::corrupt(&self.path.join(file.path()), at, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ranges_become_one_and_their_bytes_are_found() {
        let want = |file, at, len| Want { file, at, len };
        let joined = join(vec![
            want(File::Chunks(1), 9000, 10),
            want(File::Index, 0, 10),
            want(File::Index, 5, 20),
            want(File::Index, 30, 1),
            want(File::Chunks(1), 0, 10),
            want(File::Chunks(1), 9010, 0),
        ]);
        assert_eq!(joined, [want(File::Index, 0, 31), want(File::Chunks(1), 0, 10), want(File::Chunks(1), 9000, 10)]);
        let mut have = Fetched::new();
        for want in joined.into_iter().rev() {
            have.insert(want, vec![7; usize::try_from(want.len).unwrap()].into());
        }
        assert_eq!(have.from(File::Index, 30), [7]);
        assert_eq!(have.from(File::Chunks(1), 9008), [7, 7]);
        assert!(have.from(File::Index, 31).is_empty() && have.from(File::Chunks(1), 10).is_empty());
        assert!(have.from(File::Meta, 0).is_empty() && have.from(File::Chunks(2), 0).is_empty());
    }
}
