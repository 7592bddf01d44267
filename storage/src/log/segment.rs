//! A segment file: its name and its header. Drawn in `docs/formats/log.md`.

use std::path::{Path, PathBuf};

use super::group::BLOCK;
use crate::Error;
use crate::codec::{self, Reader};
use crate::disk::DiskFile;

const MAGIC: u64 = u64::from_be_bytes(*b"ENGRLOG1");
/// Bytes of the header that mean something.
const HEADER: usize = 36;
const SUFFIX: &str = ".log";
/// The file preallocated ahead.
pub(super) const NEXT: &str = "next.tmp";

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    /// Position of its first record, whether there is one or not.
    pub(super) first: u64,
    pub(super) salt: u64,
}

impl Header {
    /// The CRC all CRCs of this segment's groups are continued from.
    pub(super) fn salt_crc(&self) -> u32 {
        codec::crc32c(&self.salt.to_be_bytes())
    }

    /// The whole first block.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        codec::put_u64(&mut out, MAGIC);
        codec::put_u64(&mut out, self.number);
        codec::put_u64(&mut out, self.first);
        codec::put_u64(&mut out, self.salt);
        let crc = codec::crc32c(&out);
        codec::put_u32(&mut out, crc);
        out.resize(BLOCK, 0);
        out
    }

    /// Reads and checks the header of segment `number`.
    pub(super) fn read(file: &dyn DiskFile, path: &Path, number: u64) -> Result<Self, Error> {
        let mut bytes = [0; HEADER];
        let got = file.read_at(0, &mut bytes)?;
        let broken = |broken| Error::broken(path, 0, broken);
        let mut r = Reader::new(&bytes[..got]);
        if r.u64().map_err(broken)? != MAGIC {
            return Err(Error::corrupt(path, 0, "not the header of a log segment"));
        }
        let header =
            Self { number: r.u64().map_err(broken)?, first: r.u64().map_err(broken)?, salt: r.u64().map_err(broken)? };
        let (want, got) = (codec::crc32c(&bytes[..r.at()]), r.u32().map_err(broken)?);
        if want != got {
            return Err(Error::corrupt(path, 0, format!("checksum of the header is {want:08x}, it says {got:08x}")));
        }
        if header.number != number {
            return Err(Error::corrupt(path, 0, format!("the header says segment {}", header.number)));
        }
        Ok(header)
    }
}

/// The salt of a segment: differs for each, and cannot be told without `chance`.
pub(super) fn salt(chance: u64, number: u64) -> u64 {
    let mut z = chance ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where segment `number` lies.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}{SUFFIX}"))
}

/// The number in a file's name, if it is a segment's.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let ours = digits.len() >= 16 && digits.bytes().all(|b| b.is_ascii_digit());
    ours.then(|| digits.parse().ok()).flatten()
}
