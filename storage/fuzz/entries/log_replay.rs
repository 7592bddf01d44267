//! Replay of a log whose bytes somebody changed: no harm is done and nothing is invented.
//!
//! The input is a list of edits of a log of five groups. Whatever they are, replay ends, and what it gives is a prefix
//! of what was written; a checksum that is right by chance is out of reach.
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};

use engram_storage::codec::Reader;
use engram_storage::disk::Disk;
use engram_storage::disk::fault::FaultDisk;
use engram_storage::log::{NodeLog, Options, Position, replay};

const DIR: &str = "log";
const SEGMENT: &str = "log/0000000000000001.log";

fn payload(n: u64) -> Vec<u8> {
    n.to_be_bytes().into_iter().cycle().take(usize::try_from(n % 3 * 3000 + 5).expect("small")).collect()
}

fn written() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let disk = FaultDisk::new();
        let options = Options { segment_bytes: 64 << 10, chance: 3, ..Options::default() };
        let log = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, &mut |_, _| Ok(())).expect("opens");
        for n in 1..=5 {
            let (tx, done) = mpsc::channel();
            log.append(payload(n), Box::new(move |answer| tx.send(answer).expect("waited for"))).expect("taken");
            done.recv().expect("answered").expect("durable");
        }
        log.close().expect("closes");
        disk.bytes(Path::new(SEGMENT)).expect("written")
    })
}

/// One case.
pub fn run(data: &[u8]) {
    let mut bytes = written().to_vec();
    let mut edits = Reader::new(data);
    while let Ok(edit) = edits.u8() {
        let Ok(at) = edits.u16() else { break };
        let at = usize::from(at) % bytes.len().max(1);
        match edit % 4 {
            0 => bytes.truncate(at),
            1 => bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
            2 => bytes.rotate_left(at),
            _ => {
                if let (Some(byte), Ok(new)) = (bytes.get_mut(at), edits.u8()) {
                    *byte = new;
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    let disk = FaultDisk::new();
    disk.create(Path::new(SEGMENT)).and_then(|file| file.write_at(0, &bytes)).expect("memory does not fail");
    let mut next = 1;
    let found = replay(&disk, Path::new(DIR), &mut |position, bytes| {
        assert_eq!((position, bytes), (Position(next), &payload(next)[..]), "a record was invented");
        next += 1;
        Ok(())
    });
    if let Ok(found) = found {
        assert_eq!(found.records, next - 1);
        // What was cut off stays cut off: a second reading finds the same, cleanly.
        let again = replay(&disk, Path::new(DIR), &mut |_, _| Ok(())).expect("reads again");
        assert_eq!((again.records, again.torn), (found.records, None));
    }
}
