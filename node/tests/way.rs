#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]
//! Goal: what a seal has set aside comes over the wire as it is, and a reader that does not know all partitions of a
//! tenant is told. Method: the service on a free port, asked by a node that has no replica of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engram_model::batch::{BatchSeries, Pair, Run, Text, WriteBatch};
use engram_model::labels::hash128;
use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::sample::Sample;
use engram_model::series::Series;
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::Clock;
use engram_model::{Class, Matcher, TimeRange};
use engram_raft::group::FirstStart;
use engram_raft::{Group, GroupOptions};
use engram_storage::disk::fault::FaultDisk;
use engram_storage::head::AppendLimits;
use engram_storage::log::{NodeLog, Options};
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full};
use prost::Message;
use prost::bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use engram_node::Error;
use engram_node::grpc::ingest::Api;
use engram_node::ingest::LocalReplica;
use engram_node::ingest::heads::Heads;
use engram_node::ingest::partition::{self, LogBudget};
use engram_node::meta::TenantDefaults;
use engram_node::meta::tenants::TenantChange;
use engram_node::meta::{Meta, nodes::NodeSpec};
use engram_node::peer::wire::failure;
use engram_node::peer::{Directory, Peers, Select, SetAside, digests_of};
use engram_node::read::fanout::Fanout;
use engram_node::tls::Tls;
use engram_node::write::known::Known;

const PARTITIONS: u32 = 8;
const WINDOW: TimeRange = TimeRange { start: 0, end: 7_200_000 };
const LONG: Duration = Duration::from_secs(30);
const P0: PartitionId = PartitionId(0);

/// Everybody is at one address, or nowhere.
struct All(Option<String>);

impl Directory for All {
    fn find(&self, _: NodeId) -> Option<(String, String)> {
        self.0.clone().map(|address| (address, "z".to_owned()))
    }
}

/// A node with all partitions, on a port.
struct Server {
    meta: Meta,
    group: Arc<Group>,
    heads: Arc<Vec<Heads>>,
    address: String,
    closing: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = FirstStart::Bootstrap { cluster_id: "c".into(), partition_count: PARTITIONS };
        let options = GroupOptions::new(dir.path().join("meta"), NodeSpec::default(), first, Clock::test(0));
        let group = Arc::new(Group::open(options).await.unwrap());
        let defaults = TenantDefaults { limits: TenantLimits::default(), shard_size: 1, tenants_max: 10 };
        let meta = Meta::new(group.clone(), defaults);
        let heads: Arc<Vec<Heads>> =
            Arc::new((0..PARTITIONS).map(|_| Heads::new(Arc::default(), Default::default())).collect());
        let log = NodeLog::open(Arc::new(FaultDisk::new()), Path::new("/log"), Options::default(), &mut |_, _| Ok(()));
        let (log, closing) = (Arc::new(log.unwrap()), CancellationToken::new());
        let handle = |partition: u32| {
            partition::child(partition::Config {
                partition: PartitionId(partition),
                heads: heads[partition as usize].clone(),
                all_heads: heads.clone(),
                log: log.clone(),
                budget: LogBudget::new(1 << 20),
                meta: meta.clone(),
                clock: Clock::test(0),
                stop: closing.clone(),
            })
            .0
        };
        let local = LocalReplica::new(heads.clone(), (0..PARTITIONS).map(handle).collect(), 0);
        let api = Api::new(Arc::new(local), meta.clone(), closing.clone(), None).into_grpc();
        let listener = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tonic::transport::Server::builder()
            .add_service(api)
            .serve_with_incoming_shutdown(listener, closing.clone().cancelled_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        Self { meta, group, heads, address, closing, tasks, _dir: dir }
    }

    /// How a node without replicas sees the others.
    fn seen(&self, address: Option<&str>) -> Peers {
        let nobody = Arc::new(LocalReplica::new(Arc::default(), Vec::new(), 0));
        let directory = All(address.map(str::to_owned));
        Peers::new((NodeId(99), nobody), ("c".into(), "z".into()), (Box::new(directory), Tls::plain()))
    }

