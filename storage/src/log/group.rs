//! A group: the records one sync made durable. Drawn in `docs/formats/log.md`.

use crate::codec::{self, Broken, Reader};

/// Everything starts on a multiple of this. A synced block is never written again.
pub(super) const BLOCK: usize = 4096;
const MAGIC: u32 = u32::from_be_bytes(*b"EGRP");
/// Bytes before the body.
pub(super) const HEADER: usize = 32;
/// The one kind there is.
pub(super) const KIND_RECORDS: u8 = 1;
/// Bytes before a payload.
const RECORD_HEADER: usize = 4;

const _: () = assert!(HEADER < BLOCK && BLOCK.is_power_of_two());

/// Rounds up to whole blocks.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}

/// What stands before the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) first: u64,
    pub(super) records: u32,
    pub(super) body: u32,
    pub(super) body_crc: u32,
}

impl Header {
    /// The header at the start of `bytes`, if one stands there that was written with this `salt_crc`.
    pub(super) fn parse(bytes: &[u8], salt_crc: u32) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        let mut r = Reader::new(bytes);
        if r.u32().ok()? != MAGIC {
            return None;
        }
        let kind = r.u8().ok()?;
        r.bytes(3).ok()?;
        let header =
            Self { kind, first: r.u64().ok()?, records: r.u32().ok()?, body: r.u32().ok()?, body_crc: r.u32().ok()? };
        let crc = codec::crc32c_append(salt_crc, &bytes[..r.at()]);
        (r.u32().ok()? == crc).then_some(header)
    }

    /// Bytes of the group on disk, padding included.
    pub(super) fn disk_bytes(&self) -> u64 {
        blocks(HEADER as u64 + u64::from(self.body))
    }

    /// Whether `body` is what was written.
    pub(super) fn matches(&self, body: &[u8], salt_crc: u32) -> bool {
        codec::crc32c_append(salt_crc, body) == self.body_crc
    }
}

/// Builds groups in one buffer that is used again.
#[derive(Debug, Default)]
pub(super) struct Builder {
    bytes: Vec<u8>,
    records: u32,
}

impl Builder {
    /// Forgets what was built; gives memory back that an unusually large group took.
    pub(super) fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes);
        self.bytes.resize(HEADER, 0);
        self.records = 0;
    }

    /// Adds a record. The caller has bounded `payload`.
    pub(super) fn push(&mut self, payload: &[u8]) {
        let len = u32::try_from(payload.len());
        assert!(len.is_ok(), "a payload of {} bytes passed the check for its size", payload.len());
        codec::put_u32(&mut self.bytes, len.unwrap_or_default());
        self.bytes.extend_from_slice(payload);
        self.records += 1;
    }

    /// The whole group with its header and padding.
    pub(super) fn finish(&mut self, first: u64, salt_crc: u32) -> &[u8] {
        let body = u32::try_from(self.bytes.len() - HEADER);
        assert!(body.is_ok(), "a group of {} bytes passed its bound", self.bytes.len());
        let mut header = Vec::with_capacity(HEADER);
        codec::put_u32(&mut header, MAGIC);
        header.extend_from_slice(&[KIND_RECORDS, 0, 0, 0]);
        codec::put_u64(&mut header, first);
        codec::put_u32(&mut header, self.records);
        codec::put_u32(&mut header, body.unwrap_or_default());
        codec::put_u32(&mut header, codec::crc32c_append(salt_crc, &self.bytes[HEADER..]));
        let crc = codec::crc32c_append(salt_crc, &header);
        codec::put_u32(&mut header, crc);
        self.bytes[..HEADER].copy_from_slice(&header);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        &self.bytes
    }

    /// Bytes on disk once finished.
    pub(super) fn disk_bytes(&self) -> u64 {
        blocks(self.bytes.len() as u64)
    }
}

/// Takes the next record of a body.
pub(super) fn take_record<'a>(body: &mut Reader<'a>) -> Result<&'a [u8], Broken> {
    let len = body.u32()? as usize;
    body.bytes(len)
}

/// Most records that a body of `bytes` can hold.
pub(super) fn records_max(bytes: usize) -> usize {
    bytes / RECORD_HEADER
}
