//! A block whose bytes somebody changed: no harm is done, and what `verify` lets pass is what was written.
//!
//! The input is a list of edits of a small block, of its index and its chunks. Checksums over what was edited are not
//! put right, but for those of posting lists, series and chunks now and then, so that the decoders behind them are
//! reached.
use std::path::Path;
use std::sync::{Arc, OnceLock};

use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, TimeRange};
use engram_storage::block::{BlockDir, BlockId, BlockWriter, Load, Open, Select, Spec, verify};
use engram_storage::chunk::encode_floats;
use engram_storage::codec::{Reader, crc32c};
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::ranges::{File, drive};

const DIR: &str = "01HF7XJCR00000000000000007";
const FILES: [File; 4] = [File::Index, File::Chunks(1), File::Meta, File::Tombstones];

fn written() -> &'static [Vec<u8>; 4] {
    static FILES_OF: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    FILES_OF.get_or_init(|| {
        let disk = FaultDisk::new();
        let id: BlockId = DIR.parse().expect("is a name");
        let spec = Spec::cut(id, TimeRange::new(0, 1000), 1000);
        let mut writer = BlockWriter::create(Arc::new(disk.clone()), Path::new(""), spec).expect("begins");
        for i in 0..20 {
            let labels = Labels::from_pairs([("__name__", "m"), ("i", &*format!("{i:02}"))]);
            writer.add(&labels, &encode_floats(&[(i, 1.0), (i + 100, 2.0)])).expect("is taken");
        }
        writer.finish().expect("is whole").expect("is there");
        FILES.map(|file| disk.bytes(&Path::new(DIR).join(file.path())).expect("written"))
    })
}

/// Puts the checksum right of a section that begins at `at`, if the bytes there are one.
fn mend(bytes: &mut [u8], at: usize) {
    let mut r = Reader::new(bytes.get(at..).unwrap_or_default());
    let Ok(len) = r.u32() else { return };
    let Ok(body) = r.bytes(len as usize) else { return };
    let (crc, end) = (crc32c(body), at + 4 + body.len());
    if let Some(place) = bytes.get_mut(end..end + 4) {
        place.copy_from_slice(&crc.to_be_bytes());
    }
}

/// One case.
pub fn run(data: &[u8]) {
    let mut files = written().clone();
    let mut edits = Reader::new(data);
    while let (Ok(edit), Ok(at)) = (edits.u8(), edits.u16()) {
        let bytes = &mut files[usize::from(edit & 3)];
        if bytes.is_empty() {
            break;
        }
        let at = usize::from(at) % bytes.len();
        match edit >> 2 & 3 {
            0 => bytes.truncate(at),
            1 => mend(bytes, at),
            _ => bytes[at] = edits.u8().unwrap_or(0),
        }
    }
    let disk = FaultDisk::new();
    for (file, bytes) in FILES.iter().zip(&files) {
        let file = disk.create(&Path::new(DIR).join(file.path()));
        file.and_then(|file| file.write_at(0, bytes)).expect("memory does not fail");
    }
    let Ok(dir) = BlockDir::open(&disk, Path::new(DIR)) else { return };
    let verified = verify(&dir, dir.meta());
    // Without our section in meta.json there is no digest to hold a well mended block against.
    let is_ours = files[2] == written()[2];
    assert!(verified.is_err() || !is_ours || files[..2] == written()[..2], "damage was not found");
    let Ok(block) = drive(&mut Open::new(dir.place().clone(), dir.tombstones().clone()), &dir) else { return };
    let block = Arc::new(block);
    let Ok(found) = drive(&mut Select::new(Arc::clone(&block), vec![], TimeRange::ALL, 1 << 16), &dir) else { return };
    let Ok(loaded) = drive(&mut Load::new(block, found), &dir) else { return };
    for (_, chunks) in loaded {
        let mut columns = Columns::default();
        drop(chunks.read(TimeRange::ALL, &mut columns));
    }
}
