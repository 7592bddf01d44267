//! Goal: which slots are fetched from whom, and who is not waited for. Method: digests by hand; replicas that answer as told.

use std::sync::Arc;

use engram_model::Labels;
use engram_model::sample::Metadata;
use engram_model::series::Columns;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_raft::group::FirstStart;
use engram_raft::{Group, GroupOptions};

use super::*;
use crate::ingest::LocalReplica;
use crate::meta::TenantDefaults;
use crate::meta::nodes::NodeSpec;
use crate::peer::{Append, Appended, Counts, Directory, Exemplars, HeldWindows, PartitionView, SetAside, digests_of};
use crate::tls::Tls;

fn digest(n: u64) -> Digest {
    Digest { count: n, low: n * 7, high: n * 11 }
}

fn select(start: Millis, end: Millis) -> Select {
    Select {
        tenant: TenantId::anonymous(),
        partition: PartitionId(0),
        epoch: Epoch(1),
        range: TimeRange { start, end },
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    }
}

#[test]
fn equal_slots_are_not_fetched_and_others_once() {
    let own = vec![(0, digest(1)), (SLOT_MS, digest(2)), (2 * SLOT_MS, digest(3))];
    let same = (NodeId(2), own.clone());
    let wide = select(0, 100 * SLOT_MS);
    assert!(differing(&wide, (NodeId(1), &own), &[same.clone(), (NodeId(1), vec![(0, digest(9))])]).is_empty());
    // Two others that agree with each other: one is asked. Neighbouring slots are one range.
    let ahead = vec![(0, digest(1)), (SLOT_MS, digest(5)), (2 * SLOT_MS, digest(6)), (9 * SLOT_MS, digest(1))];
    let wanted = differing(&wide, (NodeId(1), &own), &[same, (NodeId(3), ahead.clone()), (NodeId(4), ahead)]);
    let range = |from: i64, to: i64| TimeRange { start: from * SLOT_MS, end: to * SLOT_MS };
    assert_eq!(wanted, vec![(NodeId(3), range(1, 3)), (NodeId(3), range(9, 10))]);
    // What lies outside of the range is not asked for; what another lacks gives nothing.
    let narrow = select(SLOT_MS + 5, SLOT_MS + 9);
    let wanted = differing(&narrow, (NodeId(1), &own), &[(NodeId(3), vec![(SLOT_MS, digest(5))])]);
    assert_eq!(wanted, vec![(NodeId(3), TimeRange { start: SLOT_MS + 5, end: SLOT_MS + 9 })]);
    assert!(differing(&wide, (NodeId(1), &own), &[(NodeId(3), vec![(0, Digest::EMPTY)])]).is_empty());
}

#[test]
fn many_ranges_become_one() {
    let many: SlotDigests = (0..40).map(|i| (2 * i * SLOT_MS, digest(1))).collect();
    let wanted = differing(&select(0, 1000 * SLOT_MS), (NodeId(1), &Vec::new()), &[(NodeId(2), many)]);
    assert_eq!(wanted, vec![(NodeId(2), TimeRange { start: 0, end: 79 * SLOT_MS })]);
}

#[test]
fn what_only_another_ring_can_mend_is_not_passed_over() {
    assert!(may_pass_over(&Error::unavailable("x")));
    assert!(!may_pass_over(&Error { stage: Stage::Stale, ..Error::unavailable("x") }));
    assert!(!may_pass_over(&Error::new(Class::Limited, "x")));
}

struct Nobody;

impl Directory for Nobody {
    fn find(&self, _: NodeId) -> Option<(String, String)> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_blocks_looks_at_them_anew_when_replicas_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let options = GroupOptions::new(dir.path().join("meta"), NodeSpec::default(), first, Clock::test(0));
    let group = Arc::new(Group::open(options).await.unwrap());
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    let meta = Meta::new(group.clone(), defaults);
    let local = Arc::new(LocalReplica::new(Arc::default(), Vec::new(), 0));
    let names = ("c".to_owned(), "z".to_owned());
    let peers = Peers::new((meta.node_id(), local), names, (Box::new(Nobody), Tls::plain()));
    let fanout = Fanout::new(&meta, &peers);
    // The first replicas say that the set has changed; those of the new one have never forgotten anything, and so they
    // answer, whatever the reader's blocks are.
    let read = async |ring: &Arc<RingView>, as_of: u64| {
        let (before, request) = (ring.replicas(PartitionId(0)).unwrap().epoch, Select { as_of, ..select(0, 10) });
        let looked = fanout.looking_again(ring, std::slice::from_ref(&request), |parts| {
            let meta = meta.clone();
            async move {
                let epoch = parts[0].select.epoch;
                if epoch != before {
                    return Ok(epoch);
                }
                let replicas = vec![meta.node_id()];
                meta.set_replicas(PartitionId(0), epoch, (replicas, None), CATCH_UP_WITHIN).await?;
                Err(Error { stage: Stage::Stale, ..Error::unavailable("changed") })
            }
        });
        looked.await
    };
    // Who asks for heads alone has nothing else to look at.
    assert_eq!(read(&meta.ring(), u64::MAX).await.unwrap(), Epoch(2));
    let index = meta.index();
    let stale = read(&meta.ring(), index).await.unwrap_err();
    assert!(stale.is_stale_view() && meta.index() > index, "{stale}");
    group.shutdown().await.unwrap();
}

