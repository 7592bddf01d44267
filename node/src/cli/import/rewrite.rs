//! A block written anew: with labels added to every series, and without samples that were deleted.
//!
//! Memory: the labels of all series and where their chunks lie, and one series' samples: adding a label may change the
//! order of series, so they are sorted again. Series that become one are merged.

use std::path::Path;
use std::sync::Arc;

use engram_model::merge::merge_columns;
use engram_model::series::{Columns, SampleSource};
use engram_model::{Labels, TimeRange};
use engram_storage::block::{BlockDir, BlockWriter, Found, Load, Open, Select, Spec, verify};
use engram_storage::chunk;
use engram_storage::disk::real::RealDisk;
use engram_storage::head::HeadOptions;
use engram_storage::ranges::drive;

use super::plan::Target;

/// Writes the block at `source` below the directory `parent`, as `target` says; says whether anything is left of it.
///
/// # Errors
/// What is wrong with it, or with the disk.
pub(super) fn block(source: &Path, parent: &Path, target: &Target) -> Result<bool, String> {
    let dir = BlockDir::open(&RealDisk, source).map_err(|e| e.to_string())?;
    verify(&dir, dir.meta()).map_err(|e| e.to_string())?;
    let opened =
        drive(&mut Open::new(dir.place().clone(), dir.tombstones().clone()), &dir).map_err(|e| e.to_string())?;
    let opened = Arc::new(opened);
    let mut select = Select::new(Arc::clone(&opened), Vec::new(), TimeRange::ALL, u64::MAX);
    let found = drive(&mut select, &dir).map_err(|e| e.to_string())?;
    let mut all: Vec<(Labels, Found)> = found.into_iter().map(|one| (labelled(&one.labels, target), one)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let window_ms = HeadOptions::default().window_ms;
    let spec = Spec::cut(target.id, dir.meta().range(), window_ms);
    let mut writer = BlockWriter::create(Arc::new(RealDisk), parent, spec).map_err(|e| e.to_string())?;
    for same in all.chunk_by(|a, b| a.0 == b.0) {
        let mut sum = Columns::default();
        for (_, one) in same {
            let loaded =
                drive(&mut Load::new(Arc::clone(&opened), vec![one.clone()]), &dir).map_err(|e| e.to_string())?;
            for (labels, chunks) in loaded {
                let mut columns = Columns::default();
                chunks.read(TimeRange::ALL, &mut columns).map_err(|e| format!("series {labels}: {e}"))?;
                sum = if sum.is_empty() { columns } else { merge_columns(&sum, &columns) };
            }
        }
        let chunks = chunk::encode(chunk::in_order(&sum), window_ms);
        if !chunks.is_empty() {
            writer.add(&same[0].0, &chunks).map_err(|e| e.to_string())?;
        }
    }
    Ok(writer.finish().map_err(|e| e.to_string())?.is_some())
}

/// External labels stand over those of the series, as in Thanos.
fn labelled(labels: &Labels, target: &Target) -> Labels {
    let mut builder = labels.to_builder();
    target.labels.iter().for_each(|(name, value)| {
        builder.set(name, value);
    });
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::block::BlockId;
    use std::collections::BTreeMap;

    type Model = BTreeMap<Labels, Vec<(i64, f64)>>;

    fn read(path: &Path) -> Model {
        let dir = BlockDir::open(&RealDisk, path).unwrap();
        verify(&dir, dir.meta()).unwrap();
        let opened = Arc::new(drive(&mut Open::new(dir.place().clone(), dir.tombstones().clone()), &dir).unwrap());
        let found = drive(&mut Select::new(Arc::clone(&opened), vec![], TimeRange::ALL, u64::MAX), &dir).unwrap();
        let loaded = drive(&mut Load::new(opened, found), &dir).unwrap();
        let samples = |chunks: &dyn SampleSource| {
            let mut columns = Columns::default();
            chunks.read(TimeRange::ALL, &mut columns).unwrap();
            columns.times.into_iter().zip(columns.values).collect()
        };
        loaded.into_iter().map(|(labels, chunks)| (labels, samples(&*chunks))).collect()
    }

    #[test]
    fn labels_are_added_and_deleted_samples_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let id = BlockId::new(5, 1);
        let spec = Spec::cut(id, TimeRange::new(0, 7_200_000), 7_200_000);
        let mut writer = BlockWriter::create(Arc::new(RealDisk), dir.path(), spec).unwrap();
        // With `bb` added the first two change places; the last two become one.
        for (pairs, samples) in [
            (vec![("a", "1")], vec![(1, 1.0), (2, 2.0)]),
            (vec![("a", "1"), ("b", "1")], vec![(5, 5.0), (6, 6.0)]),
            (vec![("a", "2"), ("bb", "x")], vec![(1, 7.0)]),
            (vec![("a", "2"), ("bb", "y")], vec![(2, 8.0)]),
        ] {
            writer.add(&Labels::from_pairs(pairs), &chunk::encode_floats(&samples)).unwrap();
        }
        let written = writer.finish().unwrap().unwrap();
        // What was deleted of the second: all up to 5.
        let opened = BlockDir::open(&RealDisk, &written.path).unwrap();
        let block = Arc::new(drive(&mut Open::new(opened.place().clone(), Default::default()), &opened).unwrap());
        let found = drive(&mut Select::new(block, vec![], TimeRange::ALL, 9), &opened).unwrap();
        let mut body = Vec::new();
        engram_storage::codec::put_uvarint(&mut body, u64::from(found[1].series));
        engram_storage::codec::put_varint(&mut body, 0);
        engram_storage::codec::put_varint(&mut body, 5);
        let mut bytes = vec![0x01, 0x30, 0xba, 0x30, 1];
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&engram_storage::codec::crc32c(&body).to_be_bytes());
        std::fs::write(written.path.join("tombstones"), bytes).unwrap();
        let result = dir.path().join("result");
        std::fs::create_dir(&result).unwrap();
        let labels = BTreeMap::from([("bb".to_owned(), "new".to_owned())]);
        let target = Target { id: BlockId::new(5, 2), labels, why: String::new() };
        assert_eq!(super::block(&written.path, &result, &target), Ok(true));
        let pairs = |pairs: &[(&str, &str)]| Labels::from_pairs(pairs.iter().copied());
        let want = Model::from([
            (pairs(&[("a", "1"), ("bb", "new")]), vec![(1, 1.0), (2, 2.0)]),
            (pairs(&[("a", "1"), ("b", "1"), ("bb", "new")]), vec![(6, 6.0)]),
            (pairs(&[("a", "2"), ("bb", "new")]), vec![(1, 7.0), (2, 8.0)]),
        ]);
        assert_eq!(read(&result.join(target.id.to_string())), want);
    }
}
