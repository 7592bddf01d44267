//! A head in memory, blocks in a bucket that fails when told to, a real metadata group, and the reader over all of them.

use engram_model::block::{BlockId, BlockMeta, Origin};
use engram_model::digest::{Digest, slot_of};
use engram_model::place::{Epoch, PartitionId};
use engram_model::sample::{Metadata, Value as SampleValue};
use engram_model::series::{Columns, Series, Wanted};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_node::blocks::uploader::{About, upload};
use engram_node::error::Error;
use engram_node::meta::{Meta, TenantDefaults};
use engram_node::metrics::{Metrics, ReadMetrics};
use engram_node::peer::{
    Append, Appended, Counts, Exemplars, HeldWindows, PartitionView, Peers, Replica, Select, SetAside,
};
use engram_node::read::select::View;
use engram_node::read::store::{BlockOptions, Blocks};
use engram_node::read::{QueryRequest, ReadOptions, Reader};
use engram_query::engine::SamplePool;
use engram_query::value::Value;
use engram_raft::group::FirstStart;
use engram_raft::state::NodeSpec;
use engram_raft::{Group, GroupOptions};
use engram_storage::block::{BlockWriter, Spec};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::real::RealDisk;
use engram_storage::object::Store;
use engram_storage::object::faults::{FaultStore, Faults};
use engram_storage::object::options::Options;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const WINDOW: i64 = 7_200_000;
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) type Model = BTreeMap<Labels, BTreeMap<Millis, f64>>;

/// What happens when the head is asked next.
pub(crate) type Hook = BoxFuture<'static, ()>;

/// A head in memory; forgets when told to.
#[derive(Default)]
pub(crate) struct Head {
    pub(crate) data: Mutex<Model>,
    pub(crate) forgotten: Mutex<u64>,
    pub(crate) hook: Mutex<Option<Hook>>,
}

pub(crate) fn columns(samples: &BTreeMap<Millis, f64>, range: TimeRange) -> Columns {
    let inside = || samples.iter().filter(|(at, _)| range.contains(**at));
    Columns { times: inside().map(|s| *s.0).collect(), values: inside().map(|s| *s.1).collect(), ..Columns::default() }
}

impl Head {
    pub(crate) async fn answer(&self, request: &Select) -> Result<Vec<Series>, Error> {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook.await;
        }
        let forgotten = *self.forgotten.lock();
        if request.as_of < forgotten {
            return Err(Error::stale_view(request.as_of, forgotten));
        }
        let passes = |labels: &Labels| request.matchers.iter().all(|m| m.matches(labels.get(&m.name).unwrap_or("")));
        let data = self.data.lock();
        let found = data.iter().filter(|(labels, _)| passes(labels));
        let series = found.map(|(labels, samples)| (labels.clone(), columns(samples, request.range)));
        let some = series.filter(|(_, columns)| !columns.is_empty());
        Ok(some.map(|(labels, columns)| Series { labels, source: Arc::new(columns) }).collect())
    }
}

impl Replica for Head {
    fn append(&self, _: Append, _: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        unimplemented!()
    }
    fn select(&self, request: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        async move { self.answer(&request).await }.boxed()
    }
    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move { Ok(vec![self.answer(&requests[0]).await?]) }.boxed()
    }
    fn series(&self, request: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        async move { Ok(self.answer(&request).await?.into_iter().map(|one| one.labels).collect()) }.boxed()
    }
    fn label_names(&self, request: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        let names = |one: Series| one.labels.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        async move { Ok(self.answer(&request).await?.into_iter().flat_map(names).collect()) }.boxed()
    }
    fn label_values(&self, request: Select, name: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        let value = move |one: Series| one.labels.get(&name).map(str::to_owned);
        async move { Ok(self.answer(&request).await?.into_iter().filter_map(value).collect()) }.boxed()
    }
    fn metadata(&self, _: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        unimplemented!()
    }
    fn exemplars(&self, _: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        unimplemented!()
    }
    fn counts(&self, _: Select, _: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        async { Ok(Counts { series: 1, samples: 10, chunks: 1, bounds: Some((50, 60)), ..Counts::default() }) }.boxed()
    }
    fn everything(&self, _: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        unimplemented!()
    }
    fn digests(&self, request: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>> {
        async move {
            let all = self.answer(&request).await?.into_iter().map(|one| {
                let mut out = Columns::default();
                one.source.read(TimeRange::ALL, &mut out).unwrap();
                (one.labels, out.times.into_iter().zip(out.values).collect())
            });
            Ok(digests(&all.collect()).into_iter().collect())
        }
        .boxed()
    }
    fn windows(&self, _: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        unimplemented!()
    }
    fn set_aside(&self, _: &TenantId, _: PartitionId, _: u64) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        unimplemented!()
    }
    fn inventory(&self, _: PartitionId, _: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        unimplemented!()
    }
}

