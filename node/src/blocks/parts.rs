//! What replicas have set aside for one seal, as one row of series in order of labels.
//!
//! Each part comes in this order by itself, so the row needs one series of each part at a time: however large the parts
//! are, what is held of them is a frame each. A part out of order would give a series twice; it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::place::NodeId;
use engram_model::series::Series;
use engram_model::{Labels, Millis};
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::peer::{Frozen, SetAside};

/// How long a replica may take for one frame.
const FRAME_WITHIN: Duration = Duration::from_secs(60);

/// Series in order of labels.
pub type InOrder = Box<dyn Iterator<Item = Result<Series, Error>> + Send>;

/// The replicas whose parts broke off.
pub type Broken = Arc<Mutex<BTreeSet<NodeId>>>;

/// What one replica has set aside.
pub struct Part {
    /// The digest of each slot that holds samples, as promised.
    pub digests: BTreeMap<Millis, Digest>,
    /// Its series, in order of labels.
    pub series: InOrder,
}

impl From<Frozen> for Part {
    fn from(whole: Frozen) -> Self {
        Self { digests: whole.digests, series: Box::new(whole.series.into_iter().map(Ok)) }
    }
}

impl Part {
    /// A part that is still coming from a node, for a thread that may wait, within a runtime. It ends with an error once
    /// `cancel` says so; one that breaks off by itself puts its node into `broken`.
    #[must_use]
    pub fn coming((from, part): (NodeId, SetAside), broken: &Broken, cancel: &CancellationToken) -> Self {
        let SetAside { number, digests, series, .. } = part;
        let here = Vec::new().into_iter();
        let (runtime, broken, cancel) = (Handle::current(), broken.clone(), cancel.clone());
        let coming = Coming { from, number, series, here, runtime, broken, cancel };
        Self { digests, series: Box::new(coming) }
    }
}

/// The series of a part that comes frame by frame.
struct Coming {
    from: NodeId,
    number: u64,
    series: BoxStream<'static, Result<Vec<Series>, Error>>,
    here: std::vec::IntoIter<Series>,
    runtime: Handle,
    broken: Broken,
    cancel: CancellationToken,
}

impl Iterator for Coming {
    type Item = Result<Series, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(one) = self.here.next() {
                return Some(Ok(one));
            }
            let (series, cancel, number, from) = (&mut self.series, &self.cancel, self.number, self.from.0);
            let some = async {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => Some(Err(Error::new(Class::Cancelled, "the cut was given up"))),
                    some = tokio::time::timeout(FRAME_WITHIN, series.next()) => some.unwrap_or_else(|_| {
                        let text = format!("node {from} did not hand over the rest of seal {number} in time");
                        Some(Err(Error::unavailable(text)))
                    }),
                }
            };
            let not_here = || Some(Err(Error::unavailable(format!("the rest of seal {number} is not here yet"))));
            match engram_storage::blocking::wait(&self.runtime, some).unwrap_or_else(not_here)? {
                Ok(some) => self.here = some.into_iter(),
                Err(error) => {
                    if error.class != Class::Cancelled {
                        self.broken.lock().insert(self.from);
                    }
                    return Some(Err(error));
                }
            }
        }
    }
}

/// One part in the row: the next of its series, and those behind it.
struct Ahead {
    next: Option<Series>,
    behind: InOrder,
}

impl Ahead {
    /// The next series, of which the one behind takes the place.
    fn take(&mut self) -> Result<Option<Series>, Error> {
        let following = self.behind.next().transpose()?;
        if let (Some(before), Some(after)) = (&self.next, &following)
            && before.labels >= after.labels
        {
            let text = "a replica handed over series that are not in order of labels: a bug, or damage";
            return Err(Error::new(Class::Internal, text));
        }
        Ok(std::mem::replace(&mut self.next, following))
    }
}

/// The series of several parts, those with the same labels together.
pub(super) struct Row(Vec<Ahead>);

impl Row {
    /// Of all the parts.
    ///
    /// # Errors
    /// The first series of a part cannot be had.
    pub(super) fn of(parts: impl Iterator<Item = InOrder>) -> Result<Self, Error> {
        let begin = |mut behind: InOrder| Ok(Ahead { next: behind.next().transpose()?, behind });
        Ok(Self(parts.map(begin).collect::<Result<_, Error>>()?))
    }