    async fn end(mut self) {
        self.closing.cancel();
        drop(self.tasks.join_next().await);
        self.group.shutdown().await.unwrap();
    }

    async fn shard(&self, tenant: &TenantId, size: u32) {
        let version = self.meta.tenant(tenant).version;
        let change = TenantChange { version, shard_size: Some(size), ..TenantChange::default() };
        self.meta.set_tenant(tenant, change, LONG).await.unwrap();
    }
}

fn select(tenant: &TenantId, as_of: u64) -> Select {
    Select {
        tenant: tenant.clone(),
        partition: P0,
        epoch: Epoch(1),
        range: TimeRange::ALL,
        matchers: Arc::new(Vec::<Matcher>::new()),
        series_max: 0,
        wanted: Arc::default(),
        as_of,
    }
}

/// So many series with so many samples that do not compress.
fn batch(series: u32, samples: u32) -> WriteBatch {
    let mut batch = WriteBatch { text: b"n".to_vec(), ..WriteBatch::default() };
    for n in 0..series {
        let (value, at) = (format!("{n:05}"), u32::try_from(batch.text.len()).unwrap());
        let hash = hash128([(&b"n"[..], value.as_bytes())].into_iter(), &mut Vec::new());
        batch.text.extend_from_slice(value.as_bytes());
        let len = u32::try_from(value.len()).unwrap();
        batch.pairs.push(Pair { name: Text { at: 0, len: 1 }, value: Text { at, len } });
        let run = Run { from: n * samples, to: (n + 1) * samples };
        batch.series.push(BatchSeries { pairs: Run { from: n, to: n + 1 }, samples: run, hash, ..Default::default() });
        let noise = |i: u32| f64::from(n.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(0x9E37_79B9)) / 7.0;
        batch.samples.extend((0..samples).map(|i| Sample { at: i64::from(i) * 1000, value: noise(i) }));
    }
    batch
}