pub(crate) fn digests(model: &Model) -> BTreeMap<Millis, Digest> {
    let mut all: BTreeMap<Millis, Digest> = BTreeMap::new();
    for (labels, samples) in model {
        for (at, value) in samples {
            all.entry(slot_of(*at)).or_default().add(Digest::of_float(labels.hash128(), *at, *value));
        }
    }
    all
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("t").unwrap()
}

/// All that is needed to read. Cheap to clone.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) meta: Meta,
    pub(crate) head: Arc<Head>,
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) blocks: Blocks,
}

impl World {
    pub(crate) async fn new(local: bool, limits: TenantLimits) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let node = NodeSpec { zone: "z".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
        let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
        let options = GroupOptions::new(dir.path().join("meta"), node, first, Clock::test(0));
        let group = Group::open(options).await.unwrap();
        let meta = Meta::new(Arc::new(group), TenantDefaults { limits, shard_size: 0, tenants_max: 10 });
        meta.tenant_or_create(&tenant(), LONG).await.unwrap();
        let (bucket, faults) = FaultStore::memory(Arc::new(RealDisk), &Options::default());
        let store = if local { Store::local(Arc::new(RealDisk), &dir.path().join("blocks")).unwrap() } else { bucket };
        let blocks = Blocks::new(store.clone(), BlockOptions::default(), Some(dir.path().join("cache")));
        Self { dir, meta, head: Arc::default(), store, faults, blocks }
    }

    pub(crate) fn peers(&self) -> Peers {
        Peers::local_only(self.meta.node_id(), self.head.clone())
    }

    pub(crate) fn view(&self) -> View {
        View::new(&self.meta, &self.peers(), &self.blocks, &tenant())
    }

    pub(crate) fn reader(&self) -> Reader {
        let options = ReadOptions {
            concurrent_max: 4,
            queue_max: 10,
            timeout: LONG,
            slow_after: None,
            lookback_ms: 300_000,
            samples_max: 1 << 30,
            bytes_max: 1 << 40,
            pool: Arc::new(SamplePool::new(1 << 30)),
            push_down: true,
            experimental: false,
        };
        let metrics = ReadMetrics::new(&Metrics::default());
        Reader::new(options, self.meta.clone(), self.peers(), self.blocks.clone(), metrics)
    }

    /// Writes a block and uploads it.
    pub(crate) async fn upload(&self, chance: u128, model: &Model, as_of: u64) -> BlockMeta {
        let times = || model.values().flat_map(BTreeMap::keys);
        let range = TimeRange::closed(*times().min().unwrap(), *times().max().unwrap());
        let id = BlockId::new(1_700_000_000_000, chance);
        let work = self.dir.path().join("work");
        std::fs::create_dir_all(&work).unwrap();
        let mut writer = BlockWriter::create(Arc::new(RealDisk), &work, Spec::cut(id, range, WINDOW)).unwrap();
        for (labels, samples) in model.iter().filter(|(_, samples)| !samples.is_empty()) {
            let chunks = chunk::encode(samples.iter().map(|(at, v)| (*at, ValueRef::Float(*v))), WINDOW);
            writer.add(labels, &chunks).unwrap();
        }
        let written = writer.finish().unwrap().unwrap();
        let about = About { tenant: tenant(), range, origin: Origin::Imported, as_of, made_at: 0 };
        upload(&self.store, about, &written).await.unwrap()
    }

    pub(crate) async fn add(&self, chance: u128, model: &Model, as_of: u64) -> BlockMeta {
        let meta = self.upload(chance, model, as_of).await;
        self.meta.add_blocks("test", &tenant(), vec![meta.clone()], None, LONG).await.unwrap();
        meta
    }

    pub(crate) async fn read(&self, matchers: &[Matcher], range: TimeRange) -> Model {
        read(&self.view(), matchers, range).await.unwrap()
    }

    pub(crate) async fn count(&self) -> Result<f64, Error> {
        let end = 3 * WINDOW;
        let query = QueryRequest {
            text: "sum(count_over_time({__name__=~\".+\"}[100d]))".to_owned(),
            start: end,
            end,
            step_ms: 0,
            timeout: None,
            lookback_ms: None,
            limit: 0,
            explain: false,
            count_steps: false,
        };
        match self.reader().query(&tenant(), query).await?.value {
            Value::Vector(all) => Ok(all.first().map_or(0.0, |one| match one.value {
                SampleValue::Float(value) => value,
                SampleValue::Histogram(_) => panic!("{one:?}"),
            })),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn read(view: &View, matchers: &[Matcher], range: TimeRange) -> Result<Model, Error> {
    let mut model = Model::new();
    for one in view.samples(matchers, range, Wanted::default()).await? {
        let mut out = Columns::default();
        one.source.read(range, &mut out).unwrap();
        let samples: Vec<_> = out.times.into_iter().zip(out.values).filter(|(at, _)| range.contains(*at)).collect();
        assert!(samples.is_sorted_by(|a, b| a.0 < b.0), "{samples:?}");
        if !samples.is_empty() {
            assert!(model.insert(one.labels, samples.into_iter().collect()).is_none(), "no series twice");
        }
    }
    Ok(model)
}