    /// The series with the least labels that were not given yet, each with the number of its part; empty at the end.
    ///
    /// # Errors
    /// A part breaks off, or is out of order.
    pub(super) fn next(&mut self) -> Result<Vec<(usize, Series)>, Error> {
        let least: Option<Labels> = self.0.iter().filter_map(|part| Some(&part.next.as_ref()?.labels)).min().cloned();
        let Some(least) = least else { return Ok(Vec::new()) };
        let mut same = Vec::new();
        for (i, part) in self.0.iter_mut().enumerate() {
            if part.next.as_ref().is_some_and(|series| series.labels == least) {
                same.extend(part.take()?.map(|series| (i, series)));
            }
        }
        Ok(same)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a part that comes in frames gives the same block as the whole, and one that breaks off gives none. Method:
    //! both ways from the same samples on disks of their own, the frames as small as they can be.

    use std::path::Path;

    use engram_model::TimeRange;
    use engram_model::block::BlockId;
    use engram_model::histogram::Histogram;
    use engram_model::merge::merge_columns;
    use engram_model::series::{Columns, ReadError, SampleSource};
    use engram_storage::disk::Disk;
    use engram_storage::disk::fault::FaultDisk;
    use futures::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::blocks::build::{Built, Cutting, build};
    use crate::peer::digests_of;
    use crate::peer::wire::frozen::{Frames, put_promise, read_promise};
    use crate::peer::wire::series::read_series;
    use crate::read::hide::Hider;

    const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };

    /// A series whose late samples lie beside the others, as in a head.
    struct Sides(Columns, Columns);

    impl SampleSource for Sides {
        fn read(&self, _: TimeRange, out: &mut Columns) -> Result<(), ReadError> {
            *out = merge_columns(&self.0, &self.1);
            Ok(())
        }

        fn series_hash(&self) -> Option<u128> {
            None
        }
    }

    /// What a replica has of the series: by series and time, a value, and whether it is a histogram and whether it was late.
    type Samples = BTreeMap<(usize, i64), (u32, bool, bool)>;

    fn columns(all: &[(i64, u32, bool)]) -> Columns {
        let mut columns = Columns::default();
        for (at, value, is_histogram) in all {
            let value = f64::from(*value);
            if *is_histogram {
                columns.histogram_times.push(*at);
                let histogram = Histogram { integer: true, count: value, zero_count: value, ..Histogram::default() };
                columns.histograms.push(Arc::new(histogram));
            } else {
                columns.times.push(*at);
                columns.values.push(value);
            }
        }
        columns
    }

    fn part(samples: &Samples) -> Frozen {
        let mut series = Vec::new();
        for n in 0..4_usize {
            let own = |late: bool| -> Vec<(i64, u32, bool)> {
                let of_n = samples.range((n, 0)..(n + 1, 0)).filter(|(_, one)| one.2 == late);
                of_n.map(|((_, at), (value, is_histogram, _))| (*at, *value, *is_histogram)).collect()
            };
            let labels = Labels::from_pairs([("__name__", "up"), ("n", ["a", "b", "c", "d"][n])]);
            let (first, late) = (own(false), own(true));
            if !first.is_empty() || !late.is_empty() {
                series.push(Series { labels, source: Arc::new(Sides(columns(&first), columns(&late))) });
            }
        }
        let digests = digests_of(&series).unwrap().into_iter().collect();
        Frozen { number: 1, window: WINDOW, digests, series }
    }

    /// The same as it comes from another node, after `frames_max` frames broken off.
    fn coming(whole: Frozen, (frame_bytes, frames_max): (usize, usize), broken: &Broken) -> Part {
        let series = whole.series.clone();
        let promise = read_promise(&put_promise(Some(&SetAside::from(whole)))).unwrap().unwrap();
        let mut encoder = Frames::new(promise.window, frame_bytes);
        let mut frames: Vec<Vec<u8>> = series.iter().filter_map(|one| encoder.put(one).unwrap()).collect();
        frames.extend(encoder.rest());
        let read = |frame: Vec<u8>| {
            let mut some = Vec::new();
            read_series(&frame.into(), &mut some).unwrap();
            Ok(some)
        };
        let mut some: Vec<Result<Vec<Series>, Error>> = frames.into_iter().map(read).collect();
        if frames_max < some.len() {
            some.truncate(frames_max);
            some.push(Err(Error::unavailable("the way broke")));
        }
        let (number, digests) = (promise.number, promise.digests);
        let part = SetAside { number, window: WINDOW, digests, series: stream::iter(some).boxed() };
        Part::coming((NodeId(7), part), broken, &CancellationToken::new())
    }