/// A replica with a sample at each of some times.
struct Fake {
    times: &'static [Millis],
    /// Whether it ever gives its series.
    gives: bool,
    /// How long it takes for its digests.
    digests_after: Duration,
}

impl Fake {
    fn all(&self) -> Vec<Series> {
        let (times, values) = (self.times.to_vec(), vec![1.0; self.times.len()]);
        let source = Arc::new(Columns { times, values, ..Columns::default() });
        vec![Series { labels: Labels::from_pairs([("a", "b")]), source }]
    }
}

impl Replica for Fake {
    fn select_all(&self, requests: Vec<Select>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move {
            if !self.gives {
                std::future::pending::<()>().await;
            }
            Ok(requests.iter().map(|_| self.all()).collect())
        }
        .boxed()
    }
    fn digests(&self, _: Select) -> BoxFuture<'_, Result<Vec<(Millis, Digest)>, Error>> {
        async move {
            tokio::time::sleep(self.digests_after).await;
            Ok(digests_of(&self.all()).unwrap())
        }
        .boxed()
    }
    fn append(&self, _: Append, _: Duration) -> BoxFuture<'_, Result<Appended, Error>> {
        unreachable!("not asked here")
    }
    fn select(&self, _: Select) -> BoxFuture<'_, Result<Vec<Series>, Error>> {
        unreachable!("not asked here")
    }
    fn series(&self, _: Select) -> BoxFuture<'_, Result<Vec<Labels>, Error>> {
        unreachable!("not asked here")
    }
    fn label_names(&self, _: Select) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        unreachable!("not asked here")
    }
    fn label_values(&self, _: Select, _: String) -> BoxFuture<'_, Result<BTreeSet<String>, Error>> {
        unreachable!("not asked here")
    }
    fn metadata(&self, _: Select) -> BoxFuture<'_, Result<Vec<(String, Metadata)>, Error>> {
        unreachable!("not asked here")
    }
    fn exemplars(&self, _: Select) -> BoxFuture<'_, Result<Exemplars, Error>> {
        unreachable!("not asked here")
    }
    fn counts(&self, _: Select, _: usize) -> BoxFuture<'_, Result<Counts, Error>> {
        unreachable!("not asked here")
    }
    fn everything(&self, _: Select) -> BoxFuture<'_, Result<PartitionView, Error>> {
        unreachable!("not asked here")
    }
    fn windows(&self, _: PartitionId) -> BoxFuture<'_, Result<Vec<HeldWindows>, Error>> {
        unreachable!("not asked here")
    }
    fn set_aside(&self, _: &TenantId, _: PartitionId, _: u64) -> BoxFuture<'_, Result<Option<SetAside>, Error>> {
        unreachable!("not asked here")
    }
    fn inventory(&self, _: PartitionId, _: Epoch) -> BoxFuture<'_, Result<Vec<(TenantId, Digest)>, Error>> {
        unreachable!("not asked here")
    }
}

#[tokio::test]
async fn who_hangs_when_it_is_to_give_what_differs_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: 1 };
    let options = GroupOptions::new(dir.path().join("meta"), NodeSpec::default(), first, Clock::test(0));
    let group = Arc::new(Group::open(options).await.unwrap());
    let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 0, tenants_max: 10 };
    let meta = Meta::new(group.clone(), defaults);
    let fake = |times: &'static [Millis], gives: bool, after_ms: u64| -> Arc<dyn Replica> {
        Arc::new(Fake { times, gives, digests_after: Duration::from_millis(after_ms) })
    };
    let nodes = [meta.node_id(), NodeId(98), NodeId(99)];
    // The second one is in the first majority, and has what the others lack.
    let read = async |third: Arc<dyn Replica>| {
        let beside = BTreeMap::from([(nodes[1], fake(&[1, 2], false, 0)), (nodes[2], third)]);
        let fanout = Fanout::new(&meta, &Peers::among((nodes[0], fake(&[1], true, 0)), beside));
        let select = Select { epoch: meta.epoch(PartitionId(0)).unwrap(), ..select(0, 10) };
        let part = Part { select, sets: Sets::new(&nodes, None), order: nodes.to_vec(), without: Vec::new() };
        let read = fanout.select_parts(std::slice::from_ref(&part));
        let found = tokio::time::timeout(Duration::from_secs(60), read).await.ok()?.unwrap();
        let mut columns = Columns::default();
        found[0].iter().for_each(|one| one.source.read(TimeRange::ALL, &mut columns).unwrap());
        Some(columns.times)
    };
    tokio::time::pause();
    assert_eq!(read(fake(&[1, 3], true, 10)).await, Some(vec![1, 3]), "the others are a majority");
    assert_eq!(read(fake(&[1, 3], false, 10)).await, None, "with two that hang there is none");
    tokio::time::resume();
    group.shutdown().await.unwrap();
}