async fn all(mut part: SetAside) -> (usize, Vec<Series>) {
    let (mut frames, mut series) = (0, Vec::new());
    while let Some(some) = part.series.next().await {
        frames += 1;
        series.extend(some.unwrap());
    }
    (frames, series)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_aside_comes_in_frames_and_who_leaves_leaves_nothing() {
    let (server, tenant) = (Server::start().await, TenantId::anonymous());
    let replica = server.seen(Some(&server.address)).replica(server.meta.node_id()).unwrap();
    let none = replica.set_aside(&tenant, P0, 1).await.err().unwrap();
    assert_eq!(none.class, Class::Unavailable, "{none}");
    let (batch, head) = (batch(300, 400), server.heads[0].get_or_create(&tenant));
    let picks: Vec<u32> = (0..300).collect();
    {
        let mut head = head.write();
        let limits = AppendLimits {
            series_max: 0,
            out_of_order_window_ms: 0,
            in_order_age_max_ms: 0,
            exemplars_max: 0,
            metadata_max: 0,
            repair: false,
        };
        let staged = head.stage(&batch, &picks, &limits, &mut Vec::new());
        assert_eq!(head.apply(&batch, &staged).appended, 300 * 400);
        head.seal(1, WINDOW, &mut Vec::new()).unwrap();
    }
    let part = replica.set_aside(&tenant, P0, 1).await.unwrap().unwrap();
    assert_eq!((part.number, part.window), (1, WINDOW));
    let promised = part.digests.clone();
    let (frames, series) = all(part).await;
    assert!(frames > 2, "{frames} frames");
    assert!(series.is_sorted_by(|a, b| a.labels < b.labels));
    assert_eq!(digests_of(&series).unwrap(), promised.into_iter().collect::<Vec<_>>());
    // More leave in the middle than there are places.
    for _ in 0..40 {
        let mut part = loop {
            match replica.set_aside(&tenant, P0, 1).await {
                Ok(part) => break part.unwrap(),
                Err(full) => assert_eq!(full.class, Class::Unavailable, "{full}"),
            }
        };
        assert!(part.series.next().await.unwrap().is_ok());
    }
    head.write().forget_frozen(1, 9, &mut Vec::new()).unwrap();
    assert!(replica.set_aside(&tenant, P0, 1).await.unwrap().is_none());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_know_of_new_partitions_starts_over() {
    let (server, tenant) = (Server::start().await, TenantId::new("t").unwrap());
    let fanout = Fanout::new(&server.meta, &server.seen(Some(&server.address)));
    let ring = server.meta.ring();
    let read = async |as_of: u64| {
        let request = [select(&tenant, as_of)];
        let names = fanout.ask(&ring, &request, |replica, request| replica.label_names(request)).await;
        let series = fanout.select(&ring, &request).await;
        assert_eq!(names.is_ok(), series.is_ok());
        series.map(|_| ())
    };
    let mut before = server.meta.index();
    read(before).await.unwrap();
    // A tenant that is made with a shard of its own is one that grew from nothing.
    for size in [1, 4, 0] {
        server.shard(&tenant, size).await;
        let stale = read(before).await.unwrap_err();
        assert!(stale.is_stale_view(), "{stale}");
        before = server.meta.index();
        read(before).await.unwrap();
    }
    // A smaller one takes nothing from what readers cover.
    server.shard(&tenant, 2).await;
    read(before).await.unwrap();
    read(u64::MAX).await.unwrap();
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_before_readers_can_learn_where() {
    let (server, tenant) = (Server::start().await, TenantId::new("t").unwrap());
    let (meta, known) = (&server.meta, Known::default());
    let (reached, lost) = (server.seen(Some(&server.address)), server.seen(None));
    server.shard(&tenant, 1).await;
    let spread = async |peers: &Peers| known.spread((meta, peers), &tenant, &meta.tenant(&tenant), LONG).await;
    assert_eq!(spread(&lost).await.unwrap_err().class, Class::Unavailable);
    spread(&reached).await.unwrap();
    // Once is enough, until the shard grows again.
    spread(&lost).await.unwrap();
    server.shard(&tenant, 4).await;
    assert_eq!(spread(&lost).await.unwrap_err().class, Class::Unavailable);
    spread(&reached).await.unwrap();
    server.shard(&tenant, 2).await;
    spread(&lost).await.unwrap();
    // A replica that is behind answers when it is not any more.
    let replica = reached.replica(meta.node_id()).unwrap();
    let mut behind = replica.known(P0, Epoch(1), meta.index() + 1);
    assert!(behind.as_mut().now_or_never().is_none());
    let (caught_up, ()) = futures::future::join(behind, server.shard(&tenant, 3)).await;
    caught_up.unwrap();
    server.end().await;
}

#[tokio::test]
async fn a_node_older_than_the_question_hinders_no_write() {
    let answer = || async {
        let failure = failure(&Error::invalid("question 11 is not known")).encode_to_vec();
        // Its field in a frame.
        let frame = [&[4 << 3 | 2, u8::try_from(failure.len()).unwrap()][..], &failure].concat();
        let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
        let body = Full::new(Bytes::from([&[0][..], &len, &frame].concat()));
        let ok = async { Some(Ok([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect())) };
        ([("content-type", "application/grpc")], axum::body::Body::new(body.with_trailers(ok)))
    };
    let older = tonic::service::Routes::from(axum::Router::new().fallback(answer));
    let listener = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(tonic::transport::Server::builder().add_routes(older).serve_with_incoming(listener));
    let nobody = Arc::new(LocalReplica::new(Arc::default(), Vec::new(), 0));
    let to = (Box::new(All(Some(address))) as Box<dyn Directory>, Tls::plain());
    let peers = Peers::new((NodeId(99), nobody), ("c".into(), "z".into()), to);
    let replica = peers.replica(NodeId(1)).unwrap();
    replica.known(P0, Epoch(1), 5).await.unwrap();
    // Another question that it does not know is still refused.
    assert_eq!(replica.inventory(P0, Epoch(1)).await.unwrap_err().class, Class::Invalid);
}
