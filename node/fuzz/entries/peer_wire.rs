//! Any bytes as what another node sends: slices of writes, frames of series, digests, what was set aside, packed answers.
//! No harm, no more than was declared, and what is a slice is encoded to a slice again.

use super::blocks::tar;
use super::peer::Counts;
use super::wire::{ask, batch, frozen, series, unpack};
use bytes::Bytes;
use engram_model::series::Columns;
use engram_model::{Labels, TimeRange};

/// Most bytes an answer may be unpacked to here.
const UNPACKED_MAX: usize = 1 << 20;

/// Takes files and keeps nothing.
struct Nowhere(u64);

impl tar::Files for Nowhere {
    fn begin(&mut self, _: &str, bytes: u64) -> Result<(), String> {
        self.0 = bytes;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0 = self.0.checked_sub(bytes.len() as u64).expect("more came than was declared");
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        assert_eq!(self.0, 0, "less came than was declared");
        Ok(())
    }
}

fn read(all: &[engram_model::series::Series]) {
    let mut columns = Columns::default();
    for one in all {
        columns.clear();
        let _damaged = one.source.read(TimeRange::ALL, &mut columns);
    }
}

/// One case: the first byte says as what the rest is taken.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 8 {
        0 => {
            if let Ok(slice) = batch::decode(rest.to_vec()) {
                let picks: Vec<u32> = (0..u32::try_from(slice.series.len()).expect("few")).collect();
                let again = batch::decode(batch::encode(&slice, &picks, true)).expect("what was a slice is one again");
                assert_eq!(again.series.len(), slice.series.len());
            }
        }
        1 => {
            let mut all = Vec::new();
            if series::read_series(&Bytes::copy_from_slice(rest), &mut all).is_ok() {
                read(&all);
            }
        }
        2 => {
            if let Ok(Some(promise)) = frozen::read_promise(rest) {
                assert!(promise.digests.len() <= rest.len());
            }
        }
        3 => drop(series::read_digests(rest)),
        4 => {
            if let Ok(plain) = unpack(rest, UNPACKED_MAX) {
                assert!(plain.len() <= UNPACKED_MAX);
            }
        }
        5 => drop(ask::read::<Vec<Labels>>(rest)),
        6 => drop(ask::read::<Counts>(rest)),
        _ => {
            let (mut reader, mut files) = (tar::Reader::default(), Nowhere(0));
            // As it comes over a wire: in pieces of any length.
            let _broken = rest.chunks(usize::from(*first) + 1).try_for_each(|piece| reader.feed(piece, &mut files));
        }
    }
}