    fn cut(parts: Vec<Part>) -> (FaultDisk, Result<Built, Error>) {
        let disk = FaultDisk::new();
        disk.create_dir(Path::new("/w")).unwrap();
        let cutting = Cutting { window: WINDOW, parts, hidden: Hider::default(), window_ms: 7_200_000 };
        let built = build(Arc::new(disk.clone()), Path::new("/w"), BlockId(7), cutting, &CancellationToken::new());
        (disk, built)
    }

    fn bytes(disk: &FaultDisk, dir: &Path) -> Vec<(String, Vec<u8>)> {
        let names = disk.list(dir).unwrap();
        let read = |name: &str| disk.open(&dir.join(name)).unwrap().map().unwrap().bytes().to_vec();
        names.into_iter().map(|name| (name.clone(), read(&name))).collect()
    }

    fn samples() -> impl Strategy<Value = Samples> {
        let one = (0_u32..3, any::<bool>(), any::<bool>());
        prop::collection::btree_map((0_usize..4, (0_i64..60).prop_map(|at| at * 110_000)), one, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn frames_give_the_block_that_whole_parts_give(
            replicas in prop::collection::vec(samples(), 1..4),
            frame_bytes in 1_usize..300,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _inside = runtime.enter();
            let broken = Broken::default();
            // The whole in one frame: chunks say less of histograms than what they were made of, so both are encoded.
            let of = |frame_bytes: usize| -> Vec<Part> {
                replicas.iter().map(|one| coming(part(one), (frame_bytes, usize::MAX), &broken)).collect()
            };
            let (disk, whole) = cut(of(usize::MAX));
            let (other, framed) = cut(of(frame_bytes));
            let (whole, framed) = (whole.unwrap(), framed.unwrap());
            prop_assert_eq!(whole.digest, framed.digest);
            prop_assert_eq!(whole.written.is_some(), framed.written.is_some());
            if let (Some(whole), Some(framed)) = (whole.written, framed.written) {
                for dir in [whole.path.clone(), whole.path.join("chunks")] {
                    prop_assert_eq!(bytes(&disk, &dir), bytes(&other, &dir));
                }
                prop_assert_eq!(whole.path, framed.path);
            }
        }

        #[test]
        fn what_breaks_off_leaves_nothing(mine in samples(), theirs in samples(), frames_max in 0_usize..5) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _inside = runtime.enter();
            let broken = Broken::default();
            let frames: usize = part(&theirs).series.len();
            prop_assume!(frames_max < frames);
            let (disk, built) = cut(vec![part(&mine).into(), coming(part(&theirs), (1, frames_max), &broken)]);
            prop_assert_eq!(built.unwrap_err().class, Class::Unavailable);
            prop_assert!(broken.lock().contains(&NodeId(7)));
            prop_assert!(disk.list_dirs(Path::new("/w")).unwrap().is_empty());
        }
    }

    #[test]
    fn a_cut_that_is_given_up_waits_for_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let cancel = CancellationToken::new();
        let silent =
            SetAside { number: 1, window: WINDOW, digests: BTreeMap::new(), series: stream::pending().boxed() };
        let broken = Broken::default();
        let part = Part::coming((NodeId(7), silent), &broken, &cancel);
        cancel.cancel();
        assert_eq!(cut(vec![part]).1.unwrap_err().class, Class::Cancelled);
        assert!(broken.lock().is_empty());
    }

    #[test]
    fn series_out_of_order_are_refused() {
        let one = |n: &str| Series {
            labels: Labels::from_pairs([("n", n)]),
            source: Arc::new(Columns { times: vec![1], values: vec![1.0], ..Columns::default() }),
        };
        for names in [["b", "a"], ["a", "a"]] {
            let series = names.map(one).to_vec();
            let digests = digests_of(&series).unwrap().into_iter().collect();
            let (_, built) = cut(vec![Frozen { number: 1, window: WINDOW, digests, series }.into()]);
            assert!(built.unwrap_err().message.contains("not in order"));
        }
    }
}
