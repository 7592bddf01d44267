//! Any bytes as a chunk of each encoding: no harm, no more samples than a chunk may have, and what is a chunk says so
//! whenever it is asked.

use engram_model::series::Columns;
use engram_storage::chunk::{Chunk, Kind, decode};

/// One case: the first byte is the encoding, the rest the chunk.
pub fn run(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let kind = [Kind::Xor, Kind::Histogram, Kind::FloatHistogram][usize::from(first % 3)];
    let mut columns = Columns::default();
    let decoded = decode(kind, bytes, &mut columns);
    assert!(decoded.is_ok() || columns.is_empty(), "what failed left samples behind");
    assert!(columns.times.len() + columns.histogram_times.len() <= usize::from(u16::MAX));
    assert_eq!((columns.times.len(), columns.histogram_times.len()), (columns.values.len(), columns.histograms.len()));
    if let Ok(chunk) = Chunk::checked(kind, bytes) {
        let mut again = Columns::default();
        chunk.decode(&mut again).expect("what was checked is decoded");
        assert_eq!(usize::from(chunk.count), again.times.len() + again.histogram_times.len());
        assert!(chunk.first <= chunk.last);
    }
}
